"""Streams in memory: two transports, back to back, with the manners of TCP.

Each transport plays two roles, kept apart by the order of the file. The *process* side is the `asyncio.Transport` that
a protocol sees: it buffers writes, pauses protocols and calls them back. The *kernel* side holds what arrived but was
not read, and puts segments on the wire to its peer, where they arrive in order after drawn delays, cut at drawn
places. The kernel side never calls a protocol: it asks the loop to run the process side in the protocol's own context,
so a frozen host reads nothing while its kernel still acknowledges connections, just as a stopped process does.

Semantics follow asyncio on Linux: a close sends what is buffered and then FIN; closing with unread input, or writing
to a socket that the other side closed, earns a reset; `abort` forgets what is buffered; `connection_lost` comes exactly
once.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from homeport.mesh.testing.hosts import Host

if TYPE_CHECKING:
    from homeport.mesh.testing.network import Link, Network

WINDOW_BYTES = 64 * 1024
"""What may be under way or unread in one direction: far below a real kernel's, so that back-pressure is met early."""

READ_BYTES_MAX = 256 * 1024
"""The largest piece handed to `data_received`; asyncio's own number."""

HIGH_WATER_BYTES = 64 * 1024
"""Buffered bytes at which a protocol is told to pause writing; asyncio's own number."""

CUT_CHANCE = 0.25
"""How often a write arrives in several pieces: rare enough to stay cheap, common enough to find careless parsers."""

FIN, RST = "FIN", "RST"
Segment = bytes | int | str
"""What travels: bytes of the stream, a count of acknowledged bytes, FIN or RST."""


