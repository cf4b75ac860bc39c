"""One request and its answer: the way of the answer back to the client, and every end that an exchange can have.

The request's own way, over as many tries as the rules allow, is in `tries`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from homeport.sidecar.core.histogram import BOUNDS_S
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.attempt import UPSTREAM
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.kept import Kept
from homeport.sidecar.http1.lines import Headers, Malformed
from homeport.sidecar.http1.tunnels import Tunnels

_TOO_MANY: Final = 429


class Exchange(Tunnels):
    """See the module. Created by the downstream connection for each request it has parsed."""

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
        took_s = now - self.sent_s
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
        if status >= 500 or status == _TOO_MANY:
            failure = self.failure_of(head)
            if status != _TOO_MANY:  # which says nothing against the host
                self._blamed = True
                cluster.failed(endpoint, failure, status, now, self.listener.rng)
            if failure is not None and (self._hedge is not None or self._next(failure) is not None):
                self._hold_back(head, piece, done, trailers, failure)
                return
        elif endpoint.failures:
            endpoint.succeeded()
        self._deliver(head, piece, done, trailers)

    def response_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """More of the answer's body."""
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

    def _hold_back(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers, failure: Failure) -> None:
        """Keep a failed answer, and see whether another try brings a better one."""
        self._aside = True
        self._stop_timer()
        self._drop_kept()
        self._kept = Kept(self, head)
        self._kept.response_piece(piece, done, trailers)
        self.downstream.resume_reading(UPSTREAM)  # the next upstream may not be full
        if self._hedge is not None:
            self._wait_for_hedge()
        elif self._wait_s:
            self._try_after(self._wait_s, failure)
        else:
            following = self._next(failure)
            if following is not None:
                self._try_again(following, failure)
            else:
                self._deliver_kept()

    def _deliver_kept(self) -> None:
        """Answer with what an earlier try brought: all of it, or what there is and then the rest."""
        kept = self._kept
        assert kept is not None
        self._kept = None
        if not kept.whole:
            self.swap_seats(kept)
            self._blamed = kept.head.status != _TOO_MANY
            assert self.upstream is not None
            self.upstream.resume_reading()
        self._deliver(kept.head, b"".join(kept.pieces), kept.whole, kept.trailers)

    def _deliver(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        """Write the answer's head, joined with what there is of its body."""
        request, listener = self.request, self.listener
        self.begun = True
        if self._aside:
            if self.hedged and self.cluster is not None:
                self.cluster.hedges_won += 1
            self._clear()
        if self.seen is not None:
            self.seen.status = head.status
            self.seen.bytes_out = len(piece)
            if self.hedged:
                self.seen.flag = "HG"
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

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        """Answer the client ourselves."""
        self._drop_try()
        if self._aside:
            self._clear()
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
            self.tunnel_over(self.listener.now())
            return
        stale = upstream.reused and upstream.silent
        self._failed(Failure.STALE if stale else Failure.RESET, "the connection was closed without a complete answer")

    def upstream_malformed(self, error: Malformed) -> None:
        """The upstream does not speak HTTP. Another try would meet the same program."""
        self._blame(Failure.RESET)
        self._drop_try()
        if self.begun:
            self._cut_off("UC")
        elif self._hedge is not None:
            self._wait_for_hedge()
        elif self._kept is not None and self._kept.usable:
            self._deliver_kept()
        else:
            self._refuse(Refusal(502, "UC", f"upstream: {error.text}"))

    def client_lost(self) -> None:
        """The client is gone, or will not send the rest of its request."""
        self.listener.give_up(self)
        self._drop_try()
        if self.tunnel:
            self.listener.tunnels -= 1
        if self._aside:
            self._clear()
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
        self.downstream.pause_reading(UPSTREAM)

    def upstream_drained(self) -> None:
        self.downstream.resume_reading(UPSTREAM)

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
            self.tunnel_over(now)
        elif self.begun:
            self._drop_try()
            self._cut_off("SI")
        elif self.cluster is not None and self.endpoint is None:
            self.listener.give_up(self)
            self._refuse(self.listener.nobody(self.cluster))
        elif self._queued:
            self._overflow(f"no connection to this service became free within {self.listener.timeouts.connect_s:g} s")
        elif self._connecting is not None:
            self._connect_failed(f"no connection within {self.listener.timeouts.connect_s:g} s")
        elif not self.request_done and not self.downstream.waits_for_upstream:
            self._refuse(
                Refusal(408, "", f"no more of the request's body came for {self.listener.timeouts.body_s:g} s")
            )
        else:
            if self.cluster is not None:
                self.cluster.timeouts += 1
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
        if self._kept is not None and self._kept.whole:  # what an earlier try brought
            self._deliver_kept()
        else:
            self._refuse(Refusal(504, "UT", f"not finished within {self.total_s:g} s"))
