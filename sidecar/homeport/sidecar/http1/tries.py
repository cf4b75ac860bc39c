"""One request on its way out: held, sent to an endpoint, and sent again as long as the rules allow.

Strategy: protocol callback to protocol callback. The downstream connection brings the request's pieces, the upstream
connection the answer's; both call straight in here, and what arrived together leaves in one write. Only opening a new
upstream connection needs a task. Until the answer's head is written (`begun`) a failed try can be repeated, from the
pieces still held in `_held`; after it, all that is left is to cut the client off visibly.

    routed -> waiting for the service to be known -> trying (connecting, then waiting for an answer)
           -> begun (streaming) -> over                        trying -> trying: a retry

A try's seat and connection are in `attempt`; `hedged` adds tries beside it, `exchange` the answer's way back.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from homeport.sidecar.core import limits, retry_after, routes
from homeport.sidecar.core.retries import Failure, may_retry
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.core.routing import RouteRetries
from homeport.sidecar.core.settings import Hedging, Retries
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.attempt import Attempt
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.kept import Kept
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.upstream import Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.http1.downstream import Downstream
    from homeport.sidecar.http1.hedge import Hedge
    from homeport.sidecar.observer import Seen

HELD = 4  # why a client is not read: its request cannot be passed on yet (see `downstream`)

_LOCAL_STATUS = {Failure.REFUSED: 503, Failure.TIMEOUT: 504}  # anything else is a 502


class Tries(Attempt):
    """See the module."""

    seen: Seen | None = None  # for the log and the trace; None: neither is asked for
    begun = False  # the answer's head has been written to the client
    ends_s = float("inf")  # when it is over whatever flows; only looked at if the listener sets an end
    _held_bytes = 0
    _wire = b""  # the request's head as it goes on the wire
    _retries = 0
    _aside = False  # something is, or was, beside the try under way: a timer, an answer held back, a hedge
    _kept: Kept | None = None  # the last failed answer
    _hedge: Hedge | None = None
    _wait_s = 0.0  # before the next try, as the last answer asked
    _blamed = False  # the try under way has been held against its endpoint
    _keep = True  # the client's connection, after this answer
    _out = 0  # how the answer's body is delimited towards the client: a length, CHUNKED or UNTIL_CLOSE

    def __init__(self, downstream: Downstream, request: RequestHead) -> None:
        # Not by way of the base: one is made for every request.
        self.downstream = downstream
        self.listener = downstream.listener
        self.request = request
        self._tried: list[Endpoint] = []
        self._held: list[bytes] | None = []  # the body so far, as it goes on the wire; None: too much to repeat

    def take_over(self, other: Tries) -> None:
        """Go on in the place of one that has its request, and has done nothing with it."""
        self._held, self._held_bytes = other._held, other._held_bytes
        self.request_done, self.ends_s, self.seen = other.request_done, other.ends_s, other.seen

    # For the log.

    @property
    def tried(self) -> Sequence[Endpoint]:
        """The endpoints that it was sent to, in that order."""
        return self._tried

    @property
    def retries(self) -> int:
        return self._retries

    def exhausted(self, status: int) -> bool:
        """Whether it ended with `status` after as many retries as there may be."""
        settings = self.retry_settings
        return settings is not None and 0 < settings.retries_max <= self._retries and status in settings.statuses

    # The request, from the client.

    def begin(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """Route and send the request, with as much of its body as came along."""
        if piece or not done or self.request.length == framing.CHUNKED:
            self._hold(piece, done, trailers)
        self.request_done = done
        listener = self.listener
        if listener.observer is not None:
            self.seen = listener.observer.began(self)
            self.seen.bytes_in = len(piece)
        if listener.timeouts.total_s is not None:
            self.ends_s = listener.now() + listener.timeouts.total_s
        try:
            if self.request.last_hop:
                raise routes.last_hop(self.request.method)
            cluster = listener.route(self.request)
            if not cluster.plain and listener.begin_otherwise(self, cluster):
                return
            self._wire = listener.encode_request(self.request, self.downstream)
        except Refusal as refusal:
            self._refuse(refusal, undelivered=refusal.flag == "UO")  # too busy here: another host may not be
            return
        self.cluster = cluster
        if cluster.affinity is not None:
            self._key = cluster.affinity.key(self.request.lines, self.downstream.peer)
        if cluster.known:
            self.try_first()
        else:
            self.downstream.deadline_s = listener.now() + listener.timeouts.known_s
            listener.wait_known(cluster, self)

    def try_first(self) -> None:
        """The service is known: send the request to one of its endpoints."""
        cluster, listener = self.cluster, self.listener
        assert cluster is not None
        now = listener.now()
        endpoint = cluster.candidates.pick(listener.rng, (), now, self._key)
        if endpoint is None:
            self._refuse(listener.nobody(cluster))
            return
        if cluster.budget is not None:
            cluster.budget.deposits += 1
        self._try(endpoint, now, fresh=self.request.connect)

    def request_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """More of the request's body."""
        if self.seen is not None:
            self.seen.bytes_in += len(piece)
        upstream = self.upstream
        sent = self._hold(piece, done, trailers)
        self.request_done = done
        now = self.listener.now()
        if upstream is None:
            if self._held_bytes > self.listener.limits.replay_bytes:
                self.downstream.pause_reading(HELD)
            return
        timeouts = self.listener.timeouts
        if self.begun:  # an early answer: the exchange lives while bytes flow either way
            self.downstream.deadline_s = now + timeouts.stream_s
        else:
            assert self.cluster is not None
            self.downstream.deadline_s = now + (self.per_try_s if done else timeouts.body_s)
            if done and self.cluster.hedging is not None:
                self._plan_hedge(self.cluster.hedging)
        self._let_go()
        if not upstream.lost:
            self.listener.outbox.write(upstream.transport, sent)

    def _hold(self, piece: bytes, done: bool, trailers: Headers) -> bytes:
        """Encode a piece for the wire, and keep it in case it has to be sent again."""
        if self.request.length == framing.CHUNKED:
            piece = bodies.encode_chunk(piece)
            if done:
                piece += bodies.encode_last_chunk(trailers)
        if piece and self._held is not None:
            self._held.append(piece)
            self._held_bytes += len(piece)
        return piece

    def _let_go(self) -> None:
        if self._held_bytes > self.listener.limits.replay_bytes:
            self._held = None

    # Tries. What a route may decide otherwise is asked for through these.

    @property
    def per_try_s(self) -> float:
        """How long a try may wait for the answer's head."""
        return self.listener.timeouts.first_byte_s if self.cluster is None else self.cluster.per_try_s

    @property
    def total_s(self) -> float:
        """How long the whole exchange may take, if `ends_s` is set."""
        return self.listener.timeouts.total_s or 0.0

    @property
    def retry_settings(self) -> Retries | RouteRetries | None:
        """What may be tried again; None: nothing."""
        return self.cluster.retry_settings if self.cluster is not None else None

    @property
    def retries_max(self) -> int:
        retries = self.retry_settings
        return retries.retries_max if retries is not None else 0

    def failure_of(self, head: ResponseHead) -> Failure | None:
        """What an answer of 429, or of 500 or more, means for the try; None: it is the answer."""
        failure = self.listener.failure_of(head, self.retry_settings)
        if failure is Failure.STATUS and not self._may_wait(head):
            return None
        return failure

    def _may_wait(self, head: ResponseHead) -> bool:
        """Whether another try may be made as late as a failed answer asks; `_wait_s` is then how late that is."""
        self._wait_s = 0.0
        retries = self.retry_settings
        if retries is None or not retries.retry_after_s_max:
            return True
        for line in head.lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"retry-after":
                wait_s = retry_after.delay_s(value, time.time())
                if wait_s is None:
                    return True  # it is none, and may be ignored
                self._wait_s = wait_s
                return wait_s <= retries.retry_after_s_max and self.listener.now() + wait_s < self.ends_s
        return True

    def _expect(self, seconds: float, now: float) -> None:
        self.downstream.deadline_s = now + seconds

    def pick(self, now: float) -> Endpoint | None:
        """An endpoint for one more try."""
        assert self.cluster is not None
        return self.cluster.pick(self.listener.rng, self._tried, now, self._key)

    def _overflow(self, text: str) -> None:
        """A limit of the service is reached; an answer that an earlier try brought is still the better one."""
        assert self.cluster is not None
        if self.cluster.circuit is not None:
            self.cluster.circuit.overflows += 1
        self._drop_try()
        if self._kept is not None and self._kept.usable:
            self._deliver_kept()
        else:
            self._refuse(Refusal(503, "UO", text), undelivered=not self._retries)

    def _send(self, upstream: Upstream, now: float) -> None:
        assert self.cluster is not None
        self.upstream = upstream
        self.sent_s = now
        wait_s = self.cluster.per_try_s if self.request_done else self.listener.timeouts.body_s
        self.downstream.deadline_s = now + wait_s
        held = self._held
        assert held is not None
        body = b""
        if held:
            body = held[0] if len(held) == 1 else b"".join(held)
        upstream.lend(self, self._wire, body)
        if held:
            self._let_go()
        if not self.request_done:
            self.downstream.resume_reading(HELD)
        elif self.cluster.hedging is not None:
            self._plan_hedge(self.cluster.hedging)

    def move_off(self, leaving: Collection[Endpoint]) -> None:
        """These endpoints turned critical or left."""
        hedge = self._hedge
        if hedge is not None and hedge.endpoint in leaving and (self.endpoint is not None or self._may_leave()):
            hedge.leave()
        if self.endpoint in leaving:
            self.move()

    def move(self) -> None:
        """The endpoint turned critical or left: take a request that still waits there to another one, if allowed."""
        assert self.cluster is not None
        if not self.begun and self._may_leave():
            self._failed(Failure.GONE, "the endpoint turned critical")

    def _may_leave(self) -> bool:
        return self._may_retry(Failure.GONE) and self.pick(self.listener.now()) is not None

    def _may_retry(self, failure: Failure) -> bool:
        cluster = self.cluster
        assert cluster is not None
        if failure is Failure.STALE:  # the pool's affair, and repeated by whoever owns the pool
            most = limits.RETRIES_MAX
        else:
            most = self.retries_max
        if not may_retry(
            failure, self.request.method, retries=self._retries, retries_max=most, body_held=self._held is not None
        ):
            return False
        return cluster.may_afford(failure, self.listener.now())

    def _next(self, failure: Failure) -> Endpoint | None:
        if not self._may_retry(failure):
            return None
        endpoint = self.pick(self.listener.now())
        if endpoint is None and (failure is Failure.STALE or self._wait_s):  # it has said itself when to come back
            last = self._tried[-1]
            endpoint = last if last.available and not last.gone else None
        return endpoint

    def _blame(self, failure: Failure, status: int = 0) -> None:
        """Hold the try's failure against its endpoint, once."""
        endpoint = self.endpoint
        if endpoint is None or self._blamed:
            return
        assert self.cluster is not None
        self._blamed = True
        listener = self.listener
        self.cluster.failed(endpoint, failure, status, listener.now(), listener.rng, answered=self.begun)

    def _failed(self, failure: Failure, text: str) -> None:
        """The try under way has no answer to give."""
        self._wait_s = 0.0
        self._blame(failure)
        self._drop_try()
        if self.begun:
            self._cut_off(failure.flag)
            return
        if self._hedge is not None:
            self._wait_for_hedge()
            return
        following = self._next(failure)
        if following is not None:
            self._try_again(following, failure)
        elif self._kept is not None and self._kept.usable:
            self._deliver_kept()
        else:
            self._refuse(
                Refusal(_LOCAL_STATUS.get(failure, 502), failure.flag, f"upstream: {text}"),
                undelivered=not failure.delivered,
            )

    def _try_again(self, endpoint: Endpoint, failure: Failure) -> None:
        cluster = self.cluster
        assert cluster is not None
        now = self.listener.now()
        self._retries += 1
        self.repeated = True
        self.hedged = self._blamed = False
        self._wait_s = 0.0
        cluster.retries += 1
        if cluster.budget is not None and failure.charged:
            cluster.budget.withdraw(now)
        if failure is Failure.STALE and endpoint is self._tried[-1]:
            cluster.replays += 1
        self._try(endpoint, now, fresh=failure is Failure.STALE or self.request.connect)

    def _try_after(self, wait_s: float, failure: Failure) -> None:
        """One more try, but not before the last answer's Retry-After is over."""
        self.downstream.deadline_s = float("inf")  # the waiting ends by itself, or with the exchange
        self._timer = self.listener.loop.call_later(wait_s, self._waited, failure)

    def _waited(self, failure: Failure) -> None:
        self._timer = None
        following = self._next(failure)
        if following is not None:
            self._try_again(following, failure)
        elif self._kept is not None and self._kept.usable:
            self._deliver_kept()
        else:
            self._refuse(Refusal(502, failure.flag or "UC", "upstream: a failed answer was cut off"))

    # Beside the try under way; `hedged` says how a second one comes there.

    def _wait_for_hedge(self) -> None:
        self.downstream.deadline_s = float("inf")  # it has its own

    def _clear(self) -> None:
        """There is an answer for the client, or nobody to give one to: nothing beside it is wanted any more."""
        self._aside = False
        self._stop_timer()
        if self._hedge is not None:
            self._hedge.drop()
            self._hedge = None
        self._drop_kept()

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self._kept.drop()
            self._kept = None

    def _plan_hedge(self, hedging: Hedging) -> None:
        """The request has been sent, all of it."""
        raise NotImplementedError

    # The answer's part.

    def _deliver_kept(self) -> None:
        """Answer with what an earlier try brought."""
        raise NotImplementedError

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        """Answer the client ourselves."""
        raise NotImplementedError

    def _cut_off(self, flag: str) -> None:
        """The answer cannot be completed: the client must see that; `flag` says why, for the log."""
        raise NotImplementedError
