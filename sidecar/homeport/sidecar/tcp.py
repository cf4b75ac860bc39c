"""Plain TCP by service: whoever connects to a local port is connected to an instance of the service it stands for.

For what is not HTTP/1.1: gRPC, databases, brokers. A connection is what a request is elsewhere: it is balanced, counted
and held to the service's circuit when it opens, by the same objects, and then its bytes pass both ways as they are. As
long as no byte has passed, another instance can be tried; after that, the end of one side is the end of the other.

    waiting for the service to be known -> connecting -> open -> (one side has ended) -> closed
                                 connecting -> connecting: another instance

An instance that leaves or fails its checks gets no new connections. Those that it has live on until they end, or
`leave_s` later: only who speaks the protocol could move them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from homeport.sidecar.acceptor import Acceptor
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1.upstream import Cluster, Endpoint

if TYPE_CHECKING:
    from homeport.sidecar.outbound import Outbound

PREFIX: Final = "tcp:"  # of the names of these listeners; the service follows
_NEVER: Final = float("inf")


class Side(asyncio.Protocol):
    """One end of a forwarded connection; what it receives goes to the `other`, None while there is none."""

    __slots__ = (
        "_paused",
        "ended",
        "endpoint",
        "forward",
        "lost",
        "other",
        "received",
        "tls",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, forward: Forward, endpoint: Endpoint | None = None) -> None:
        self.forward = forward
        self.endpoint = endpoint  # None: the client's side
        self.other: Side | None = None
        self.received = 0  # bytes
        self.ended = False  # it sends no more
        self.lost = False
        self.write_paused = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.tls = transport.get_extra_info("ssl_object") is not None  # now: a closed transport may not say
        self.transport.set_write_buffer_limits(high=self.forward.listener.limits.buffer_bytes)
        if self.endpoint is None:
            self.forward.begin()
            return
        if self.endpoint.circuit is not None:
            self.endpoint.circuit.connections += 1
        self.forward.opened(self)  # here and not when the task that connects goes on: bytes may come before that

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.endpoint is not None and self.endpoint.circuit is not None:
            self.endpoint.circuit.closed()
        self.forward.side_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        other = self.other
        if other is None:
            self.forward.ahead += data
            self.pause_reading()
        else:
            forward = self.forward
            forward.deadline_s = forward.listener.now() + forward.silence_s
            if not other.lost:
                other.transport.write(data)
            if self.endpoint is not None and self.endpoint.failures:
                self.endpoint.succeeded()  # it speaks: to have accepted would not be enough

    def eof_received(self) -> bool:
        """Pass a half-close on; TLS, as the loops have it, ends in both directions at once (see `side_ended`)."""
        self.ended = True
        if self.other is not None:
            self.forward.side_ended(self.other)
        return not self.tls

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
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.other is not None:
            self.other.resume_reading()


class Forward:
    """One client's connection, and the one to an instance that its bytes go to."""

    cluster: Cluster | None = None
    endpoint: Endpoint | None = None  # counted as active there while set
    upstream: Side | None = None
    flag = ""  # why it ended, if not by itself
    leaves_s = _NEVER  # when it is ended because its instance leaves
    silence_s = _NEVER  # how long an open one may be without a byte
    _connecting: asyncio.Task[None] | None = None
    _closing = False
    _untold = False  # the client has ended, and the instance cannot be told: silence is the end
    _tried_s = 0.0
    _connected_s = 0.0

    def __init__(self, listener: TcpListener) -> None:
        self.listener = listener
        self.client = Side(self)
        self.peer = b""
        self.began_s = listener.now()
        self.deadline_s = _NEVER
        self.ahead = b""  # what the client has said already; it is not read on meanwhile
        self.tried: list[Endpoint] = []

    # Choosing and connecting.

    def begin(self) -> None:
        """The client is here: find an instance."""
        listener = self.listener
        peer = self.client.transport.get_extra_info("peername")
        self.peer = peer[0].encode() if isinstance(peer, tuple) else b"unknown"
        listener.connections[self] = None
        listener.connections_total += 1
        try:
            if len(listener.connections) > listener.limits.connections:
                raise Refusal(503, "UO", "too many connections")
            cluster = self.cluster = listener.outbound.cluster_of(listener.service)
        except Refusal as refusal:
            self._fail(refusal.flag)
            return
        if cluster.known:
            self.try_first()
        else:
            self.deadline_s = listener.now() + listener.timeouts.known_s
            listener.outbound.wait_known(cluster, self)

    @property
    def _key(self) -> bytes | None:
        """What a hashing policy goes by; there are no headers here, so it can only be the client's address."""
        assert self.cluster is not None
        affinity = self.cluster.affinity
        return affinity.key((), self.peer) if affinity is not None else None

    def try_first(self) -> None:
        """The service is known: connect to one of its instances."""
        cluster, listener = self.cluster, self.listener
        assert cluster is not None
        endpoint = cluster.candidates.pick(listener.outbound.rng, (), listener.now(), self._key)
        if endpoint is None:
            self._fail(listener.outbound.nobody(cluster).flag)
            return
        if cluster.budget is not None:
            cluster.budget.deposits += 1
        self._try(endpoint)

    def _try(self, endpoint: Endpoint) -> None:
        circuit = endpoint.circuit
        if circuit is not None:
            if not circuit.may_connect:
                circuit.overflows += 1
                self._fail("UO")
                return
            circuit.pending += 1
        endpoint.active += 1
        self.endpoint = endpoint
        self.tried.append(endpoint)
        self._tried_s = self.listener.now()
        self.deadline_s = self._tried_s + self.listener.timeouts.connect_s
        self._connecting = self.listener.loop.create_task(self._connect(endpoint))

    async def _connect(self, endpoint: Endpoint) -> None:
        cluster = self.cluster
        assert cluster is not None
        cluster.connects += 1
        options: dict[str, Any] = {}
        try:
            if cluster.settings.tls is not None:  # where the operator says so; else the client may speak it itself
                options["ssl"], options["server_hostname"] = self.listener.outbound.tls_to(cluster, endpoint) or (
                    "",
                    "",
                )
            await self.listener.loop.create_connection(
                lambda: Side(self, endpoint), endpoint.address, endpoint.port, **options
            )
        except (OSError, ValueError):  # a name that cannot be encoded is a ValueError
            if endpoint is self.endpoint and self.upstream is None:
                self._connect_failed()

    def _connect_ended(self) -> None:
        self._connecting = None
        if self.endpoint is not None and self.endpoint.circuit is not None:
            self.endpoint.circuit.connecting_ended()

    def _connect_failed(self) -> None:
        assert self.cluster is not None
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        self._connect_ended()
        self.cluster.connect_failures += 1
        self._failed(Failure.REFUSED)

    def _failed(self, failure: Failure) -> None:
        """The instance did not take the connection, and no byte has passed: try another one."""
        cluster, endpoint, listener = self.cluster, self.endpoint, self.listener
        assert cluster is not None
        assert endpoint is not None
        now, rng = listener.now(), listener.outbound.rng
        self._leave()
        cluster.failed(endpoint, failure, 0, now, rng)
        most = cluster.retry_settings.retries_max if cluster.retry_settings is not None else 0
        following = None
        if len(self.tried) <= most and cluster.may_afford(failure, now):
            following = cluster.pick(rng, self.tried, now, self._key)
        if following is None:
            self._fail("UF" if failure is Failure.REFUSED else "UC")
            return
        cluster.retries += 1
        if cluster.budget is not None and failure.charged:
            cluster.budget.withdraw(now)
        self._try(following)

    def _leave(self) -> None:
        if self.endpoint is not None:
            self.endpoint.active -= 1
            self.endpoint = None

    # Open.

    def opened(self, side: Side) -> None:
        """The instance has taken the connection."""
        client, endpoint, listener = self.client, side.endpoint, self.listener
        if endpoint is not self.endpoint or self.upstream is not None:  # given up already, in this turn of the loop
            side.transport.abort()
            return
        self._connect_ended()
        self.upstream, side.other, client.other = side, client, side
        now = self._connected_s = listener.now()
        if endpoint is not None and endpoint.latency is not None:
            endpoint.latency.observe(now - self._tried_s, now)
        self.silence_s = listener.timeouts.tunnel_s
        self.deadline_s = now + self.silence_s
        if self.ahead:
            side.transport.write(self.ahead)
            self.ahead = b""
        if not side.write_paused:
            client.resume_reading()
        if client.ended:
            self.side_ended(side)

    def side_ended(self, other: Side) -> None:
        """The side opposite of `other` sends no more; the other direction goes on."""
        if other.lost or other.transport.is_closing():
            return
        if other.ended:
            self._close()
        elif other.tls:  # which cannot be told without losing what it has yet to say; the client may be gone, too
            self._untold = True
            self.silence_s = self.listener.timeouts.first_byte_s
            self.deadline_s = self.listener.now() + self.silence_s
        else:
            other.transport.write_eof()

    def side_lost(self, side: Side, exc: Exception | None) -> None:
        """A connection is gone. A client's end while nothing is open ends everything."""
        listener, upstream = self.listener, self.upstream
        if side is self.client:
            listener.outbound.give_up(self)
            if self._connecting is not None:
                self._connecting.cancel()
                self._connect_ended()
                self.flag = self.flag or "DC"
            if upstream is None:
                self._over()
                return
        elif side is not upstream:
            return  # another one has taken its place
        assert upstream is not None
        if side is upstream:
            assert self.cluster is not None
            if self._nothing_passed and not side.ended:  # an orderly end is the answer of whoever is there
                self.upstream = self.client.other = None
                self._failed(Failure.RESET)
                return
            self._leave()
            self.flag = self.flag or ("UC" if exc is not None else "")
        other = upstream if side is self.client else self.client
        if other.lost:
            self._over()
        elif exc is not None:
            other.transport.abort()  # a reset stays one
        else:
            self._close()

    @property
    def _nothing_passed(self) -> bool:
        """Whether the upstream went away before anybody could tell that it was there."""
        assert self.upstream is not None
        client = self.client
        soon = self.listener.now() - self._connected_s <= self.listener.timeouts.connect_s
        untouched = not (self.upstream.received or client.received or client.ended or client.lost or self._closing)
        return soon and untouched

    # Ends.

    def _fail(self, flag: str) -> None:
        """There is nobody to connect to."""
        self.flag = flag
        self._leave()
        self._closing = True
        if not self.client.lost:
            self.client.transport.abort()

    def _close(self) -> None:
        """Close both sides when what is unsent is sent, or at the latest when that takes too long."""
        self._closing = True
        self.deadline_s = self.listener.now() + self.listener.timeouts.flush_s
        for side in (self.client, self.upstream):
            if side is not None and not side.lost:
                side.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        for side in (self.client, self.upstream):
            if side is not None and not side.lost:
                side.transport.abort()

    def _over(self) -> None:
        self.deadline_s = _NEVER
        self._leave()
        self.listener.forward_ended(self)

    def expired(self, now: float) -> None:
        """`deadline_s` has passed; what was waited for says what that means."""
        self.deadline_s = _NEVER
        if self._closing:
            self.abort()
        elif self._connecting is not None:
            self._connect_failed()
        elif self.upstream is None:
            self.listener.outbound.give_up(self)
            self._fail("UH")
        else:
            if not self._untold:
                self.flag = "SI"
            self._close()

    def look_at_endpoint(self, now: float) -> None:
        """Give a connection to an instance that leaves its time, and take that back if it stays after all."""
        endpoint = self.endpoint
        if endpoint is None or self.upstream is None or self._closing:
            return
        if endpoint.available and not endpoint.gone:
            self.leaves_s = _NEVER
        elif self.leaves_s == _NEVER:
            self.leaves_s = now + self.listener.timeouts.leave_s
        elif now >= self.leaves_s:
            self.flag = "LR"
            self._close()


