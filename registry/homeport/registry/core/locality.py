"""What only those can look at that are on one machine, and which machine that is.

A loopback address means another machine to each that looks. Where replicas share a store, a registration that has one
says on whose machine it was taken, in its `extra`; nobody elsewhere looks at it.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final

import msgspec

from homeport.client.core.model import Instance

_HOST: Final = "registry host"  # in `extra`
_MARKS: Final = re.compile(r"localhost|127\.|::1|0:1", re.IGNORECASE)  # most targets need no closer look


def is_local(instance: Instance) -> bool:
    """Whether any of an instance's checks, or its address, means another machine, or process, to each that looks."""
    if any(check.kind == "call" for check in instance.checks):
        return True
    if not instance.checks:
        return _is_loopback(instance.address)
    targets = [one.url.partition("//")[2] or one.address for one in instance.checks if one.kind not in ("ttl", "alias")]
    return any(map(_is_loopback, targets or [instance.address]))


def _is_loopback(target: str) -> bool:
    """Of "host", "host:port" or "host:port/path"; an IPv6 address with a port is in brackets."""
    if _MARKS.search(target) is None:
        return False
    host = target.lower().partition("/")[0]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_of(instance: Instance) -> str:
    """The machine on which a registration was taken, if only those on it can look; else empty."""
    host = instance.extra.get(_HOST)
    return host.decode(errors="replace") if host is not None and is_local(instance) else ""


def taken_on(instance: Instance, host: str) -> Instance:
    """The registration as it is taken on this machine: one that says already where it was taken stays as it is."""
    if not host or _HOST in instance.extra or not is_local(instance):
        return instance
    return msgspec.structs.replace(instance, extra={**instance.extra, _HOST: host.encode()})


def as_asked(instance: Instance) -> Instance:
    """The registration as it was asked for, wherever it was taken."""
    if _HOST not in instance.extra:
        return instance
    rest = {front: data for front, data in instance.extra.items() if front != _HOST}
    return msgspec.structs.replace(instance, extra=rest)
