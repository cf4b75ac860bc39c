"""Listening sockets as things of their own: bound before anyone accepts from them, and handed to other processes.

A listening socket lives for as long as some process holds it, with the connections that wait in its backlog. That is
what workers that are replaced and sidecars that are taken over rest on.
"""

from __future__ import annotations

import os
import socket
from typing import Final

BACKLOG: Final = 1024  # connections that wait to be accepted; a replaced worker needs a second to be there again


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; port 0 means any free one.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not an address; allowed: host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_of(listening: socket.socket) -> str:
    """The `host:port` that it is bound to."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_bound_to(listening: socket.socket, address: str) -> bool:
    """Whether it is what binding that address would give, or with port 0, could give."""
    host, port = parse_address(address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    at = listening.getsockname()
    return bool(at[0] == found[0] and port in (0, at[1]))


def bind(address: str, count: int = 1) -> list[socket.socket]:
    """Bind and listen; with a `count` over 1, so many sockets on one port, among which the kernel spreads connections.

    Raises:
        OSError: the address is taken, also by somebody who would share it: sharing is among the sockets returned here.
    """
    host, port = parse_address(address)
    family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    first = _bound(family, found, shared=False)  # fails if anybody has the port, however willing to share
    if count == 1:
        return _listening([first])
    at = (found[0], first.getsockname()[1], *found[2:])
    first.close()
    made: list[socket.socket] = []
    try:
        while len(made) < count:
            made.append(_bound(family, at, shared=True))
    except OSError:
        for each in made:
            each.close()
        raise
    return _listening(made)


def _bound(family: int, at: tuple[object, ...], *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # there it is about connections that linger; elsewhere about stealing ports
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(at)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"{at[0]}:{at[1]}: {error.strerror}") from None
    made.setblocking(False)
    return made


def _listening(made: list[socket.socket]) -> list[socket.socket]:
    for each in made:
        each.listen(BACKLOG)
    return made


def dealt(made: list[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Deal sockets to workers so that nobody goes without and none is left over; some are shared if there are few.

    One left over would be the worst: the kernel goes on giving it connections that nobody accepts.
    """
    if len(made) >= workers:
        return [made[worker::workers] for worker in range(workers)]
    return [[made[worker % len(made)]] for worker in range(workers)]
