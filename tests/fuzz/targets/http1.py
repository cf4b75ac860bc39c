"""The proxy between two ends of bytes, without sockets, time or chance: what the HTTP/1 targets share.

The loop runs what is due until nothing is, so a case is a plain function call. Messages are read back by a splitter
that shares no code with the proxy's, and knows one way only to read each message: the standard's.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound

LONG_S = 1e6  # past every timeout


class Message(NamedTuple):
    """What a message says; `body` is None where it has not ended."""

    first: bytes
    body: bytes | None
    framed: bool = True  # False: the end of the connection is its end


def requests(data: bytes) -> list[Message]:
    """The requests in what a client sends, up to the first thing that is none."""
    found: list[Message] = []
    while data := data.lstrip(b"\r\n"):
        head, end, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        fields = _fields(lines)
        if not end or fields is None or len(first.split(b" ")) != 3:
            break
        length, codings = fields.get(b"content-length"), fields.get(b"transfer-encoding")
        body: bytes | None
        if length and codings:
            break
        if codings:
            if [coding.lower() for coding in codings] != [b"chunked"]:
                break
            body, rest = _chunks(rest)
        elif length:
            if len(length) != 1 or not length[0].isdigit():
                break
            size = int(length[0])
            body, rest = (rest[:size] if len(rest) >= size else None), rest[size:]
        else:
            body = b""
        found.append(Message(first, body))
        if body is None:
            break
        data = rest
    return found


def answers(data: bytes, methods: list[bytes]) -> list[Message]:
    """The final answers in what a client of these requests gets."""
    found: list[Message] = []
    while data and methods:
        head, end, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        fields = _fields(lines)
        assert end, f"half a head: {data[:80]!r}"
        assert fields is not None, f"a line that is no field: {head!r}"
        assert first.startswith(b"HTTP/1.1 "), first
        status = int(first[9:12])
        data = rest
        if 100 <= status < 200 and status != 101:
            continue
        method = methods.pop(0)
        framed = True
        body: bytes | None = b""
        length, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
        assert len(length) + len(codings) <= 1, f"more than one framing: {head!r}"
        if status == 101 or method == b"HEAD" or status in (204, 304):
            pass
        elif codings:
            body, data = _chunks(data)
        elif length:
            size = int(length[0])
            body, data = (data[:size] if len(data) >= size else None), data[size:]
        else:
            framed, body, data = False, data, b""
        found.append(Message(first, body, framed))
        if status == 101:
            return found
    assert not data, f"more than was asked for: {data[:80]!r}"
    return found


def _fields(lines: list[bytes]) -> dict[bytes, list[bytes]] | None:
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        fields.setdefault(name.lower(), []).append(value.strip())
    return fields


def _chunks(data: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            return None, b""
        if not end:
            return None, b""
        if not size:
            break
        if data[size : size + 2] != b"\r\n":
            return None, b""
        body, data = body + data[:size], data[size + 2 :]
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None, b""
        if not line:
            return body, data


class Wire(asyncio.Transport):
    """One end of a connection: what was written to it is in `sent`."""

    def __init__(self, loop: Loop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.sent = bytearray()
        self.heard: Callable[[], None] = lambda: None  # called when something was written
        self.ended = self.aborted = self.reading = False
        self.lost = self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5)}.get(name, default)  # no socket, like every network in memory

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.ended, "write after write_eof"
        if not self.closing:
            self.sent += data
            self.loop.call_soon(self.heard)

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.lose)

    def abort(self) -> None:
        self.aborted = self.aborted or not self.closing
        self.close()

    def lose(self) -> None:
        """The connection is gone."""
        self.closing = True
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(None)

    def feed(self, data: bytes) -> None:
        """The other end has sent this."""
        if not self.closing and data:
            self.protocol.data_received(data)

    def feed_eof(self) -> None:
        """The other end sends no more."""
        if not self.closing and not self.protocol.eof_received():
            self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Loop:
    """As much of a loop as the data path uses."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ready: deque[Callable[[], object]] = deque()
        self.upstreams: list[Wire] = []
        self.connected: Callable[[Wire], None] = lambda _wire: None

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.ready.append(lambda: callback(*args))

    def create_task(self, work: Coroutine[Any, Any, None]) -> Loop:
        self.call_soon(self._run, work)
        return self

    def cancel(self) -> None:
        """As its own tasks: they end in the turn that they begin in."""

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            work.send(None)
        except StopIteration:
            return
        raise AssertionError("a task waits")

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], *_address: object, **_options: object
    ) -> tuple[Wire, asyncio.Protocol]:
        protocol = factory()
        wire = Wire(self, protocol)
        self.upstreams.append(wire)
        self.connected(wire)
        protocol.connection_made(wire)
        return wire, protocol

    def settle(self) -> None:
        """Run until nothing is due."""
        for _ in range(1_000_000):
            if not self.ready:
                return
            self.ready.popleft()()
        raise AssertionError("the loop never comes to rest")


class Proxy:
    """An outbound listener with one client and one service, `orders`."""

    def __init__(self) -> None:
        self.loop = Loop()
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.listener = Outbound(loop, random.Random(0), "fuzzed", None, Options(static={"orders": ["192.0.2.7:80"]}))
        downstream = Downstream(self.listener)
        self.client = Wire(self.loop, downstream)
        downstream.connection_made(self.client)

    def end(self) -> None:
        """Both ends are silent for ever: nothing may be left of anything."""
        self.loop.settle()
        for _ in range(10):
            self.loop.now_s += LONG_S
            self.listener.sweep(self.loop.now_s)
            self.loop.settle()
        assert self.client.lost, "the client's connection has outlived every timeout"
        assert not self.listener.connections
        assert self.listener.active == 0, "an exchange is left"
        (endpoint,) = self.listener.clusters["orders"].endpoints.values()
        assert endpoint.active == 0, "a try is left"
        assert not endpoint.idle, "an idle connection is left"
        assert all(wire.lost for wire in self.loop.upstreams), "an upstream's connection is left"
