"""Who may take traffic at all, before any policy picks: subset, health, panic and zone, in this order.

Health decides first who is a candidate. When fewer than half of at least `PANIC_FROM` endpoints are healthy, the
evidence is more likely wrong than the endpoints, and the few that are left would be overrun: then all of them are
candidates. Who *says* that it will not serve (draining, maintenance, deregistered) never is one, panic or not.

A zone gets the share of traffic that it has capacity for: all of it while its healthy weight is at least 1/1.4 of its
whole weight, proportionally less below (Envoy's overprovisioning factor); the rest goes to the other zones. In a panic
zones do not count: nobody knows who is healthy, and a zone that is down would get all that its own clients ask.
A subset stays one in a panic: who is not in it serves something else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates
from homeport.client.core.balancing.least_request import LeastRequest
from homeport.client.core.balancing.maglev import Maglev, Named
from homeport.client.core.balancing.peak_ewma import Measured, PeakEwma
from homeport.client.core.balancing.round_robin import RoundRobin
from homeport.client.core.balancing.settings import Balancing
from homeport.client.core.model import Instance

PANIC_FROM: Final = 5  # endpoints: among fewer, one or two failures are half, and no reason to doubt the evidence
SPARE: Final = 1.4  # capacity that a zone is thought to have over its need
GROWTH_LEAST: Final = 0.1  # what a newcomer's weight starts from


class Target(Named, Measured, Protocol):
    """An endpoint of a service: what the registry says of it, and whether passive evidence speaks against it."""

    @property
    def instance(self) -> Instance: ...
    @property
    def available(self) -> bool: ...
    @property
    def ejected(self) -> bool: ...


T = TypeVar("T", bound=Target)


def serving(instance: Instance) -> bool:
    """Whether an instance is meant to serve, well or not."""
    return instance.state == "up" and instance.status != "maintenance"


def meant(settings: Balancing, endpoints: Iterable[T]) -> list[T]:
    """The endpoints that are to serve these requests, well or not."""
    up = [endpoint for endpoint in endpoints if serving(endpoint.instance)]
    subset = settings.subset
    if subset is None:
        return up
    inside = [endpoint for endpoint in up if subset.matches(endpoint.instance)]
    if subset.fallback == "none" or any(endpoint.available for endpoint in inside):
        return inside
    return up


def fit(settings: Balancing, endpoints: Iterable[T]) -> list[T]:
    """Those of them that the registry says are well, whatever passive evidence says."""
    return [endpoint for endpoint in meant(settings, endpoints) if endpoint.available]


def eligible(settings: Balancing, endpoints: Iterable[T]) -> list[T]:
    """The endpoints to choose from, by subset, health and panic."""
    everyone = meant(settings, endpoints)
    if panics(settings, everyone):
        return everyone
    available = [endpoint for endpoint in everyone if endpoint.available]
    healthy = [endpoint for endpoint in available if not endpoint.ejected]
    return healthy or available  # an ejection is an opinion: it never leaves nobody


def panics(settings: Balancing, everyone: Collection[T]) -> bool:
    """Whether so few of those that are `meant` to serve are healthy that the evidence is doubted."""
    healthy = sum(endpoint.available and not endpoint.ejected for endpoint in everyone)
    return len(everyone) >= PANIC_FROM and healthy < settings.panic * len(everyone)


class Zoned(Candidates[T]):
    """The own zone first. `near` and `far` are choices of any policy; `share` of the picks go to `near`."""

    __slots__ = ("far", "near", "share")

    def __init__(self, near: Candidates[T], far: Candidates[T], share: float) -> None:
        super().__init__((*near.members, *far.members))
        self.near: Candidates[T] = near
        self.far: Candidates[T] = far
        self.share: float = share

    def pick(self, rng: Rng, excluded: Collection[T] = (), now: float = 0.0, key: bytes | None = None) -> T | None:
        near = self.share >= 1.0 or rng.random() < self.share
        first, second = (self.near, self.far) if near else (self.far, self.near)
        endpoint = first.pick(rng, excluded, now, key)
        return endpoint if endpoint is not None else second.pick(rng, excluded, now, key)


def near_share(near_healthy: Sequence[T], near_all: Iterable[T]) -> float:
    """The share of the traffic that a zone can take, 0 to 1."""
    whole = sum(endpoint.instance.weight for endpoint in near_all)
    if not whole:
        return 1.0 if near_healthy else 0.0
    return min(1.0, SPARE * sum(endpoint.instance.weight for endpoint in near_healthy) / whole)


def choose(settings: Balancing, endpoints: Collection[T]) -> Candidates[T]:
    """Prepare the choice that these settings describe."""
    members = eligible(settings, endpoints)
    prepare = _policy(settings)
    if settings.zone and not panics(settings, meant(settings, endpoints)):
        near = [endpoint for endpoint in members if endpoint.instance.zone == settings.zone]
        far = [endpoint for endpoint in members if endpoint.instance.zone != settings.zone]
        if near and far:
            whole = [each for each in meant(settings, endpoints) if each.instance.zone == settings.zone]
            return Zoned(prepare(near), prepare(far), near_share(near, whole))
    return prepare(members)


def _policy(settings: Balancing) -> Callable[[Iterable[T]], Candidates[T]]:
    match settings.policy:
        case "least-request":
            return LeastRequest
        case "peak-ewma":
            return PeakEwma
        case "round-robin":
            return RoundRobin
        case "maglev":
            return Maglev


def grown(age_s: float, slow_start_s: float) -> float:
    """The factor of the weight of an endpoint that joined or recovered `age_s` ago."""
    if age_s >= slow_start_s:
        return 1.0
    return max(GROWTH_LEAST, age_s / slow_start_s)
