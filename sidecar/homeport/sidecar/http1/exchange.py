"""One request and its answer, over as many tries as the rules allow.

Strategy: protocol callback to protocol callback. The downstream connection brings the request's pieces, the upstream
connection the answer's; both call straight in here, and what arrived together leaves in one write. Only opening a new
upstream connection needs a task. Until the answer's head is written (`begun`) a failed try can be repeated, from the
pieces still held in `_held`; after it, all that is left is to cut the client off visibly.

    routed -> waiting for the service to be known -> trying (connecting, then waiting for an answer)
           -> begun (streaming) -> over                        trying -> trying: a retry
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from homeport.sidecar.core import limits
from homeport.sidecar.core.histogram import BOUNDS_S
from homeport.sidecar.core.retries import IDEMPOTENT, Failure, may_retry
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.lines import Headers, Malformed
from homeport.sidecar.http1.upstream import Cluster, Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.http1.downstream import Downstream
    from homeport.sidecar.observer import Seen

_HELD = 4  # why a client is not read: its request cannot be passed on yet (see `downstream`)
_UPSTREAM = 2

_LOCAL_STATUS = {Failure.REFUSED: 503, Failure.TIMEOUT: 504}  # anything else is a 502


class _Kept:
    """A failed answer, held back while another try may bring a better one."""

    __slots__ = ("head", "pieces", "size", "trailers")

    def __init__(self, head: ResponseHead) -> None:
        self.head = head
        self.pieces: list[bytes] = []
        self.size = 0
        self.trailers: Headers = []


class Exchange:
    """See the module. Created by the downstream connection for each request it has parsed."""

    # Defaults stand in the class: most exchanges change few of them, and one is made for every request.
    request_done = False
    cluster: Cluster | None = None
    endpoint: Endpoint | None = None  # counted as active there while set
    upstream: Upstream | None = None
    seen: Seen | None = None  # for the log and the trace; None: neither is asked for
    begun = False  # the answer's head has been written to the client
    reusable = False  # the upstream's connection, after this answer
    tunnel = False
    ends_s = float("inf")  # when it is over whatever flows; only looked at if the listener sets an end
    _ends = 0  # of a tunnel's two directions, those that have ended
    _connecting: asyncio.Task[None] | None = None
    _held_bytes = 0
    _wire = b""  # the request's head as it goes on the wire
    _retries = 0
    _kept: _Kept | None = None  # the last failed answer
    _kept_whole = False
    _key: bytes | None = None  # what a hashing policy sends to one endpoint
    _sent_s = 0.0  # when the try under way was sent
    _keep = True  # the client's connection, after this answer
    _out = 0  # how the answer's body is delimited towards the client: a length, CHUNKED or UNTIL_CLOSE

    def __init__(self, downstream: Downstream, request: RequestHead) -> None:
        self.downstream = downstream
        self.listener = downstream.listener
        self.request = request
        self._held: list[bytes] | None = []  # the body so far, as it goes on the wire; None: too much to repeat
        self._tried: list[Endpoint] = []

    def take_over(self, other: Exchange) -> None:
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
        settings = self.cluster.retry_settings if self.cluster is not None else None
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
            cluster = listener.route(self.request)
            if cluster.router is not None:
                listener.begin_routed(self, cluster)
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
                self.downstream.pause_reading(_HELD)
            return
        timeouts = self.listener.timeouts
        if self.begun:  # an early answer: the exchange lives while bytes flow either way
            self.downstream.deadline_s = now + timeouts.stream_s
        else:
            assert self.cluster is not None
            self.downstream.deadline_s = now + (self.per_try_s if done else timeouts.body_s)
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
    def retries_max(self) -> int:
        assert self.cluster is not None
        retries = self.cluster.retry_settings
        return retries.retries_max if retries is not None else 0

    def failure_of(self, head: ResponseHead) -> Failure | None:
        """What an answer of 500 or more means for the try; None: it is the answer."""
        assert self.cluster is not None
        return self.listener.failure_of(head, self.cluster)

    def pick(self, now: float) -> Endpoint | None:
        """An endpoint for one more try."""
        assert self.cluster is not None
        return self.cluster.pick(self.listener.rng, self._tried, now, self._key)

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
            if self._retries:
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
                self._overflow("too many connections to this service are open or being opened")
                return
            circuit.pending += 1
        self.downstream.deadline_s = now + self.listener.timeouts.connect_s
        self._connecting = self.listener.loop.create_task(self._connect(endpoint))

    def _overflow(self, text: str) -> None:
        """A limit of the service is reached; an answer that an earlier try brought is still the better one."""
        assert self.cluster is not None
        if self.cluster.circuit is not None:
            self.cluster.circuit.overflows += 1
        self._drop_try()
        if self._kept is not None and self._kept_whole:
            self._deliver_kept()
        else:
            self._refuse(Refusal(503, "UO", text), undelivered=not self._retries)

    def _connect_ended(self) -> None:
        """The try under way has a connection, or will not get one."""
        self._connecting = None
        assert self.endpoint is not None
        if self.endpoint.circuit is not None:
            self.endpoint.circuit.pending -= 1

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

    def _send(self, upstream: Upstream, now: float) -> None:
        assert self.cluster is not None
        self.upstream = upstream
        self._sent_s = now
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
            self.downstream.resume_reading(_HELD)

    def move(self) -> None:
        """The endpoint turned critical or left: take a request that still waits there to another one, if allowed."""
        assert self.cluster is not None
        if self.begun or (self._kept is not None and not self._kept_whole) or not self._may_retry(Failure.GONE):
            return
        if self.pick(self.listener.now()) is not None:
            self._failed(Failure.GONE, "the endpoint turned critical")

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
        if endpoint is None and failure is Failure.STALE:
            last = self._tried[-1]
            endpoint = last if last.available and not last.gone else None
        return endpoint

    def _failed(self, failure: Failure, text: str) -> None:
        """The try under way has no answer to give."""
        endpoint = self.endpoint
        self._drop_try()
        if endpoint is not None:
            assert self.cluster is not None
            self.cluster.failed(endpoint, failure, 0, self.listener.now(), self.listener.rng)
        if self.begun:
            self._cut_off(failure.flag)
            return
        following = self._next(failure)
        if following is not None:
            self._try_again(following, failure)
        elif self._kept is not None and self._kept_whole:
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
        cluster.retries += 1
        if cluster.budget is not None and failure.charged:
            cluster.budget.withdraw(now)
        if failure is Failure.STALE and endpoint is self._tried[-1]:
            cluster.replays += 1
        self._try(endpoint, now, fresh=failure is Failure.STALE or self.request.connect)

    def _drop_try(self) -> None:
        """Leave the endpoint; a connection that is still lent cannot be used again."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connect_ended()
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None
            self.downstream.resume_reading(_UPSTREAM)
        endpoint = self.endpoint
        if endpoint is not None:
            endpoint.active -= 1
            self.endpoint = None
            if endpoint.circuit is not None:
                endpoint.circuit.requests -= 1
                if self._retries:
                    endpoint.circuit.retries -= 1

    # The answer, from the upstream.

    def interim(self, head: ResponseHead) -> None:
        """A 1xx: passed on to clients that know of such a thing."""
        if self.request.minor == 1:
            self.downstream.send(b"\r\n".join([framing.STATUS_LINES[head.status], *head.lines, b"\r\n"]))

    def response(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        """The head of the final answer, with as much of its body as came along."""
        cluster, endpoint = self.cluster, self.endpoint
        assert cluster is not None
        assert endpoint is not None
        status = head.status
        now = self.listener.now()
        took_s = now - self._sent_s
        cluster.requests[status // 100 if status < 600 else 0] += 1
        cluster.times[bisect_left(BOUNDS_S, took_s)] += 1
        cluster.times_sum_s += took_s
        self.reusable = head.keep_alive
        endpoint.answers += 1
        endpoint.answers_total += 1
        endpoint.times_sum_s += took_s
        if endpoint.latency is not None:
            endpoint.latency.observe(took_s, now)
        adaptive = cluster.adaptive
        if adaptive is not None:
            adaptive.answers += 1
            adaptive.sum_s += took_s
        if status >= 500:
            failure = self.failure_of(head)
            cluster.failed(endpoint, failure, status, now, self.listener.rng)
            if failure is not None and self._next(failure) is not None:
                self._kept, self._kept_whole = _Kept(head), False
                self._keep_piece(self._kept, piece, done, trailers, failure)
                return
        elif endpoint.failures:
            endpoint.succeeded()
        self._deliver(head, piece, done, trailers)

    def response_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """More of the answer's body."""
        kept = self._kept
        if not self.begun and kept is not None:
            failure = self.failure_of(kept.head) or Failure.STATUS
            self._keep_piece(kept, piece, done, trailers, failure)
            return
        if self.seen is not None:
            self.seen.bytes_out += len(piece)
        if self._out == framing.CHUNKED:
            piece = bodies.encode_chunk(piece)
            if done:
                piece += bodies.encode_last_chunk(trailers)
        now = self.listener.now()
        if piece:
            self.downstream.send(piece)
        if done:
            self._over(now)
        else:
            self.downstream.deadline_s = now + self.listener.timeouts.stream_s

    def _keep_piece(self, kept: _Kept, piece: bytes, done: bool, trailers: Headers, failure: Failure) -> None:
        kept.pieces.append(piece)
        kept.size += len(piece)
        if kept.size > self.listener.limits.replay_bytes:  # too long to hold back: this is the answer
            self._kept = None
            self._deliver(kept.head, b"".join(kept.pieces), done, trailers)
        elif done:
            kept.trailers = trailers
            self._kept_whole = True
            self._give_back(self.listener.now())
            following = self._next(failure)
            if following is None:
                self._deliver_kept()
            else:
                self._try_again(following, failure)

    def _deliver_kept(self) -> None:
        kept = self._kept
        assert kept is not None
        self._deliver(kept.head, b"".join(kept.pieces), True, kept.trailers)

    def _deliver(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        """Write the answer's head, joined with what there is of its body."""
        request, listener = self.request, self.listener
        self.begun = True
        if self.seen is not None:
            self.seen.status = head.status
            self.seen.bytes_out = len(piece)
        keep = request.keep_alive and self.request_done and not listener.draining
        parts = [framing.STATUS_LINES[head.status], *head.lines]
        self._out = 0
        if head.bodiless:
            if head.has_length and head.status != 204:
                parts.append(b"Content-Length: %d" % head.length)
            if head.length == framing.CHUNKED and request.minor == 1 and head.status != 204:
                parts.append(b"Transfer-Encoding: chunked")
        elif head.length >= 0:
            self._out = head.length
            parts.append(b"Content-Length: %d" % head.length)
        elif request.minor == 1:
            self._out = framing.CHUNKED
            parts.append(b"Transfer-Encoding: chunked")
            piece = bodies.encode_chunk(piece)
            if done:
                piece += bodies.encode_last_chunk(trailers)
        else:
            self._out = framing.UNTIL_CLOSE
            keep = False
        if head.mesh or head.via:
            parts += listener.response_lines(head)
        else:
            parts.append(listener.via_line)
        if request.mesh:
            parts += listener.asked_lines(request.mesh, self.cluster)
        if not keep:
            parts.append(b"Connection: close")
        elif request.minor == 0:
            parts.append(b"Connection: keep-alive")
        parts.append(b"\r\n")
        self._keep = keep
        downstream = self.downstream
        listener.outbox.write_message(downstream.transport, b"\r\n".join(parts), piece)
        now = listener.now()
        if done:
            self._over(now)
        else:
            downstream.deadline_s = now + listener.timeouts.stream_s
            if downstream.write_paused and self.upstream is not None:  # an earlier try has filled the client up
                self.upstream.pause_reading()

    def _over(self, now: float) -> None:
        """Everything is written."""
        if self.upstream is not None:
            self._give_back(now)
        self.downstream.finished(self._keep, now)

    def _give_back(self, now: float) -> None:
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
            if self._retries:
                circuit.retries -= 1
        self.endpoint = self.upstream = None
        upstream.release(now)

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        """Answer the client ourselves."""
        self._drop_try()
        listener = self.listener
        self.begun = True
        if self.seen is not None:
            self.seen.status, self.seen.flag = refusal.status, refusal.flag
        keep = self.request.keep_alive and self.request_done and not listener.draining and refusal.status != 508
        keep = keep and not self.request.connect  # what follows may be meant for the tunnel
        to_head = self.request.method == b"HEAD"
        if self.cluster is not None and refusal.flag:
            self.cluster.requests[0] += 1
        asked = listener.asked_lines(self.request.mesh, self.cluster)
        answer = listener.answer(refusal, keep=keep, to_head=to_head, undelivered=undelivered, lines=asked)
        self.downstream.send(answer)
        listener.outbox.flush()  # so that a client which only asks is noticed to be full
        self.downstream.wait_a_turn()
        self.downstream.finished(keep, listener.now())

    def _cut_off(self, flag: str) -> None:
        """The answer cannot be completed: the client must see that; `flag` says why, for the log."""
        if self.seen is not None:
            self.seen.flag = flag
        self.downstream.truncate(delimited=self._out != framing.UNTIL_CLOSE)
        self.downstream.finished(False, self.listener.now())

    # Ends and obstacles.

    def upstream_lost(self) -> None:
        """The upstream's connection ended before its answer did."""
        upstream = self.upstream
        assert upstream is not None
        if self.tunnel:
            self._drop_try()
            self.downstream.close(self.listener.now())
            self.downstream.finished(False, self.listener.now())
            return
        if self._kept is not None and not self.begun and not self._kept_whole:
            self._kept = None
        stale = upstream.reused and upstream.silent
        self._failed(Failure.STALE if stale else Failure.RESET, "the connection was closed without a complete answer")

    def upstream_malformed(self, error: Malformed) -> None:
        """The upstream does not speak HTTP. Another try would meet the same program."""
        if self.endpoint is not None:
            assert self.cluster is not None
            self.cluster.failed(self.endpoint, Failure.RESET, 0, self.listener.now(), self.listener.rng)
        self._drop_try()
        if self.begun:
            self._cut_off("UC")
        else:
            self._refuse(Refusal(502, "UC", f"upstream: {error.text}"))

    def client_lost(self) -> None:
        """The client is gone, or will not send the rest of its request."""
        self.listener.give_up(self)
        self._drop_try()
        if self.seen is not None:
            self.seen.flag = "DC"
        self.downstream.finished(False, self.listener.now())

    def client_malformed(self, refusal: Refusal) -> None:
        """The request's body is not what its head promised."""
        self._drop_try()
        if self.begun:
            self._cut_off("DPE")
        else:
            self._refuse(refusal)

    def upstream_full(self) -> None:
        """The upstream takes no more for now: stop reading the client."""
        self.downstream.pause_reading(_UPSTREAM)

    def upstream_drained(self) -> None:
        self.downstream.resume_reading(_UPSTREAM)

    def client_full(self) -> None:
        """The client takes no more for now: stop reading the upstream."""
        if self.upstream is not None:
            self.upstream.pause_reading()

    def client_drained(self) -> None:
        if self.begun and not self.tunnel:
            self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.stream_s
        if self.upstream is not None:
            self.upstream.resume_reading()

    def expired(self, now: float) -> None:
        """The downstream's deadline has passed; what was waited for says what that means."""
        if self.tunnel:
            self._drop_try()
            self.downstream.close(now)
            self.downstream.finished(False, now)
        elif self.begun:
            self._drop_try()
            self._cut_off("SI")
        elif self.cluster is not None and self.endpoint is None:
            self.listener.give_up(self)
            self._refuse(self.listener.nobody(self.cluster))
        elif self._connecting is not None:
            self._connect_failed(f"no connection within {self.listener.timeouts.connect_s:g} s")
        elif not self.request_done and not self.downstream.waits_for_upstream:
            self._refuse(
                Refusal(408, "", f"no more of the request's body came for {self.listener.timeouts.body_s:g} s")
            )
        else:
            if self.cluster is not None:
                self.cluster.timeouts += 1
            self._kept = None if not self._kept_whole else self._kept
            self._failed(Failure.TIMEOUT, f"no answer within {self.per_try_s:g} s")

    def out_of_time(self) -> None:
        """`ends_s` has passed. A tunnel is not an exchange any more: only its silence ends it."""
        if self.tunnel:
            self.ends_s = float("inf")
            return
        self.listener.give_up(self)
        self._drop_try()
        if self.begun:
            self._cut_off("UT")
            return
        if self.cluster is not None:
            self.cluster.timeouts += 1
        if self._kept is not None and self._kept_whole:  # what an earlier try brought
            self._deliver_kept()
        else:
            self._refuse(Refusal(504, "UT", f"not finished within {self.total_s:g} s"))

    # Tunnels.

    def _connected(self, upstream: Upstream) -> None:
        """CONNECT: what a connection is opened for is all that it is used for."""
        assert self.cluster is not None
        self.cluster.requests[2] += 1
        if self.seen is not None:
            self.seen.status = 200
        self.upstream = upstream
        upstream.exchange = self
        self._begin_tunnel(upstream, b"HTTP/1.1 200 Connection established\r\n%b\r\n\r\n" % self.listener.via_line)

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        """A 101: both connections become a tunnel, if the client asked for it."""
        upstream, cluster = self.upstream, self.cluster
        assert upstream is not None
        assert cluster is not None
        if not self.request.upgrade or head.upgrade != self.request.upgrade:
            self.upstream_malformed(Malformed(502, "it switched to a protocol that nobody asked for"))
            return
        cluster.requests[1] += 1
        if self.seen is not None:
            self.seen.status = 101
        lines = [
            framing.STATUS_LINES[101],
            *head.lines,
            *self.listener.response_lines(head),
            b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade,
            rest,
        ]
        self._begin_tunnel(upstream, b"\r\n".join(lines))

    def _begin_tunnel(self, upstream: Upstream, answer: bytes) -> None:
        self.tunnel = upstream.tunnel = self.begun = True
        self.tunnel_data(self.downstream.transport, answer)
        ahead = self.downstream.take_buffer()
        if ahead:
            self.tunnel_data(upstream.transport, ahead)
        if self.downstream.ended:
            self.client_ended_tunnel()

    def tunnel_data(self, onward: asyncio.Transport, data: bytes) -> None:
        """Bytes of the other protocol, in either direction."""
        self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.tunnel_s
        if self.seen is not None:
            if onward is self.downstream.transport:
                self.seen.bytes_out += len(data)
            else:
                self.seen.bytes_in += len(data)
        self.listener.outbox.write(onward, data)

    def client_ended_tunnel(self) -> None:
        """The client will send no more; the other direction goes on."""
        self._ends += 1
        upstream = self.upstream
        if upstream is None or upstream.transport.is_closing():
            return
        if self._ends == 2 or upstream.tls:
            self._end_tunnel(upstream)
        else:
            self.listener.outbox.flush()
            upstream.transport.write_eof()

    def upstream_ended_tunnel(self, upstream: Upstream) -> None:
        """The upstream will send no more; the other direction goes on."""
        self._ends += 1
        if self._ends == 2 or self.downstream.tls:
            self._end_tunnel(upstream)
        else:
            self.downstream.end_writing()

    def _end_tunnel(self, upstream: Upstream) -> None:
        """Send what is unsent and close; the end of the upstream's connection then ends the exchange."""
        self.listener.outbox.flush()
        self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.flush_s
        upstream.transport.close()
