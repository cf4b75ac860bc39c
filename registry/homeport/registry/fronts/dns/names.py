"""What a name means: which part of the domain it is in, or whose address it is turned around. No state, no I/O."""

from __future__ import annotations

import ipaddress
from typing import Final, Literal

import msgspec

from homeport.registry.fronts.dns.directory import Address

Kind = Literal["apex", "service", "node", "query", "addr", "ns", "between", "unknown", "reverse", "foreign"]
Labels = tuple[bytes, ...]

KINDS: Final[dict[bytes, Kind]] = {b"service": "service", b"node": "node", b"query": "query", b"addr": "addr"}
_IN_ADDR: Final = (b"in-addr", b"arpa")
_IP6: Final = (b"ip6", b"arpa")


class Meaning(msgspec.Struct, frozen=True):
    """What a name is about.

    Attributes:
        kind: `between` is a name that has no records but names beneath it, `foreign` none of ours.
        names: the labels before the kind's own.
        domain: the domain it is under, None outside ours.
        address: of `reverse`.
    """

    kind: Kind
    names: Labels = ()
    domain: Labels | None = None
    address: Address | None = None


def meaning(labels: Labels, domains: tuple[Labels, ...], datacenter: bytes) -> Meaning:
    """What a name, lower-case and without the root, means under these domains, the longest first."""
    for domain in domains:
        if labels[-len(domain) :] == domain:
            return _ours(labels[: -len(domain)], domain, datacenter)
    if labels[-2:] in (_IN_ADDR, _IP6):
        address = _turned(labels)
        if address is not None:
            return Meaning("reverse", address=address)
    return Meaning("foreign")


def _ours(names: Labels, domain: Labels, datacenter: bytes) -> Meaning:
    """The name in a domain: `<names>.<kind>`, `<names>.<kind>.<datacenter>` or `<names>.<kind>.<datacenter>.dc`."""
    if not names:
        return Meaning("apex", domain=domain)
    if names == (b"ns",):
        return Meaning("ns", domain=domain)
    inner = names
    if inner[-1] == b"dc":
        inner = inner[:-1]
        if inner and inner[-1] != datacenter:
            return Meaning("unknown", domain=domain)
    if inner and inner[-1] == datacenter:
        inner = inner[:-1]
    if not inner:
        return Meaning("between", domain=domain)
    kind = KINDS.get(inner[-1])
    if kind is None:
        return Meaning("unknown", domain=domain)
    return Meaning(kind if len(inner) > 1 else "between", inner[:-1], domain)


def _turned(labels: Labels) -> Address | None:
    """The address that a reverse name stands for, None for a part of one."""
    digits = labels[:-2][::-1]
    if not all(label.isalnum() for label in digits):
        return None
    try:
        if labels[-2:] == _IN_ADDR:
            return ipaddress.IPv4Address(b".".join(digits).decode()) if len(digits) == 4 else None
        if len(digits) == 32 and all(len(digit) == 1 for digit in digits):
            return ipaddress.IPv6Address(int(b"".join(digits), 16))
    except ValueError:
        pass
    return None


def address_in(names: Labels) -> Address | None:
    """The address that `<hexadecimal digits>.addr` stands for."""
    if len(names) != 1 or len(names[0]) not in (8, 32) or not names[0].isalnum():
        return None
    try:
        number = int(names[0], 16)
    except ValueError:
        return None
    return ipaddress.IPv4Address(number) if len(names[0]) == 8 else ipaddress.IPv6Address(number)


def service_readings(names: Labels) -> list[tuple[bytes, bytes]]:
    """What `<names>.service` may ask for, as (service, tag), the likelier first; an empty tag is any.

    `_service._tag` is RFC 2782's form, in which the protocol tcp is no tag. Else the last label is the service and what
    stands before it a tag; but services, like tags, may have dots in their names.
    """
    if len(names) == 2 and names[0][:1] == names[1][:1] == b"_":
        tag = names[1][1:]
        return [(names[0][1:], b"" if tag == b"tcp" else tag)]
    return [(b".".join(names[-count:]), b".".join(names[:-count])) for count in range(1, len(names) + 1)]


def query_name(names: Labels) -> Labels:
    """The name of the prepared query in `<names>.query`, also as `_<name>._tcp`."""
    return (names[0][1:],) if len(names) == 2 and names[0][:1] == b"_" and names[1] == b"_tcp" else names
