"""A second try beside one that takes long: whichever is answered first is the one that counts.

Strategy: where a service asks for it, a timer runs from the moment a try is sent; if no answer's head has come when it
ends, and the request may be retried, a hedge is sent to another endpoint. It is a retry in every respect (budget,
circuit, `retries_max`), only that it does not wait for a failure. The exchange always has the seat of the try whose
answer it is working on: when the hedge is answered, the two change places, and everything goes on as after any answer.
The loser is dropped when the client gets an answer; when one of the two fails, the other is what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeport.sidecar.core.retries import Failure
from homeport.sidecar.http1.attempt import Attempt
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.lines import Headers, Malformed
from homeport.sidecar.http1.upstream import Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.http1.hedged import Hedged


class Hedge(Attempt):
    """The try beside the one of `exchange`."""

    repeated = True
    hedged = True
    request_done = True
    waits = False  # for a connection: it is made to be faster

    def __init__(self, exchange: Hedged, endpoint: Endpoint, now: float) -> None:
        super().__init__(exchange.downstream, exchange.request)
        self.cluster = exchange.cluster
        self._exchange = exchange
        self._key, self._view = exchange.bounds
        self._tried = [*exchange.tried]
        self._try(endpoint, now, fresh=False)

    @property
    def under_way(self) -> bool:
        """Whether an answer may still come."""
        return self.endpoint is not None

    def drop(self) -> None:
        """It is not wanted."""
        self._drop_try()

    def leave(self) -> None:
        """Its endpoint turned critical or left."""
        self._failed(Failure.GONE, "the endpoint turned critical")

    def expect_answer(self, seconds: float) -> None:
        """It has been sent, and has this long to be answered."""
        self._expect(seconds, 0.0)

    def _expect(self, seconds: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.listener.loop.call_later(max(0.0, seconds), self._expired)

    def _expired(self) -> None:
        self._timer = None
        assert self.cluster is not None
        if self._connecting is not None:
            self._connect_failed("no connection in time")
            return
        self.cluster.timeouts += 1
        self._failed(Failure.TIMEOUT, "no answer in time")

    def _send(self, upstream: Upstream, now: float) -> None:
        self.upstream = upstream
        self.sent_s = now
        self._expect(self._exchange.per_try_s, now)
        upstream.lend(self, *self._exchange.message)

    def _overflow(self, text: str) -> None:
        """There is no room for a hedge: nothing is lost."""
        self._drop_try()

    def _failed(self, failure: Failure, text: str) -> None:
        endpoint = self.endpoint
        self._drop_try()
        self._exchange.hedge_failed(endpoint, failure, text)

    # What its connection says.

    def interim(self, head: ResponseHead) -> None:
        """Nobody knows yet whether its answer will be the one."""

    def response(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        self._exchange.hedge_answered()
        self._exchange.response(head, piece, done, trailers)

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        self._failed(Failure.RESET, "it switched to a protocol that nobody asked for")

    def upstream_lost(self) -> None:
        upstream = self.upstream
        stale = upstream is not None and upstream.reused and upstream.silent
        self._failed(Failure.STALE if stale else Failure.RESET, "the connection was closed without an answer")

    def upstream_malformed(self, error: Malformed) -> None:
        self._failed(Failure.RESET, error.text)

    def upstream_full(self) -> None:
        """All of the request is here already."""

    def upstream_drained(self) -> None:
        """All of the request is here already."""
