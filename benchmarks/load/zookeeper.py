"""ZooKeeper's client protocol, as much of it as a benchmark asks: a session, and a few calls on nodes.

Frames are a length and that many bytes; a call carries an xid, by which its answer is told.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final, cast

from benchmarks.load.meter import Meter

_CREATE: Final = 1
_DELETE: Final = 2
_EXISTS: Final = 3
_GET_DATA: Final = 4
_SET_DATA: Final = 5
_PING: Final = 11
_PING_XID: Final = -2
EVENT: Final = -1  # the xid of what a watch tells
_EPHEMERAL: Final = 1
_ANY_VERSION: Final = -1
_WORLD: Final = struct.pack(">ii", 1, 31) + struct.pack(">i5s", 5, b"world") + struct.pack(">i6s", 6, b"anyone")
_LENGTH: Final = struct.Struct(">i")
_ANSWER: Final = struct.Struct(">iqi")  # xid, zxid, error


def _buffer(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def connect(session_s: float) -> bytes:
    """What opens a session, as it goes on the wire; without pings it ends after `session_s`, as the server allows."""
    return _buffer(struct.pack(">iqiq", 0, 0, round(session_s * 1000), 0) + struct.pack(">i", 16) + bytes(16))


HELLO: Final = connect(30.0)


def framed(xid: int, body: bytes) -> bytes:
    """A call as it goes on the wire."""
    return _LENGTH.pack(4 + len(body)) + _LENGTH.pack(xid) + body


def ping() -> bytes:
    """What keeps a session, as it goes on the wire."""
    return framed(_PING_XID, _LENGTH.pack(_PING))


def exists(path: str) -> bytes:
    """A call without its frame and xid: whether there is such a node, and a watch of what becomes of it."""
    return _LENGTH.pack(_EXISTS) + _buffer(path.encode()) + b"\1"


def create(path: str, data: bytes, *, ephemeral: bool = False) -> bytes:
    """A call without its frame and xid: a node that anyone may change; ephemeral: it ends with its session."""
    flags = _LENGTH.pack(_EPHEMERAL if ephemeral else 0)
    return _LENGTH.pack(_CREATE) + _buffer(path.encode()) + _buffer(data) + _WORLD + flags


def delete(path: str) -> bytes:
    """A call without its frame and xid: the node goes, whatever its version."""
    return _LENGTH.pack(_DELETE) + _buffer(path.encode()) + _LENGTH.pack(_ANY_VERSION)


def set_data(path: str, data: bytes) -> bytes:
    """A call without its frame and xid: a new value, whatever the version."""
    return _LENGTH.pack(_SET_DATA) + _buffer(path.encode()) + _buffer(data) + _LENGTH.pack(_ANY_VERSION)


def get_data(path: str) -> bytes:
    """A call without its frame and xid: the node's value, and no watch."""
    return _LENGTH.pack(_GET_DATA) + _buffer(path.encode()) + b"\0"


class ZooKeeperLane(asyncio.Protocol):
    """One session of a closed loop; an xid names a slot."""

    def __init__(self, meter: Meter[bytes], depth: int) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._meter = meter
        self._sent_at = [0.0] * depth
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(HELLO)

    def begin(self) -> None:
        """Send the first `depth` calls."""
        self._send(list(range(len(self._sent_at))))

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        at, slots = 0, []
        meter = self._meter
        now = meter.now()
        while len(received) - at >= 4:
            (size,) = _LENGTH.unpack_from(received, at)
            if len(received) - at - 4 < size:
                break
            if self.opened.done():
                slot, _, error = _ANSWER.unpack_from(received, at + 4)
                meter.answered(now - self._sent_at[slot], b"error %d" % error if error else b"")
                slots.append(slot)
            else:
                self.opened.set_result(None)
            at += 4 + size
        self._received = received[at:]
        if slots:
            self._send(slots)
            meter.turned()

    def _send(self, slots: list[int]) -> None:
        now = self._meter.now()
        out: list[bytes] = []
        for slot in slots:
            body = self._meter.next_call()
            if body is None:
                break
            self._sent_at[slot] = now
            out += (_LENGTH.pack(4 + len(body)), _LENGTH.pack(slot), body)
        if out:
            self.transport.write(b"".join(out))

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the server closed the connection"))
        self._meter.broke()
