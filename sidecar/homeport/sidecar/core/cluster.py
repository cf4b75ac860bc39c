"""The endpoints of one service: who may take traffic, how busy each is, and which idle connections to keep.

Everything is decided synchronously and the connections to close are returned; the caller closes them. The set of
instances is the truth and is compared as a whole, so a missed event cannot leave a stale endpoint behind. Endpoints
stay as they were last known until told otherwise: a lost registry changes nothing here.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Final, Generic

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import (
    Balancing,
    Candidates,
    Latency,
    LeastRequest,
    OutlierDetector,
    Subset,
    choose,
    fit,
    grown,
    readmit,
)
from homeport.client.core.model import Instance, InstanceKey
from homeport.sidecar.core import histogram, limits
from homeport.sidecar.core.adaptive import AdaptiveLimit
from homeport.sidecar.core.affinity import Affinity
from homeport.sidecar.core.budget import RetryBudget
from homeport.sidecar.core.circuit import CircuitBreaker
from homeport.sidecar.core.endpoint import C, Endpoint
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.router import Router
from homeport.sidecar.core.settings import DEFAULT, UNLIMITED, Retries, ServiceSettings

VIEWS_MAX: Final = 64  # sets of instances that routes lead to; each is prepared anew whenever an endpoint changes


class Change(Generic[C]):
    """What an update asks the caller to do: connections to close, endpoints that requests should not wait for."""

    __slots__ = ("closing", "hopeless")

    def __init__(self) -> None:
        self.closing: list[C] = []
        self.hopeless: list[Endpoint[C]] = []


class View(Generic[C]):
    """A choice among some of a cluster's endpoints, kept as current as the choice among all of them."""

    __slots__ = ("candidates", "settings")

    def __init__(self, settings: Balancing) -> None:
        self.settings = settings
        self.candidates: Candidates[Endpoint[C]] = LeastRequest()


