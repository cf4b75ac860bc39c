"""The client side of the proxy: one connection to an endpoint, lent to one exchange at a time.

Strategy: a connection is idle (in its endpoint's pool), lent (an exchange has it), or a tunnel. Bytes become response
heads and decoded body pieces here and go straight to the exchange by method calls. An idle connection that says
anything is closed, since it could only be an answer that nobody asked for.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from homeport.sidecar.core import cluster, limits
from homeport.sidecar.core import endpoint as endpoints
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.lines import Malformed
from homeport.sidecar.tls import said_goodbye

if TYPE_CHECKING:
    from homeport.sidecar.http1.attempt import Attempt

Endpoint: TypeAlias = "endpoints.Endpoint[Upstream]"
Cluster: TypeAlias = "cluster.Cluster[Upstream]"

_SWITCHING: Final = 101


class Upstream(asyncio.Protocol):
    """One connection to an endpoint. `exchange` is whom it works for, None while idle or closed."""

    __slots__ = (
        "_body", "_buffer", "_ended", "_interims", "_limits", "_paused", "endpoint", "exchange", "idle_since_s", "lost",
        "reused", "transport", "tunnel", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, endpoint: Endpoint, bounds: limits.Limits) -> None:
        self._limits = bounds
        self.endpoint = endpoint
        self.exchange: Attempt | None = None
        self.idle_since_s = 0.0
        self.reused = False
        self.lost = False
        self.tunnel = False
        self.write_paused = False
        self._paused = False
        self._buffer = b""  # an incomplete head
        self._body: bodies.Body | None = None
        self._interims = 0
        self._ended = False  # the other end has said that it sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self._limits.buffer_bytes)
        if self.endpoint.circuit is not None:
            self.endpoint.circuit.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.endpoint.circuit is not None:
            self.endpoint.circuit.closed()
        exchange = self.exchange
        if exchange is None:
            self.endpoint.forget(self)
            return
        if exc is None and self._ended and isinstance(self._body, bodies.CloseBody):
            self._body = None
            exchange.response_piece(b"", True, [])
            return
        exchange.upstream_lost()

    def eof_received(self) -> bool:
        """Pass a half-close on in a tunnel; otherwise the connection is of no more use."""
        if self.transport.is_closing():  # by us: asyncio's TLS says so all the same, and cannot be asked any more
            return False
        tls = self.transport.get_extra_info("ssl_object")
        self._ended = tls is None or said_goodbye(tls)
        if self.tunnel and self.exchange is not None:
            self.exchange.upstream_ended_tunnel(self)
            return not self.tls
        return False

    @property
    def tls(self) -> bool:
        """Whether it is encrypted: TLS, as the loops have it, ends in both directions at once."""
        return self.transport.get_extra_info("ssl_object") is not None

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        if self.tunnel:
            exchange.tunnel_data(exchange.downstream.transport, data)
            return
        try:
            if self._body is None:
                self._receive_head(exchange, data)
            else:
                self._receive_body(exchange, self._body, data)
        except Malformed as error:
            exchange.upstream_malformed(error)

    def _receive_head(self, exchange: Attempt, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        while True:
            end = framing.head_end(data, self._limits, request=False)
            if not end:
                self._buffer = data
                return
            head = framing.parse_response(data, end, self._limits, to_head=exchange.request.method == b"HEAD")
            data = data[end:]
            if head.status >= 200:
                break
            if head.status == _SWITCHING:
                self._buffer = b""
                exchange.switched(head, data)
                return
            self._interims += 1
            if self._interims > limits.INTERIM_MAX:
                raise Malformed(502, f"more than {limits.INTERIM_MAX} interim answers")
            exchange.interim(head)
        self._buffer = b""
        length = 0 if head.bodiless else head.length
        if 0 <= length <= len(data):  # the common case: all of it at once
            if len(data) > length:
                head.keep_alive = False  # somebody talks out of turn
                data = data[:length]
            exchange.response(head, data, True, [])
            return
        body = self._body = bodies.body_of(length, 502)
        piece = body.feed(data)
        if body.done:
            self._body = None
            head.keep_alive = head.keep_alive and not body.rest
        exchange.response(head, piece, body.done, body.trailers)

    def _receive_body(self, exchange: Attempt, body: bodies.Body, data: bytes) -> None:
        piece = body.feed(data)
        if body.done:
            self._body = None
            if body.rest:
                exchange.reusable = False
        exchange.response_piece(piece, body.done, body.trailers)

    @property
    def silent(self) -> bool:
        """Whether no byte has come of the answer that is waited for."""
        return not self._buffer and self._body is None and not self._interims

    def is_surely_open(self, now: float) -> bool:
        """Whether an idle connection may carry a request that cannot be sent again.

        It must not have been idle for long, and the kernel must not know of anything from the other end: all that can
        come while nothing was asked is its end, which the loop may hear of only after this request.
        """
        if now - self.idle_since_s > limits.POOL_IDLE_ONCE_S:
            return False
        under = self.transport.get_extra_info("socket")
        if under is None or not hasattr(select, "poll"):  # in memory, or Windows
            return True
        ready = select.poll()
        ready.register(under.fileno(), select.POLLIN)
        return not ready.poll(0)

    def lend(self, exchange: Attempt, head: bytes, body: bytes) -> None:
        """Give the connection to an exchange and send its request, or as much of it as there is."""
        self.exchange = exchange
        self._interims = 0
        exchange.listener.outbox.write_message(self.transport, head, body)

    def release(self, now: float) -> None:
        """The exchange is over and the connection clean: keep it for the next one, if the endpoint still wants any."""
        self.exchange = None
        self.reused = True
        if self._paused:
            self.resume_reading()
        if self.lost or self.write_paused or not self.endpoint.give_back(self, now):
            self.close()

    def renew(self, now: float) -> bool:
        """The same for one that goes to the next exchange at once; False: it cannot, and is closed."""
        self.exchange = None
        self.reused = True
        self.idle_since_s = now
        if self._paused:
            self.resume_reading()
        if self.lost or self.write_paused or self.endpoint.gone or not self.endpoint.available:
            self.close()
            return False
        return True

    def close(self) -> None:
        """Close without flushing: what is unsent belongs to nobody any more."""
        self.exchange = None
        if not self.lost:
            self.transport.abort()

    def pause_reading(self) -> None:
        if not self._paused and not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self.lost:
            self._paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.upstream_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.upstream_drained()
