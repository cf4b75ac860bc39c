"""The application behind each instance: a small HTTP/1.1 server that answers as it is asked to, also badly.

The target says how: `/<number>/<manner>/<bytes>/<milliseconds>`. Every delivery is written down, so the manner of a
retry's second delivery may be good where the first was bad.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from homeport.mesh.simulation.requests import body_of
from homeport.mesh.testing.streams import MemoryTransport

if TYPE_CHECKING:
    from homeport.mesh.simulation.world import World

GOOD: Final = ("length", "chunked", "until-close")
BAD: Final = ("reset-first", "reset", "short", "chunk-cut", "until-reset", "busy", "hang")
MANNERS: Final = GOOD + BAD


class App(asyncio.Protocol):
    """One connection of an instance's server."""

    def __init__(self, world: World, instance: str) -> None:
        self._world = world
        self._instance = instance
        self._transport: MemoryTransport | None = None
        self._buffer = b""
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("MemoryTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if self._answering or not found:
            return
        line, *headers = head.split(b"\r\n")
        method, target, _ = line.decode().split(" ")
        size = 0
        for header in headers:
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
            assert name.lower() != b"transfer-encoding", "callers of the simulation send lengths"
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        self._answering = True
        self._serve(method, target, rest[:size])

    def _serve(self, method: str, target: str, body: bytes) -> None:
        number, manner, size, delay_ms = target.strip("/").split("/")
        self._world.requests.delivered(int(number), self._instance, method, body)
        self._world.loop.call_later(int(delay_ms) / 1000, self._answer, int(number), manner, int(size))

    def _answer(self, number: int, manner: str, size: int) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        body = body_of(number, size)
        half = body[: len(body) // 2]
        length = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
        chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
        match manner:
            case "length":
                transport.write(length + body)
            case "chunked":
                chunks = [body[at : at + 700] for at in range(0, size, 700)]
                transport.write(chunked + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n")
            case "until-close":
                transport.write(closing + body)
                transport.close()
            case "busy":
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
            case "hang":  # and never the rest
                transport.write(length + half)
            case "short":
                transport.write(length + half)
                transport.close()
            case "chunk-cut":
                transport.write(chunked + b"%x\r\n%b\r\n" % (len(half), half) if half else chunked)
                transport.close()
            case "reset-first":
                transport.break_off()
            case "reset":
                transport.tear_after(len(length) + len(half))
                transport.write(length + body)
            case "until-reset":
                transport.tear_after(len(closing) + len(half))
                transport.write(closing + body)
        self._answering = False
        self._next()
