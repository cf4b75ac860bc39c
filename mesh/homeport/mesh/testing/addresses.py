"""What an IP address says of itself: family, loopback, wildcard, and the tuples that sockets make of it."""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Any


@functools.lru_cache(maxsize=4096)  # of a network, its hosts; parsing is slow
def is_loopback(ip: str) -> bool:
    """Whether it means the host that says it."""
    return ipaddress.ip_address(ip).is_loopback


def is_wildcard(ip: str) -> bool:
    """Whether it stands for all addresses of a host."""
    return ip in ("0.0.0.0", "::")


def wildcard(ip: str) -> str:
    """The wildcard of its family."""
    return "::" if ":" in ip else "0.0.0.0"


def family(ip: str) -> socket.AddressFamily:
    """Its address family."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def sockname(ip: str, port: int) -> tuple[Any, ...]:
    """What `getsockname` says: `(ip, port)`, with two zeros more for IPv6."""
    return (ip, port, 0, 0) if ":" in ip else (ip, port)
