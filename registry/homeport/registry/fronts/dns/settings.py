"""What can be set about DNS, checked once."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import is_port

DOMAIN: Final = "homeport"
TTL_S_MAX: Final = 604_800  # a week: longer, and a typing error outlives everyone who could correct it
UDP_BYTES: Final = 1232  # what passes every path in one piece, by the agreement of DNS flag day 2020
_DOMAIN: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_DOMAIN_CHARS_MAX: Final = 100  # leaves room for a tag and a service of the longest label each


class DnsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the DNS front answers.

    Attributes:
        domains: the domains it is asked under; answers speak of the one that was asked for.
        service_ttl_s: TTLs by service name; `web*` stands for all names that start so, `*` for all; the longest wins.
        node_ttl_s: of nodes, addresses, reverse names and the domain's own records.
        negative_ttl_s: how long others may remember that something is not there.
        only_passing: leave out instances at warning, too.
        udp_bytes_max: no answer over UDP is larger, whatever its asker can take; askers on loopback get what they ask.
        recursors: "ip" or "ip:port" of servers that are asked for all other names; none: those are refused.
    """

    domains: tuple[str, ...] = (DOMAIN,)
    service_ttl_s: dict[str, int] = {}
    node_ttl_s: int = 0
    negative_ttl_s: int = 0
    only_passing: bool = False
    udp_bytes_max: int = UDP_BYTES
    recursors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.domains:
            raise InvalidArgument("no domain; allowed: one at least", field="domains")
        for domain in self.domains:
            if len(domain) > _DOMAIN_CHARS_MAX or not _DOMAIN.fullmatch(domain):
                raise InvalidArgument(
                    f"domain {domain!r}; allowed: labels of lower-case letters, digits, - and _, dots between, "
                    f"at most {_DOMAIN_CHARS_MAX} characters",
                    field="domains",
                )
        ttls = {**self.service_ttl_s, "nodes": self.node_ttl_s, "what is not there": self.negative_ttl_s}
        for what, ttl_s in ttls.items():
            if not 0 <= ttl_s <= TTL_S_MAX:
                raise InvalidArgument(f"the TTL of {what} is {ttl_s}; allowed: 0 to {TTL_S_MAX} seconds", field="ttl_s")
        for pattern in self.service_ttl_s:
            if "*" in pattern[:-1]:
                raise InvalidArgument(f"TTL of {pattern!r}; allowed: a name, a beginning and *, or *", field="ttl_s")
        if not 512 <= self.udp_bytes_max <= 65_535:
            raise InvalidArgument(
                f"udp_bytes_max is {self.udp_bytes_max}; allowed: 512 to 65535", field="udp_bytes_max"
            )
        for recursor in self.recursors:
            recursor_address(recursor)

    def ttl_s_of(self, service: str) -> int:
        """The TTL of a service's records."""
        exact = self.service_ttl_s.get(service)
        if exact is not None:
            return exact
        beginnings = [one for one in self.service_ttl_s if one.endswith("*") and service.startswith(one[:-1])]
        return self.service_ttl_s[max(beginnings, key=len)] if beginnings else 0


def recursor_address(text: str) -> tuple[str, int]:
    """The address and port of a recursor; port 53 unless it says another.

    Raises:
        InvalidArgument: it is neither "ip", "ip:port" nor "[ip6]:port".
    """
    bare, port = text, "53"
    if text.startswith("[") or text.count(":") == 1:
        bare, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(bare.strip("[]"))
    except ValueError:
        address = None
    if address is None or not is_port(port):
        raise InvalidArgument(f"recursor {text!r}; allowed: ip, ip:port or [ip]:port", field="recursors")
    return str(address), int(port)
