"""gRPC connections that ask as fast as they are answered, for etcd: HTTP/2 frames made in advance.

Ordinary gRPC stacks for Python cost more per call than etcd does, and would be what is measured. This one writes
ready-made frames with only the stream's number put in, and reads just enough: an answer is a DATA frame, a call that
ends without one has failed (gRPC sends an error's status in trailers alone). The receive windows are opened as wide as
HTTP/2 allows; what is sent stays far below the server's initial 64 KiB, so that no window needs watching.
RFC 9113 has the frames, RFC 7541 the header block.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, cast

from benchmarks.load.meter import Meter

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS: Final = 0x4
_WINDOW_MAX: Final = 2**31 - 1
_WINDOW_DEFAULT: Final = 65_535
_WINDOW_AGAIN: Final = 2**30  # bytes received after which the connection's window is opened again
IN_FLIGHT_BYTES_MAX: Final = 32 * 1024  # half the server's window: it opens it again when a quarter is used


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return b"".join((len(payload).to_bytes(3, "big"), bytes((kind, flags)), stream.to_bytes(4, "big"), payload))


def message(protobuf: bytes) -> bytes:
    """A protobuf as gRPC sends it: not compressed, length in front."""
    return b"\x00" + len(protobuf).to_bytes(4, "big") + protobuf


def header_block(path: str, authority: str) -> bytes:
    """The header block of a gRPC call: every field literal and not indexed, so that it never depends on another."""

    def text(value: str) -> bytes:
        data = value.encode()
        assert len(data) < 127, "lengths of one byte only"
        return bytes((len(data),)) + data

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(path),  # :path
            b"\x01" + text(authority),  # :authority
            b"\x0f\x10" + text("application/grpc"),  # content-type
            b"\x00" + text("te") + text("trailers"),
        )
    )


_OPENING: Final = b"".join(
    (
        _PREFACE,
        frame(
            _SETTINGS,
            0,
            0,
            b"".join(
                (
                    b"\x00\x01" + (0).to_bytes(4, "big"),  # no header table: nothing here decodes headers
                    b"\x00\x02" + (0).to_bytes(4, "big"),  # no push
                    b"\x00\x04" + _WINDOW_MAX.to_bytes(4, "big"),
                )
            ),
        ),
        frame(_WINDOW_UPDATE, 0, 0, (_WINDOW_MAX - _WINDOW_DEFAULT).to_bytes(4, "big")),
    )
)


class GrpcConnection(asyncio.Protocol):
    """An HTTP/2 connection; a subclass handles what its streams bring."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._tail = b""
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(_OPENING)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._tail:
            data = self._tail + data
        at, end = 0, len(data)
        while end - at >= 9:
            following = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if following > end:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == _DATA:
                self.data_frame(int.from_bytes(data[at + 5 : at + 9], "big"), data, at + 9, following)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    self.stream_ended(int.from_bytes(data[at + 5 : at + 9], "big"))
            else:
                self._control(kind, flags, data[at + 5 : at + 9], data[at + 9 : following])
            at = following
        self._tail = data[at:]
        if self._received > _WINDOW_AGAIN:
            self.transport.write(frame(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big")))
            self._received = 0
        self.all_received()

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self.transport.write(frame(_SETTINGS, _ACK, 0, b""))
            if not self.opened.done():
                self.opened.set_result(None)
        elif kind == _PING and not flags & _ACK:
            self.transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == _RST_STREAM:
            self.stream_ended(int.from_bytes(stream, "big"))
        elif kind == _GOAWAY:
            self.transport.close()

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        """A stream's bytes from `start` to `end` of `data`."""
        raise NotImplementedError

    def stream_ended(self, stream: int) -> None:
        """The server ended a stream, for whatever reason."""

    def all_received(self) -> None:
        """Everything that came in one go has been handed over."""

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the server closed the connection"))


# A whole call in three pieces: before, between and behind the two places where its stream's number stands.
UnaryCall = tuple[bytes, bytes, bytes]


class UnaryLane(GrpcConnection):
    """One connection of a closed loop, a stream for each call."""

    def __init__(self, meter: Meter[UnaryCall], depth: int) -> None:
        super().__init__()
        self._meter = meter
        self._depth = depth
        self._next_stream = 1
        self._sent_at: dict[int, float] = {}
        self._answered: set[int] = set()
        self._ended = 0

    def begin(self) -> None:
        """Send the first `depth` calls."""
        self._send(self._depth)

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        self._answered.add(stream)

    def stream_ended(self, stream: int) -> None:
        sent_at = self._sent_at.pop(stream, None)
        if sent_at is None:
            return
        error = b"" if stream in self._answered else b"the call ended without a message"
        self._answered.discard(stream)
        self._meter.answered(self._meter.now() - sent_at, error)
        self._ended += 1

    def all_received(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, 0
            self._send(ended)
            self._meter.turned()

    def _send(self, count: int) -> None:
        now = self._meter.now()
        out: list[bytes] = []
        for _ in range(count):
            call = self._meter.next_call()
            if call is None:
                break
            stream = self._next_stream.to_bytes(4, "big")
            before, between, behind = call
            out += (before, stream, between, stream, behind)
            self._sent_at[self._next_stream] = now
            self._next_stream += 2
        if out:
            self.transport.write(b"".join(out))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._meter.broke()


class StreamingLane(GrpcConnection):
    """One connection of a closed loop with one call on it, each message of which has an answer, in order."""

    def __init__(self, meter: Meter[bytes], depth: int, path: str, authority: str) -> None:
        super().__init__()
        self._meter = meter
        self._depth = depth
        self._opening = open_stream(path, authority)
        self._sent_at: deque[float] = deque()
        self._answers = 0

    def begin(self) -> None:
        """Open the call and send its first `depth` messages."""
        self.transport.write(self._opening)
        self._send(self._depth)

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        while start < end:  # messages never span frames here: they are far smaller than one
            start += 5 + int.from_bytes(data[start + 1 : start + 5], "big")
            self._answers += 1
            self._meter.answered(self._meter.now() - self._sent_at.popleft())

    def stream_ended(self, stream: int) -> None:
        self._meter.broke()

    def all_received(self) -> None:
        if self._answers:
            answers, self._answers = self._answers, 0
            self._send(answers)
            self._meter.turned()

    def _send(self, count: int) -> None:
        now = self._meter.now()
        out = []
        for _ in range(count):
            data = self._meter.next_call()
            if data is None:
                break
            out.append(data)
            self._sent_at.append(now)
        if out:
            self.transport.write(b"".join(out))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._meter.broke()


def unary_parts(path: str, authority: str, protobuf: bytes) -> UnaryCall:
    """A whole call, its stream's number still missing in both of its frames."""
    headers = frame(_HEADERS, _END_HEADERS, 0, header_block(path, authority))
    data = frame(_DATA, _END_STREAM, 0, message(protobuf))
    return headers[:5], headers[9:] + data[:5], data[9:]


def streaming_frame(protobuf: bytes) -> bytes:
    """The DATA frame of one message of a `StreamingLane`."""
    return frame(_DATA, 0, 1, message(protobuf))


def open_stream(path: str, authority: str) -> bytes:
    """The frame that opens the call of a `StreamingLane`, stream 1."""
    return frame(_HEADERS, _END_HEADERS, 1, header_block(path, authority))


def unary_call(path: str, authority: str, stream: int, protobuf: bytes) -> bytes:
    """A whole call, headers and message, on a stream of its own."""
    headers = frame(_HEADERS, _END_HEADERS, stream, header_block(path, authority))
    return headers + frame(_DATA, _END_STREAM, stream, message(protobuf))
