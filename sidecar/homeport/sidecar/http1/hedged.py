"""The tries of a request that may have a second one beside them: when it is sent, and what its end means.

The second one's own way is in `hedge`, with the strategy.
"""

from __future__ import annotations

from homeport.sidecar.core.cluster import View
from homeport.sidecar.core.retries import IDEMPOTENT, Failure
from homeport.sidecar.core.settings import Hedging
from homeport.sidecar.http1.hedge import Hedge
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Endpoint, Upstream


class Hedged(Tries):
    """The part of an exchange that sends hedges."""

    @property
    def bounds(self) -> tuple[bytes | None, View[Upstream] | None]:
        """What binds it to some of the endpoints."""
        return self._key, self._view

    @property
    def message(self) -> tuple[bytes, bytes]:
        """The request as it goes on the wire, head and body; only while it is held."""
        assert self._held is not None
        return self._wire, b"".join(self._held)

    def _plan_hedge(self, hedging: Hedging) -> None:
        """The request has been sent, all of it."""
        if self.request.method in IDEMPOTENT and not self.request.upgrade:  # no key makes another one safe
            self._aside = True
            self._stop_timer()
            self._timer = self.listener.loop.call_later(hedging.delay_s, self._send_hedge)

    def _send_hedge(self) -> None:
        """No answer has come for so long that another endpoint is asked too, if that may be."""
        self._timer = None
        cluster, now = self.cluster, self.listener.now()
        assert cluster is not None
        if self._hedge is not None or not self._may_retry(Failure.TIMEOUT):
            return
        endpoint = self.pick(now)
        if endpoint is None or endpoint is self.endpoint:
            return
        hedge = Hedge(self, endpoint, now)
        if hedge.endpoint is None:
            return
        self._hedge = hedge
        self._tried.insert(-1, hedge.endpoint)  # the last one is always that of the exchange's own try
        self._retries += 1
        cluster.retries += 1
        cluster.hedges += 1
        if cluster.budget is not None:
            cluster.budget.withdraw(now)

    def hedge_answered(self) -> None:
        """The hedge has an answer: it becomes the exchange's own try, and that the hedge."""
        hedge, now = self._hedge, self.listener.now()
        assert hedge is not None
        if self.upstream is None:  # it has failed, or has no connection yet
            self._drop_try()
            self._hedge = None
        elif self.endpoint is not None and self.endpoint.latency is not None:
            self.endpoint.latency.observe(now - self.sent_s, now)  # that long at least
        self.swap_seats(hedge)
        if hedge.under_way:
            hedge.expect_answer(hedge.sent_s + self.per_try_s - now)
        else:
            hedge.drop()
        self._blamed = False
        assert self.endpoint is not None
        self._tried.remove(self.endpoint)
        self._tried.append(self.endpoint)

    def hedge_failed(self, endpoint: Endpoint | None, failure: Failure, text: str) -> None:
        """The hedge, which was at `endpoint`, has no answer to give."""
        self._hedge = None
        assert self.cluster is not None
        if endpoint is not None:
            self.cluster.failed(endpoint, failure, 0, self.listener.now(), self.listener.rng)
        if self.endpoint is None:  # and neither has the other try
            self._failed(failure, text)