class MemoryTransport(asyncio.Transport):
    """One end of a stream in memory."""

    def __init__(
        self,
        network: Network,
        host: Host,
        link: Link,
        context: contextvars.Context,
        sockname: Any,
        peername: Any,
    ) -> None:
        super().__init__({"sockname": sockname, "peername": peername, "socket": None})
        self.network = network
        self.number: int = network.loop.draw_number()
        self.host = host
        self.peer: MemoryTransport = self  # until `join`
        self._loop = network.loop
        self._link = link
        self._context = context
        self._rng = random.Random(self._loop.rng.getrandbits(64))  # its own: draws must not depend on other streams
        # The process side.
        self._protocol: asyncio.BaseProtocol | None = None
        self._server: Any = None
        self._outbox = bytearray()
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False
        self._lost = False  # connection_lost is scheduled, or was called
        self._eof_written = False
        self._eof_told = False
        self._read_scheduled = False
        # The kernel side.
        self._wire: collections.deque[tuple[float, Segment]] = collections.deque()
        self._wire_ends = 0.0
        self._unacknowledged = 0
        self._inbox = bytearray()
        self._fin_sent = False
        self._fin_received = False
        self._reset_received = False
        self.released: bool = False  # the socket is closed
        self.stalled = False  # nothing on this wire arrives until it is healed
        self._torn_after: int | None = None  # bytes that still get through before it breaks
        network.streams[self] = None

    def __hash__(self) -> int:
        return self.number

    def join(self, peer: MemoryTransport) -> None:
        """Become the two ends of one stream."""
        self.peer, peer.peer = peer, self

    def ports(self) -> list[int]:
        """The ports of both ends; none for a Unix socket."""
        names = (self.get_extra_info("sockname"), self.get_extra_info("peername"))
        return [name[1] for name in names if isinstance(name, tuple)]

    def open(self, protocol: asyncio.BaseProtocol, server: Any = None) -> asyncio.Future[None]:
        """Hand the stream to its protocol. The future is done when `connection_made` was called."""
        self._protocol = protocol
        self._server = server
        opened: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._opened, opened, context=self._context)
        return opened

    def _opened(self, opened: asyncio.Future[None]) -> None:
        assert self._protocol is not None
        try:
            self._protocol.connection_made(self)
        finally:
            if not opened.done():
                opened.set_result(None)
            self._schedule_read()

    # --- the process side: what asyncio promises of a transport

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._closing and not self._reading_paused

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._schedule_read()

    def get_write_buffer_size(self) -> int:
        return len(self._outbox)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._pause_or_resume_protocol()

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._lost:
            return
        if self._reset_received:
            self._fatal(self._reset_error())
            return
        self._outbox += data
        self._send()
        self._pause_or_resume_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self._closing or self._eof_written:
            return
        self._eof_written = True
        if not self._outbox:
            self._send_fin()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._outbox:
            self._lose(None)

    def abort(self) -> None:
        self._force_close(None)

    def _pause_or_resume_protocol(self) -> None:
        size = len(self._outbox)
        if self._protocol is None:
            return
        if size > self._high and not self._writing_paused:
            self._writing_paused = True
            self._tell(self._protocol.pause_writing)
        elif size <= self._low and self._writing_paused:
            self._writing_paused = False
            self._tell(self._protocol.resume_writing)

    def _tell(self, callback: Any) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - a protocol's error goes to the loop's handler, as asyncio has it
            self._report(error, f"protocol.{callback.__name__}() failed")

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _schedule_read(self) -> None:
        if not self._read_scheduled and self._protocol is not None:
            self._read_scheduled = True
            self._loop.call_soon(self._read, context=self._context)

    def _read(self) -> None:
        self._read_scheduled = False
        if self._lost:
            return
        if self._reset_received and self._outbox:
            self._fatal(self._reset_error())
        elif self._closing or self._reading_paused or self._eof_told:
            return
        elif self._inbox:
            self._hand_over()
        elif self._reset_received:
            self._fatal(self._reset_error())
        elif self._fin_received:
            self._tell_eof()

    def _hand_over(self) -> None:
        protocol = self._protocol
        try:
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = memoryview(protocol.get_buffer(-1)).cast("B")
                if not len(buffer):
                    raise RuntimeError("get_buffer() returned an empty buffer")
                size = min(len(buffer), len(self._inbox))
                buffer[:size] = self._inbox[:size]
                self._take_from_inbox(size)
                protocol.buffer_updated(size)
            else:
                data = bytes(self._inbox[:READ_BYTES_MAX])
                self._take_from_inbox(len(data))
                cast("asyncio.Protocol", protocol).data_received(data)
        except Exception as error:  # noqa: BLE001 - a protocol's error ends its connection, as asyncio has it
            self._fatal(error, "Fatal error: the protocol failed on received data.")
        if self._inbox or self._fin_received or self._reset_received:
            self._schedule_read()

    def _tell_eof(self) -> None:
        self._eof_told = True
        try:
            keep_open = cast("asyncio.Protocol", self._protocol).eof_received()
        except Exception as error:  # noqa: BLE001 - as above
            self._fatal(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    def _reset_error(self) -> OSError:
        if self._fin_received:
            return BrokenPipeError(32, "Broken pipe")
        return ConnectionResetError(104, "Connection reset by peer")

    def _fatal(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if not isinstance(error, OSError):
            self._report(error, message)
        self._force_close(error)

    def _force_close(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._closing = True
        self._outbox.clear()
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._lost = True
        self._loop.call_soon(self._connection_lost, error, context=self._context)

    def _connection_lost(self, error: BaseException | None) -> None:
        protocol, self._protocol = self._protocol, None
        try:
            if protocol is not None:
                protocol.connection_lost(error if error is None or isinstance(error, Exception) else None)
        finally:
            self.release()
            if self._server is not None:
                self._server.detach(self)

    def _written(self) -> None:
        """The window opened: send more, tell the protocol, and finish what waited for the buffer to empty."""
        if self._lost:
            return
        self._send()
        self._pause_or_resume_protocol()
        if self._outbox or self._lost:
            return
        if self._closing:
            self._lose(None)
        elif self._eof_written:
            self._send_fin()

    def _send(self) -> None:
        size = min(len(self._outbox), WINDOW_BYTES - self._unacknowledged)
        if size <= 0:
            return
        data = bytes(self._outbox[:size])
        del self._outbox[:size]
        self._unacknowledged += size
        if self._torn_after is not None:
            if size >= self._torn_after:
                self._post(data[: self._torn_after])
                self.break_off()
                return
            self._torn_after -= size
        while len(data) > 1 and self._rng.random() < CUT_CHANCE:
            cut = self._rng.randrange(1, len(data))
            self._post(data[:cut])
            data = data[cut:]
        self._post(data)

    def _send_fin(self) -> None:
        if not self._fin_sent:
            self._fin_sent = True
            self._post(FIN)

    # --- the kernel side

    def _take_from_inbox(self, size: int) -> None:
        del self._inbox[:size]
        self._post(size)

    def _post(self, segment: Segment) -> None:
        """Put a segment on the wire. Wires keep their order: who draws an earlier time than its forerunner joins it."""
        now = self._loop.time()
        self._wire_ends = max(self._wire_ends, now + self._loop.draw_delay(*self._link.latency_s, self._rng))
        self._wire.append((self._wire_ends, segment))
        self.network.streams[self] = None
        self._loop.arrive_at(self._wire_ends, self.deliver)

    def deliver(self) -> None:
        """Bring what is due to the other end, unless the link is down."""
        if self.stalled or self.network.is_blocked(self.host.address, self.peer.host.address):
            return
        now = self._loop.time()
        while self._wire and self._wire[0][0] <= now:
            self.peer._arrive(self._wire.popleft()[1])
        if self.released and not self._wire:
            self.network.streams.pop(self, None)

    def _arrive(self, segment: Segment) -> None:
        if isinstance(segment, int):
            self._unacknowledged -= segment
            if self._outbox:
                self._loop.call_soon(self._written, context=self._context)
        elif segment is RST:
            self.be_reset()
        elif self.released:
            if segment is not FIN:
                self._post(RST)
        else:
            if segment is FIN:
                self._fin_received = True
            else:
                self._inbox += cast("bytes", segment)
            self._schedule_read()

    def be_reset(self) -> None:
        """The other end is gone: what arrived can be read, nothing can be written."""
        if not self.released:
            self._reset_received = True
            self._wire.clear()
            self._schedule_read()

    def release(self) -> None:
        """Close the socket, as the kernel does for a process: unread input is answered with a reset, else with FIN."""
        if self.released:
            return
        self.released = True
        if not self._reset_received:
            if self._inbox:
                self._post(RST)
            else:
                self._send_fin()
        self._inbox.clear()
        if not self._wire:
            self.network.streams.pop(self, None)

    def tear_after(self, size: int) -> None:
        """Break off in the middle of what is sent next: so many more bytes arrive, and then a reset."""
        self._torn_after = size

    def break_off(self) -> None:
        """Reset the stream at both ends; what is under way to the other end still arrives there before."""
        if not self.released and not self._reset_received:
            self._torn_after = None
            self._post(RST)
            self._reset_received = True
            self._schedule_read()

    def kill(self) -> None:
        """The process is gone: its kernel closes the socket, and no protocol is told anything any more."""
        self._lost = self._closing = True
        self._protocol = None
        self.release()

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<MemoryTransport {self._extra.get('sockname')} -> {self._extra.get('peername')} {state}>"  # type: ignore[attr-defined]
