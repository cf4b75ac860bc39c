"""One attempt to have a request answered: a seat at an endpoint, and a connection to it.

Strategy: what is counted when an attempt begins (active requests, the circuit's) is taken back in exactly one place,
and once, however it ends: `_give_back` when its connection can be used again, `_drop_try` in every other case. What an
end means is decided by whoever makes the attempt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from homeport.sidecar.core import limits
from homeport.sidecar.core.circuit import CircuitBreaker
from homeport.sidecar.core.cluster import View
from homeport.sidecar.core.retries import IDEMPOTENT, Failure
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.lines import Headers, Malformed
from homeport.sidecar.http1.upstream import Cluster, Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.http1.downstream import Downstream

UPSTREAM = 2  # why a client is not read: the upstream takes no more (see `downstream`)


class Attempt:
    """See the module. One object makes one attempt at a time, and may make several, one after the other."""

    # Defaults stand in the class: most exchanges change few of them, and one is made for every request.
    cluster: Cluster | None = None
    endpoint: Endpoint | None = None  # counted as active there while set
    upstream: Upstream | None = None
    reusable = False  # the upstream's connection, after this answer
    repeated = False  # whether the circuit counts it among the retries
    hedged = False  # it was sent beside another one
    sent_s = 0.0  # when
    request_done = False  # the client has sent all of it
    tunnel = False  # it has become one
    waits = True  # for a connection, where no more may be opened
    _connecting: asyncio.Task[None] | None = None
    _queued = False  # it waits for a connection
    _key: bytes | None = None  # what a hashing policy sends to one endpoint
    _view: View[Upstream] | None = None  # those of the endpoints that may be picked, None: all
    _timer: asyncio.TimerHandle | None = None  # until something that waits on purpose goes on

    def __init__(self, downstream: Downstream, request: RequestHead) -> None:
        self.downstream = downstream
        self.listener = downstream.listener
        self.request = request
        self._tried: list[Endpoint] = []

    # What the outcome means.

    def _send(self, upstream: Upstream, now: float) -> None:
        """There is a connection."""
        raise NotImplementedError

    def _connected(self, upstream: Upstream) -> None:
        """There is a connection, which is all that a CONNECT asks for."""
        raise NotImplementedError

    def _overflow(self, text: str) -> None:
        """A limit of the service is reached."""
        raise NotImplementedError

    def _failed(self, failure: Failure, text: str) -> None:
        """The attempt under way has no answer to give."""
        raise NotImplementedError

    def _expect(self, seconds: float, now: float) -> None:
        """What is waited for now takes no longer than this."""
        raise NotImplementedError

    # Beginning.

    def _try(self, endpoint: Endpoint, now: float, *, fresh: bool) -> None:
        circuit = endpoint.circuit
        if endpoint.active >= limits.ACTIVE_MAX:
            self._overflow(f"{limits.ACTIVE_MAX} requests are under way at every endpoint that was considered")
            return
        if circuit is not None:
            if circuit.requests >= circuit.requests_max:
                self._overflow(f"{circuit.requests_max} requests to this service are under way")
                return
            circuit.requests += 1
            if self.repeated:
                circuit.retries += 1
        endpoint.active += 1
        self.endpoint = endpoint
        self._tried.append(endpoint)
        upstream = None if fresh else endpoint.take(now)
        if (
            upstream is not None
            and self.request.method not in IDEMPOTENT
            and not upstream.is_surely_open(now)
            and (circuit is None or circuit.may_connect)
        ):
            endpoint.put_back(upstream)
            upstream = None
        if upstream is not None:
            self._send(upstream, now)
            return
        if circuit is not None:
            if not circuit.may_connect:
                self._find_connection(circuit, now)
                return
            circuit.pending += 1
        self.connect()

    def connect(self) -> None:
        """Open a connection: there is room for it, and it is counted as pending."""
        assert self.endpoint is not None
        self._queued = False
        self._expect(self.listener.timeouts.connect_s, self.listener.now())
        self._connecting = self.listener.loop.create_task(self._connect(self.endpoint))

    def _connect_ended(self) -> None:
        """The attempt under way has a connection, or will not get one."""
        self._connecting = None
        assert self.endpoint is not None
        if self.endpoint.circuit is not None:
            self.endpoint.circuit.connecting_ended()

    async def _connect(self, endpoint: Endpoint) -> None:
        assert self.cluster is not None
        self.cluster.connects += 1
        options: dict[str, Any] = {}
        try:
            tls = None if self.request.connect else self.listener.tls_to(self.cluster, endpoint)
            if tls is not None:
                options["ssl"], options["server_hostname"] = tls
            _, upstream = await self.listener.loop.create_connection(
                lambda: Upstream(endpoint, self.listener.limits), endpoint.address, endpoint.port, **options
            )
        except (OSError, ValueError) as error:  # a name that cannot be encoded is a ValueError
            self._connect_ended()
            self._connect_failed(f"connecting failed: {error.__class__.__name__}")
            return
        self._connect_ended()
        if upstream.lost:
            self._connect_failed("the connection was closed at once")
        elif self.request.connect:
            self._connected(upstream)
        else:
            self._send(upstream, self.listener.now())

    def _connect_failed(self, text: str) -> None:
        assert self.cluster is not None
        self.cluster.connect_failures += 1
        self._failed(Failure.REFUSED, text)

    # Where no more connections may be opened.

    def _find_connection(self, circuit: CircuitBreaker, now: float) -> None:
        """Use another endpoint's idle connection, or have it closed, or wait until any is free."""
        assert self.cluster is not None
        idle = [each for each in self.cluster.endpoints.values() if each.idle]
        for other in idle:
            if self._may_move(other):
                upstream = other.take(now)
                if upstream is not None:
                    self._move_to(other)
                    self._send(upstream, now)
                    return
        if not (self.waits and circuit.wait(self)):
            self._overflow("too many connections to this service are open or being opened")
            return
        self._queued = True
        self._expect(self.listener.timeouts.connect_s, now)
        if idle:
            min(idle, key=lambda each: each.idle[0].idle_since_s).idle.pop(0).close()  # makes room when it is closed

    def _may_move(self, endpoint: Endpoint) -> bool:
        """Whether another endpoint than the one that was picked is as good, since it has a connection."""
        return (
            self._key is None
            and self._view is None
            and not self.request.connect
            and endpoint.available
            and not (endpoint.gone or endpoint.ejected)
            and endpoint.active < limits.ACTIVE_MAX
            and endpoint not in self._tried
        )

    def _move_to(self, endpoint: Endpoint) -> None:
        assert self.endpoint is not None
        self.endpoint.active -= 1
        endpoint.active += 1
        self.endpoint = self._tried[-1] = endpoint

    def _offered(self, upstream: Upstream, circuit: CircuitBreaker, now: float) -> bool:
        """Take over a connection that somebody else is done with, instead of waiting any longer, if it will do."""
        endpoint = upstream.endpoint
        if self.request.connect or not (endpoint is self.endpoint or self._may_move(endpoint)):
            return False
        if self.request.method not in IDEMPOTENT and not upstream.is_surely_open(now):
            return False
        circuit.leave(self)
        self._queued = False
        if endpoint is not self.endpoint:
            self._move_to(endpoint)
        self._send(upstream, now)
        return True

    @staticmethod
    def _hand_on(upstream: Upstream, circuit: CircuitBreaker, now: float) -> None:
        """Others wait for a connection: one of them gets this one, or it is closed so that there is room for theirs."""
        if upstream.renew(now):
            waiter = circuit.waiting[0]
            if not (isinstance(waiter, Attempt) and waiter._offered(upstream, circuit, now)):
                upstream.close()

    # Changing hands.

    def swap_seats(self, other: Attempt) -> None:
        """Each goes on with the try of the other one; neither is connecting."""
        self.endpoint, other.endpoint = other.endpoint, self.endpoint
        self.upstream, other.upstream = other.upstream, self.upstream
        self.reusable, other.reusable = other.reusable, self.reusable
        self.repeated, other.repeated = other.repeated, self.repeated
        self.hedged, other.hedged = other.hedged, self.hedged
        self.sent_s, other.sent_s = other.sent_s, self.sent_s
        for each in (self, other):
            if each.upstream is not None:
                each.upstream.exchange = each

    # Ending.

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_try(self) -> None:
        """Leave the endpoint; a connection that is still lent cannot be used again."""
        if self._timer is not None:
            self._stop_timer()
        endpoint = self.endpoint
        if self._connecting is not None:
            self._connecting.cancel()
            self._connect_ended()
        elif self._queued and endpoint is not None and endpoint.circuit is not None:
            self._queued = False
            endpoint.circuit.leave(self)
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None
            self.upstream_drained()
        if endpoint is not None:
            endpoint.active -= 1
            self.endpoint = None
            if endpoint.circuit is not None:
                endpoint.circuit.requests -= 1
                if self.repeated:
                    endpoint.circuit.retries -= 1

    def _give_back(self, now: float) -> None:
        """The answer has ended: keep the connection for the next request, if it is clean."""
        upstream, endpoint = self.upstream, self.endpoint
        assert upstream is not None
        assert endpoint is not None
        if not (self.reusable and self.request_done):
            self._drop_try()
            return
        endpoint.active -= 1
        circuit = endpoint.circuit
        if circuit is not None:
            circuit.requests -= 1
            if self.repeated:
                circuit.retries -= 1
        self.endpoint = self.upstream = None
        if circuit is not None and circuit.waiting:
            self._hand_on(upstream, circuit, now)
        else:
            upstream.release(now)

    # What the connection has to say while it is lent: `upstream.Upstream` calls these.

    def interim(self, head: ResponseHead) -> None:
        """A 1xx."""
        raise NotImplementedError

    def response(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        """The head of the final answer, with as much of its body as came along."""
        raise NotImplementedError

    def response_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """More of the answer's body."""
        raise NotImplementedError

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        """A 101, and what came after it."""
        raise NotImplementedError

    def upstream_lost(self) -> None:
        """The upstream's connection ended before its answer did."""
        raise NotImplementedError

    def upstream_malformed(self, error: Malformed) -> None:
        """The upstream does not speak HTTP."""
        raise NotImplementedError

    def upstream_full(self) -> None:
        """The upstream takes no more for now."""
        raise NotImplementedError

    def upstream_drained(self) -> None:
        """It takes more again."""
        raise NotImplementedError

    def tunnel_data(self, onward: asyncio.Transport, data: bytes) -> None:
        """Bytes of another protocol."""
        raise NotImplementedError

    def upstream_ended_tunnel(self, upstream: Upstream) -> None:
        """The upstream will send no more."""
        raise NotImplementedError
