"""A request to a service that has routes: what its route says happens here, around an ordinary exchange.

Strategy: services without routes pay one comparison. A service that has some gets this exchange in the place of the
plain one as soon as the request is routed; it differs in how it begins, in which endpoints it picks, and in what it
changes on the way. The order is that of `core.routing.Route`.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from homeport.sidecar.core.router import Place, RoutePlan
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.core.routing import RouteRetries
from homeport.sidecar.core.settings import Retries
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Cluster, Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.outbound import Outbound

_NEVER: Final = float("inf")
_PERCENT: Final = 100.0


class RoutedExchange(Exchange):
    """Takes the place of `plain`, which has been routed to `cluster` and has done nothing yet."""

    _plan: RoutePlan | None = None
    _mirroring = False  # a copy is to be sent once the request is whole

    def __init__(self, plain: Tries, cluster: Cluster, outbound: Outbound) -> None:
        super().__init__(plain.downstream, plain.request)
        self.take_over(plain)
        self.cluster = cluster
        self._outbound = outbound
        self._asked = cluster
        self.downstream.exchange = self

    def begin_routed(self) -> None:
        """Do what the route says."""
        request, listener = self.request, self.listener
        router = self._asked.router
        target = b"" if request.connect else request.target  # a CONNECT has no path
        plan = self._plan = router.find(request.method, target, request.lines) if router is not None else None
        if plan is None:
            self._go(Place("", None))
            return
        route, now = plan.route, listener.now()
        if route.timeout_s:
            self.ends_s = now + route.timeout_s
        if plan.bucket is not None:
            wait_s = plan.bucket.take(now)
            if wait_s:
                again = b"Retry-After: %d" % ceil(wait_s)
                self._refuse(Refusal(429, "RL", f"{self._named} takes no more requests for now", (again,)))
                return
        if route.redirect is not None:
            where = plan.location(request.target, request.host, listener.scheme)
            self._refuse(Refusal(route.redirect.status, "", "see Location", (b"Location: %b" % where,)))
            return
        fault = route.fault
        if fault is not None and fault.delay_s and listener.rng.random() * _PERCENT < fault.delay_percent:
            self.downstream.deadline_s = _NEVER
            self._timer = listener.loop.call_later(fault.delay_s, self._after_delay, plan)
        else:
            self._perhaps_abort(plan)

    def _after_delay(self, plan: RoutePlan) -> None:
        self._timer = None
        self._outbound.delayed += 1
        if self.seen is not None:
            self.seen.flag = "DI"
        self._perhaps_abort(plan)

    def _perhaps_abort(self, plan: RoutePlan) -> None:
        fault, rng = plan.route.fault, self.listener.rng
        if fault is not None and fault.abort_status and rng.random() * _PERCENT < fault.abort_percent:
            self._refuse(Refusal(fault.abort_status, "FI", f"{self._named} answers so on purpose"))
        else:
            self._go(plan.place(rng))

    @property
    def _named(self) -> str:
        assert self._plan is not None
        name = self._plan.route.name
        return f"the route {name!r} of {self._asked.service!r}" if name else f"a route of {self._asked.service!r}"

    def _go(self, place: Place) -> None:
        """Send the request where it has been decided to go."""
        listener, plan, request = self.listener, self._plan, self.request
        try:
            cluster = self.cluster = self._outbound.cluster_at(place, self._asked)
            if plan is not None and not request.connect:
                if plan.rewrite is not None:
                    host = plan.rewrite.host.encode() or request.host
                    request.retarget(host, plan.rewritten(request.target))
                if plan.request_edits is not None:
                    request.lines = plan.request_edits.applied(request.lines)
            self._prepare(cluster)
            self._wire = listener.encode_request(request, self.downstream)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if place.view is not None and place.subset is not None:
            self._view = cluster.view(place.view, place.subset)
        if cluster.affinity is not None:
            self._key = cluster.affinity.key(request.lines, self.downstream.peer)
        if plan is not None and plan.mirror is not None and not request.connect and not request.upgrade:
            assert plan.route.mirror is not None
            self._mirroring = listener.rng.random() * _PERCENT < plan.route.mirror.percent
            self._perhaps_mirror(plan.mirror)
        if cluster.known:
            self.try_first()
        else:
            self.downstream.deadline_s = listener.now() + listener.timeouts.known_s
            listener.wait_known(cluster, self)

    def _prepare(self, cluster: Cluster) -> None:
        """The last change of a request before it goes to `cluster`."""

    def _perhaps_mirror(self, place: Place) -> None:
        if not (self._mirroring and self.request_done):
            return
        self._mirroring = False
        assert self._plan is not None
        if self._held is not None and self._outbound.mirror(self, self._asked, place, self._wire, b"".join(self._held)):
            self._plan.mirrored += 1
        else:
            self._outbound.mirrors_dropped += 1

    def try_first(self) -> None:
        cluster, listener = self.cluster, self.listener
        assert cluster is not None
        now = listener.now()
        endpoint = self.pick(now)
        if endpoint is None:
            self._refuse(listener.nobody(cluster))
            return
        if cluster.budget is not None:
            cluster.budget.deposits += 1
        self._try(endpoint, now, fresh=self.request.connect)

    def request_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        super().request_piece(piece, done, trailers)
        if done and self._mirroring and self._plan is not None and self._plan.mirror is not None and self._wire:
            self._perhaps_mirror(self._plan.mirror)

    # What a route decides otherwise.

    @property
    def per_try_s(self) -> float:
        own = self._plan.route.per_try_s if self._plan is not None else 0.0
        return own or super().per_try_s

    @property
    def total_s(self) -> float:
        own = self._plan.route.timeout_s if self._plan is not None else 0.0
        return own or super().total_s

    @property
    def retry_settings(self) -> Retries | RouteRetries | None:
        own = self._plan.route.retries if self._plan is not None else None
        return own if own is not None else super().retry_settings

    def pick(self, now: float) -> Endpoint | None:
        assert self.cluster is not None
        return self.cluster.pick(self.listener.rng, self._tried, now, self._key, self._view)

    def _send(self, upstream: Upstream, now: float) -> None:
        super()._send(upstream, now)
        if self.request_done and not self.begun:
            self.downstream.deadline_s = now + self.per_try_s

    def _deliver(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        if self._plan is not None and self._plan.response_edits is not None:
            head.lines = self._plan.response_edits.applied(head.lines)
        super()._deliver(head, piece, done, trailers)