class TcpListener(Acceptor[Forward]):
    """One local port, which stands for one service."""

    def __init__(self, outbound: Outbound, service: str) -> None:
        super().__init__(outbound.loop, outbound.limits, outbound.timeouts)
        self.name = PREFIX + service
        self.service = service
        self.outbound = outbound
        self.received = 0  # bytes from clients, of connections that have ended
        self.sent = 0  # bytes to clients, likewise
        self.flags: dict[str, int] = {}  # connections that did not end by themselves
        outbound.keep(service)

    def protocol(self) -> Side:
        return Forward(self).client

    def forward_ended(self, forward: Forward) -> None:
        """Count a connection that is over."""
        self.received += forward.client.received
        if forward.upstream is not None:
            self.sent += forward.upstream.received
        if forward.flag:
            self.flags[forward.flag] = self.flags.get(forward.flag, 0) + 1
        if self.observer is not None:
            self.observer.forwarded(forward)
        self.connection_ended(forward)

    def sweep(self, now: float) -> None:
        """Act on every deadline that has passed."""
        for forward in list(self.connections):
            if forward.deadline_s <= now:
                forward.expired(now)
            forward.look_at_endpoint(now)

    def close(self) -> None:
        """Stop accepting and close every connection."""
        self.stop_accepting()
        for forward in list(self.connections):
            forward.abort()
