"""The server side of the proxy: one client's connection, which carries one exchange at a time.

Strategy: bytes are parsed only as far as the exchange under way needs them; what a pipelining client sends ahead stays
unparsed in a bounded buffer. All waiting is one number, `deadline_s`, which the listener's sweep compares with the
clock. A connection that is closed early lingers: closing a socket with unread bytes would reset it, and the client
might never see the answer that explains why.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from homeport.sidecar.core import limits
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.lines import Headers, Malformed

if TYPE_CHECKING:
    from homeport.sidecar.http1.listener import Listener

# Why reading is paused; it goes on when no reason is left.
PIPELINE, UPSTREAM, HELD, TURN = 1, 2, 4, 8

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_NEVER: Final = float("inf")


class Downstream(asyncio.Protocol):
    """One client's connection. `exchange` is the request under way, None between two."""

    __slots__ = (
        "_advancing", "_body", "_buffer", "_closing", "_eof", "_lingered", "_looked_at", "_pauses", "deadline_s",
        "exchange", "forwarding", "forwarding_to", "listener", "lost", "peer", "transport", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport
    parse = staticmethod(framing.parse_request)

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.exchange: Exchange | None = None
        self.deadline_s = _NEVER
        self.lost = False
        self.write_paused = False
        self.peer = b""
        self.forwarding = b""  # the header lines that the last plain request got,
        self.forwarding_to = b""  # which was for this host
        self._buffer = b""
        self._body: bodies.Body | None = None  # of the request under way, while incomplete
        self._pauses = 0
        self._advancing = False
        self._closing = False
        self._eof = False
        self._looked_at = 0  # bytes of a head that is not all here
        self._lingered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self.listener.limits.buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0].encode() if isinstance(peer, tuple) else b"unknown"
        self.deadline_s = self.listener.now() + self.listener.timeouts.keep_alive_s
        self.listener.connections[self] = None
        self.listener.connections_total += 1
        most = self.listener.limits.connections
        if len(self.listener.connections) > most:
            self.refuse(Refusal(503, "UO", f"more than {most} connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._buffer = b""
        self.listener.connection_ended(self)
        if self.exchange is not None:
            self.exchange.client_lost()

    def eof_received(self) -> bool:
        """A client may stop sending and still wait for its answer; a request cut short is over."""
        self._eof = True
        exchange = self.exchange
        if self._closing or (exchange is None and not self._buffer):
            return False
        if exchange is None and self.write_paused:
            return not self.tls  # what it has asked for already is answered when it reads
        if exchange is None:
            self.refuse(Refusal(400, "", "the connection ended within a request"))
            return not (self.lost or self.tls)
        if exchange.tunnel:
            exchange.client_ended_tunnel()
        elif self._body is not None:
            exchange.client_lost()
            self.transport.abort()
        return not self.tls

    @property
    def tls(self) -> bool:
        """Whether it is encrypted: TLS, as the loops have it, ends in both directions at once."""
        return self.transport.get_extra_info("ssl_object") is not None

    @property
    def held_bytes(self) -> int:
        """What is kept of requests that have not begun."""
        return len(self._buffer)

    @property
    def ended(self) -> bool:
        """Whether the client sends no more."""
        return self._eof

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            if self._closing:
                self._linger(data)
                return
            self._buffer = self._buffer + data if self._buffer else data
            if self.write_paused:  # a client that asks and does not read waits its turn
                self.pause_reading(PIPELINE)
            else:
                self._advance()
        elif self._body is not None:
            self._receive_body(exchange, self._body, data)
        elif exchange.tunnel and exchange.upstream is not None:
            exchange.tunnel_data(exchange.upstream.transport, data)
        else:
            self._buffer += data
            if len(self._buffer) > limits.PIPELINED_BYTES_MAX:
                self.pause_reading(PIPELINE)

    def _advance(self) -> None:
        """Begin the requests that are complete up to their head, one after the other."""
        if self._advancing:
            return  # an exchange that ended at once: the loop below goes on
        self._advancing = True
        try:
            while self._buffer and self.exchange is None and not (self._closing or self.write_paused):
                if not self._begin():
                    break
        except Malformed as error:
            self.refuse(Refusal(error.status, "", error.text))
        finally:
            self._advancing = False

    def _begin(self) -> bool:
        data = self._buffer
        if data[:1] in b"\r\n":
            data = self._buffer = self._skip_empty_lines(data)
        end = framing.head_end(data, self.listener.limits, request=True, seen=self._looked_at) if data else 0
        if not end:
            if data and self._eof:
                raise Malformed(400, "the connection ended within a request")
            if data and not self._looked_at:  # counted from the first byte: a drip does not buy time
                self.deadline_s = self.listener.now() + self.listener.timeouts.head_s
            self._looked_at = len(data) or self._looked_at  # an empty line, cut in its middle, does not either
            self.resume_reading(PIPELINE)
            return False
        self._looked_at = 0
        request = self.parse(data, end, self.listener.limits)
        data = data[end:]
        self._buffer = b""
        length = request.length
        trailers: Headers = []
        if 0 <= length <= len(data):  # the common case: all of it at once
            self._buffer = data[length:]
            piece, done = data[:length], True
        else:
            body = bodies.body_of(length, 400)
            piece, done = body.feed(data), body.done
            if done:
                self._buffer, trailers = body.rest, body.trailers
            elif self._eof:
                raise Malformed(400, "the connection ended within a request")
            else:
                self._body = body
                self.resume_reading(PIPELINE)
        exchange = self.exchange = Exchange(self, request)
        self.listener.active += 1
        exchange.begin(piece, done, trailers)
        return True

    def _skip_empty_lines(self, data: bytes) -> bytes:
        skipped = 0
        while data.startswith(b"\r\n", skipped) and skipped < 2 * limits.LEADING_CRLF_MAX:
            skipped += 2
        data = data[skipped:]
        if data[:1] == b"\n" or (data[:1] == b"\r" and data != b"\r"):
            raise Malformed(400, "this is not an HTTP/1 request")
        return data

    def _receive_body(self, exchange: Exchange, body: bodies.Body, data: bytes) -> None:
        try:
            piece = body.feed(data)
        except Malformed as error:
            exchange.client_malformed(Refusal(error.status, "", error.text))
            return
        if body.done:
            self._body = None
            self._buffer = body.rest
        exchange.request_piece(piece, body.done, body.trailers)

    def _linger(self, data: bytes) -> None:
        self._lingered += len(data)
        if self._lingered > limits.LINGER_BYTES_MAX:
            self.transport.abort()

    def take_buffer(self) -> bytes:
        """What the client sent ahead of an upgrade's answer: it belongs to the tunnel."""
        ahead, self._buffer = self._buffer, b""
        self.resume_reading(PIPELINE)
        return ahead

    def finished(self, keep: bool, now: float) -> None:
        """The exchange's answer is written. Go on with the next request, or close."""
        exchange = self.exchange
        if exchange is not None and exchange.seen is not None and self.listener.observer is not None:
            self.listener.observer.ended(exchange, exchange.seen)
        self.exchange = None
        self.listener.exchange_ended()
        if self._pauses:
            enough = len(self._buffer) > limits.PIPELINED_BYTES_MAX
            self.resume_reading(UPSTREAM | HELD if enough else PIPELINE | UPSTREAM | HELD)
        if self.lost:
            return
        if self._body is not None:
            self._body = None
            self.linger(now)
        elif not keep or (self._eof and not self._buffer):
            self.close(now)
        else:
            self.deadline_s = now + self.listener.timeouts.keep_alive_s
            if self._buffer:
                self._advance()

    def refuse(self, refusal: Refusal) -> None:
        """Answer by ourselves outside of any exchange, and close: nobody knows where the next request would begin."""
        if self.listener.observer is not None:
            self.listener.observer.refused(self, refusal)
        if not self.lost:
            self.send(self.listener.answer(refusal, keep=False, to_head=False))
            self.linger(self.listener.now())

    def linger(self, now: float) -> None:
        """Close after the client has had the time to read what was written; its own bytes are discarded meanwhile."""
        self._closing = True
        self._buffer = b""
        self.end_writing()
        if self._eof or self.tls:
            self.close(now)
        else:
            timeouts = self.listener.timeouts
            unsent = not self.lost and self.transport.get_write_buffer_size() > 0
            self.deadline_s = now + (timeouts.flush_s if unsent else timeouts.linger_s)

    def close(self, now: float) -> None:
        """Close when all is written, or at the latest when a client that does not read has had its time."""
        self._closing = True
        if not self.lost:
            self.listener.outbox.flush()
            self.deadline_s = now + self.listener.timeouts.flush_s
            self.transport.close()

    def truncate(self, *, delimited: bool) -> None:
        """Cut an answer short so that it cannot be taken for whole; one that only its end delimits needs a reset."""
        if delimited or self.lost:
            self.close(self.listener.now())
            return
        self._closing = True
        self.listener.outbox.flush()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:  # in memory, an abort is a reset anyway
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def send(self, data: bytes) -> None:
        """Write to the client, in order, before this turn of the loop is over."""
        self.listener.outbox.write(self.transport, data)

    def end_writing(self) -> None:
        """Send the end of our side after what is already written."""
        if not self.lost:
            self.listener.outbox.flush()
        if not self.lost and not self.transport.is_closing() and not self.tls:
            self.transport.write_eof()

    def expired(self, now: float) -> None:
        """`deadline_s` has passed."""
        self.deadline_s = _NEVER
        if self.exchange is not None:
            self.exchange.expired(now)
        elif self._closing:
            self.transport.abort()
        elif self._buffer and not self.write_paused:
            self.refuse(
                Refusal(408, "", f"the request's head was not complete after {self.listener.timeouts.head_s:g} s")
            )
        else:
            self.close(now)

    def pause_reading(self, reason: int) -> None:
        if not self._pauses and not self.lost:
            self.transport.pause_reading()
        self._pauses |= reason

    def wait_a_turn(self) -> None:
        """Read on only in the loop's next turn.

        An answer of our own takes no time, and libuv reads on for up to 48 rounds of 1024 connections before the loop
        runs anything else: a crowd that asks again at once would keep tasks and timers waiting for seconds.
        """
        if not self.lost:
            self.pause_reading(TURN)
            self.listener.loop.call_soon(self.resume_reading, TURN)

    def resume_reading(self, reason: int) -> None:
        paused = self._pauses
        self._pauses &= ~reason
        if paused and not self._pauses and not self.lost:
            self.transport.resume_reading()

    @property
    def waits_for_upstream(self) -> bool:
        """Whether it is the upstream that does not take the request's body."""
        return bool(self._pauses & UPSTREAM)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.client_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client_drained()
        elif self._buffer:
            self._advance()