class Cluster(Generic[C]):
    """All endpoints of one service and its counters; each optional feature is an object of its own, None when off."""

    __slots__ = (
        "_views", "_warming", "_weighed_at_s", "adaptive", "affinity", "budget", "candidates", "circuit",
        "connect_failures", "connects", "endpoints", "first_byte_s", "fixed", "hedges", "hedges_won", "hedging",
        "known", "met", "outliers", "per_try_s", "plain", "replays", "requests", "retries", "retry_settings",
        "router", "service", "settings", "timeouts", "times", "times_sum_s", "used_at_s",
    )  # fmt: skip

    def __init__(
        self,
        service: str,
        settings: ServiceSettings = DEFAULT,
        *,
        fixed: bool = False,
        followed: bool = False,
        per_try_s: float = limits.Timeouts().first_byte_s,
    ) -> None:
        self.service = service
        self.first_byte_s = per_try_s  # where the settings do not say otherwise
        self.router: Router | None = None  # its routes, if it has any; see `route`
        self.plain = True  # whether its requests need nothing but a plain exchange
        self._views: dict[Hashable, View[C]] = {}
        self.endpoints: dict[InstanceKey, Endpoint[C]] = {}
        # What cannot be counted from the middle on: a service that is followed is counted whether it has limits or not.
        counted = settings.circuit is not None or followed
        self.circuit = CircuitBreaker(settings.circuit or UNLIMITED) if counted else None
        self.outliers: OutlierDetector | None = None
        self._warming = False  # somebody's weight still grows
        self._weighed_at_s = 0.0
        self.fixed = fixed  # named by the configuration, not followed in the registry
        self.known = fixed  # whether the registry has ever answered for it
        self.met = fixed  # whether it has ever had an instance
        self.used_at_s = 0.0
        self.candidates: Candidates[Endpoint[C]] = LeastRequest()
        self.requests = [0] * 6  # final answers of upstreams by the first digit of their status; [0]: none came
        self.times = [0] * histogram.SIZE  # from sending a request to its answer's head, see `histogram`
        self.times_sum_s = 0.0
        self.retries = 0
        self.replays = 0  # of which: a fresh connection to the same host, after a stale one
        self.hedges = 0  # of the retries: beside a try that had not failed
        self.hedges_won = 0  # of which: answered first
        self.connects = 0
        self.connect_failures = 0
        self.timeouts = 0
        self._take(settings)

    def _take(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.per_try_s = settings.per_try_s or self.first_byte_s
        self.retry_settings: Retries | None = settings.retries
        self.hedging = settings.hedging
        budget = settings.retries.budget if settings.retries is not None else None
        self.budget = RetryBudget(budget) if budget is not None else None
        before = self.outliers
        self.outliers = OutlierDetector(settings.outliers) if settings.outliers is not None else None
        if before is not None and self.outliers is not None:  # counters only rise
            self.outliers.ejections, self.outliers.spared = before.ejections, before.spared
        if self.circuit is not None:
            self.circuit.limit(settings.circuit or UNLIMITED)
        self.adaptive = AdaptiveLimit(settings.adaptive) if settings.adaptive is not None else None
        if self.adaptive is not None and self.circuit is not None:
            self.circuit.requests_max = self.adaptive.sweep(0.0, 0)
        hash_on = settings.balancing.hash_on
        self.affinity = Affinity(hash_on) if hash_on is not None else None
        self.route(self.router)

    def route(self, router: Router | None) -> None:
        """Let these routes decide from now on; None: there are none."""
        self.router = router
        self.plain = router is None and self.settings.idempotency is None

    def configure(self, settings: ServiceSettings, now: float) -> None:
        """Go on under other settings; requests, connections and ejections stay as they are."""
        if settings == self.settings:
            return
        self._take(settings)
        timed = settings.balancing.policy == "peak-ewma"
        for endpoint in self.endpoints.values():
            endpoint.latency = (endpoint.latency or Latency(now)) if timed else None
            endpoint.weight = endpoint.instance.weight
        self._warming = False
        self._views.clear()
        self._weigh(now)

    def view(self, key: Hashable, subset: Subset) -> View[C]:
        """The choice among the endpoints of `subset`, which is known by `key`."""
        found = self._views.get(key)
        if found is None:
            if len(self._views) >= VIEWS_MAX:  # of routes that are long gone, most likely; the others come back
                self._views.clear()
            found = self._views[key] = View(msgspec.structs.replace(self.settings.balancing, subset=subset))
            found.candidates = choose(found.settings, self.endpoints.values())
        return found

    def update(self, instances: Mapping[InstanceKey, Instance], now: float = 0.0) -> Change[C]:
        """Make the endpoints those of `instances`; slow start counts from `now`, but not for the first set."""
        change: Change[C] = Change()
        joins_s = now if self.met else float("-inf")
        self.known = True
        for key in [key for key in self.endpoints if key not in instances]:
            self._retire(key, change)
        for key, instance in instances.items():
            endpoint = self.endpoints.get(key)
            if endpoint is not None and (endpoint.address, endpoint.port) != (instance.address, instance.port):
                self._retire(key, change)  # the same id somewhere else is another endpoint
                endpoint = None
            if endpoint is None:
                endpoint = self.endpoints[key] = Endpoint(instance, self.circuit)
                endpoint.joined_s = joins_s
                if self.settings.balancing.policy == "peak-ewma":
                    endpoint.latency = Latency(now)
                continue
            if endpoint.instance is instance:
                continue
            was_available = endpoint.available
            registered_anew = endpoint.instance.create_revision != instance.create_revision
            endpoint.describe(instance)
            # A probe found it well, or another process is there now: that is stronger than old failures.
            if endpoint.available and (registered_anew or not was_available):
                self._readmit(endpoint, now)
            if not endpoint.available:
                change.closing += endpoint.idle
                endpoint.idle = []
                if endpoint.waiting_is_hopeless:
                    change.hopeless.append(endpoint)
        self.met = self.met or bool(self.endpoints)
        self._weigh(now)
        return change

    @staticmethod
    def _readmit(endpoint: Endpoint[C], now: float) -> None:
        endpoint.joined_s = now
        readmit(endpoint)

    def _weigh(self, now: float) -> None:
        """Prepare the choice anew: somebody came, left, was ejected or readmitted, or has grown."""
        self._weighed_at_s = now
        slow_start_s = self.settings.balancing.slow_start_s
        if slow_start_s:
            self._warming = False
            for endpoint in self.endpoints.values():
                factor = grown(now - endpoint.joined_s, slow_start_s)
                endpoint.weight = endpoint.instance.weight * factor
                self._warming = self._warming or factor < 1.0
        self.candidates = choose(self.settings.balancing, self.endpoints.values())
        for view in self._views.values():
            view.candidates = choose(view.settings, self.endpoints.values())

    def _retire(self, key: InstanceKey, change: Change[C]) -> None:
        endpoint = self.endpoints.pop(key)
        endpoint.gone = True
        change.closing += endpoint.idle
        endpoint.idle = []
        change.hopeless.append(endpoint)

    def pick(
        self,
        rng: Rng,
        tried: Collection[Endpoint[C]] = (),
        now: float = 0.0,
        key: bytes | None = None,
        view: View[C] | None = None,
    ) -> Endpoint[C] | None:
        """Choose an endpoint outside `tried`, or at least not the last of `tried`; None when nobody is left.

        An ejected endpoint is a better second try than none. `view`: only some of the endpoints.
        """
        candidates = self.candidates if view is None else view.candidates
        endpoint = candidates.pick(rng, tried, now, key)
        if endpoint is not None or not tried:
            return endpoint
        settings = self.settings.balancing if view is None else view.settings
        fallen = [each for each in fit(settings, self.endpoints.values()) if each.ejected]
        endpoint = LeastRequest(fallen).pick(rng, tried)
        if endpoint is None and len(tried) > 1:
            *_, last = tried
            endpoint = candidates.pick(rng, (last,), now, key)
        return endpoint

    def failed(
        self,
        endpoint: Endpoint[C],
        failure: Failure | None,
        status: int,
        now: float,
        rng: Rng,
        *,
        answered: bool = False,
    ) -> None:
        """A try failed for a reason that is the host's.

        Args:
            failure: None: its answer of `status` is final.
            answered: there was an answer, which has been counted, and was then cut off.
        """
        endpoint.failed(now)
        outliers = self.outliers
        if outliers is None or endpoint.gone or failure is Failure.STALE or failure is Failure.GONE:
            return  # those two are the connection's fault, and what the registry knows already
        refused = failure is Failure.REFUSED
        hosts = self.endpoints.values()
        if outliers.failed(endpoint, status, hosts, now, rng, refused=refused, answered=answered):
            self._weigh(now)

    def agree(self, key: InstanceKey, now: float, lasts_s: float) -> None:
        """Another process of this sidecar has ejected an endpoint for so long."""
        endpoint = self.endpoints.get(key)
        outliers = self.outliers
        if endpoint is None or outliers is None:
            return
        if outliers.agree(endpoint, self.endpoints.values(), now + lasts_s):
            self._weigh(now)

    def may_afford(self, failure: Failure, now: float) -> bool:
        """Whether budget and circuit have room for one more retry."""
        circuit, budget = self.circuit, self.budget
        if circuit is not None and circuit.retries >= circuit.retries_max:
            return False
        return budget is None or not failure.charged or budget.affords(now)

    def sweep(self, now: float, rng: Rng) -> list[C]:
        """End suspicions and ejections that have lasted long enough; return the idle connections to close."""
        if self.budget is not None:
            self.budget.sweep(now)
        if self.adaptive is not None and self.circuit is not None:
            self.circuit.requests_max = self.adaptive.sweep(now, self.circuit.requests)
        changed = self._warming and now >= self._weighed_at_s + limits.GROWTH_STEP_S
        closing: list[C] = []
        for endpoint in self.endpoints.values():
            if endpoint.suspect and now >= endpoint.suspect_until_s:
                endpoint.suspect = False
            if endpoint.ejected and now >= endpoint.ejected_until_s:
                self._readmit(endpoint, now)
                changed = True
            if endpoint.idle:
                closing += endpoint.expire(now)
        if self.outliers is not None and self.outliers.sweep(self.endpoints.values(), now, rng):
            changed = True
        if changed:
            self._weigh(now)
        return closing

    # For operators: what the optional features have counted.

    @property
    def retries_unpaid(self) -> int:
        return self.budget.exhausted if self.budget is not None else 0

    @property
    def overflows(self) -> int:
        return self.circuit.overflows if self.circuit is not None else 0

    @property
    def ejections(self) -> int:
        return self.outliers.ejections if self.outliers is not None else 0

    @property
    def ejections_spared(self) -> int:
        return self.outliers.spared if self.outliers is not None else 0

    @property
    def active(self) -> int:
        return sum(endpoint.active for endpoint in self.endpoints.values())
