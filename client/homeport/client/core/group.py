"""The endpoints of one service as a client picks among them: how busy each is, and what its answers say of it.

All of it is decided synchronously, by the policies of `balancing`. A choice is prepared when membership, health or an
ejection changes, and never altered, so that a pick is one call of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import (
    Balancing,
    Candidates,
    Latency,
    LeastRequest,
    OutlierDetector,
    Outliers,
    choose,
    fit,
    grown,
    readmit,
)
from homeport.client.core.model import Instance, InstanceKey

SUSPECT_S: Final = 1.0  # an endpoint that failed is second choice for this long, then it is tried again
GROWTH_STEP_S: Final = 0.5  # how often the weights of newcomers grow; a choice is prepared anew each time


class Endpoint:
    """One instance, what it has under way, and the evidence of its last answers."""

    __slots__ = (
        "active", "answers", "available", "ejected", "ejected_until_s", "ejections", "errors", "instance", "joined_s",
        "latency", "name", "row_5xx", "row_connect", "row_gateway", "suspect", "suspect_until_s", "weight",
    )  # fmt: skip

    def __init__(self, instance: Instance, joined_s: float, latency: Latency | None) -> None:
        self.name: str = f"{instance.node}/{instance.id}"
        self.active: int = 0
        self.joined_s: float = joined_s  # or recovered: where slow start counts from
        self.latency: Latency | None = latency  # timed only for a policy that asks
        self.answers: int = 0  # in this interval of outlier detection
        self.errors: int = 0
        self.row_5xx: int = 0
        self.row_gateway: int = 0
        self.row_connect: int = 0
        self.ejected: bool = False
        self.ejected_until_s: float = 0.0
        self.ejections: int = 0
        self.suspect: bool = False  # failed lately
        self.suspect_until_s: float = 0.0
        self.describe(instance)

    def describe(self, instance: Instance) -> None:
        """Take over what the registry says now; the address must not have changed."""
        self.instance: Instance = instance
        self.weight: float = instance.weight
        self.available: bool = instance.available


class Group:
    """All endpoints of one service; `now` is seconds of any clock that never goes back.

    Attributes:
        choice: what `pick` asks; replaced whenever something changes.
        moves: whether a pick changes what the next one sees, or asks for the time.
        timed: whether outcomes should say how long they took.
        unsettled: whether `sweep` has anything to do.
    """

    __slots__ = (
        "_met", "_outliers", "_settings", "_warming", "_weighed_at_s", "choice", "endpoints", "moves", "timed",
        "unsettled",
    )  # fmt: skip

    def __init__(self, settings: Balancing, outliers: Outliers | None) -> None:
        self._settings = settings
        self._outliers = OutlierDetector(outliers) if outliers is not None else None
        self._met = False
        self._warming = False
        self._weighed_at_s = 0.0
        self.timed: bool = settings.policy == "peak-ewma"
        self.moves: bool = self.timed or settings.policy == "round-robin"
        self.unsettled: bool = False
        self.endpoints: dict[InstanceKey, Endpoint] = {}
        self.choice: Candidates[Endpoint] = LeastRequest()

    def update(self, instances: Mapping[InstanceKey, Instance], now: float) -> None:
        """Make the endpoints those of `instances`; slow start counts from `now`, but not for the first set."""
        joins_s = now if self._met else float("-inf")
        kept: dict[InstanceKey, Endpoint] = {}
        for key, instance in instances.items():
            known = self.endpoints.get(key)
            if known is None or (known.instance.address, known.instance.port) != (instance.address, instance.port):
                kept[key] = Endpoint(instance, joins_s, Latency(now) if self.timed else None)
                continue
            kept[key] = known
            was = known.instance
            known.describe(instance)
            # A probe found it well, or another process is there now: that is stronger than old failures.
            if known.available and (was.create_revision != instance.create_revision or not was.available):
                known.joined_s = now
                readmit(known)
        self.endpoints = kept
        self._met = self._met or bool(kept)
        self._weigh(now)

    def _weigh(self, now: float) -> None:
        """Prepare the choice anew."""
        self._weighed_at_s = now
        slow_start_s = self._settings.slow_start_s
        if slow_start_s:
            self._warming = False
            for endpoint in self.endpoints.values():
                factor = grown(now - endpoint.joined_s, slow_start_s)
                endpoint.weight = endpoint.instance.weight * factor
                self._warming = self._warming or factor < 1.0
            self.unsettled = self.unsettled or self._warming
        self.choice = choose(self._settings, self.endpoints.values())

    def pick_other(self, rng: Rng, tried: Collection[Endpoint], now: float, key: bytes | None) -> Endpoint | None:
        """An endpoint outside `tried` while there is one, an ejected one too; else any; None when there is none."""
        endpoint = self.choice.pick(rng, tried, now, key)
        if endpoint is None:
            fallen = [each for each in fit(self._settings, self.endpoints.values()) if each.ejected]
            endpoint = LeastRequest(fallen).pick(rng, tried)
        return endpoint if endpoint is not None else self.choice.pick(rng, (), now, key)

    def succeeded(self, endpoint: Endpoint, took_s: float | None, now: float) -> None:
        """An answer was a good one."""
        endpoint.answers += 1
        endpoint.suspect = False
        endpoint.row_5xx = endpoint.row_gateway = endpoint.row_connect = 0
        if took_s is not None and endpoint.latency is not None:
            endpoint.latency.observe(took_s, now)

    def failed(self, endpoint: Endpoint, status: int, now: float, rng: Rng, *, refused: bool) -> None:
        """An answer of `status` was none of a healthy host, or (0) none came; `refused`: no connection came to be."""
        self.unsettled = True
        endpoint.suspect = True
        endpoint.suspect_until_s = now + SUSPECT_S
        if status:
            endpoint.answers += 1
        if self._outliers is None or self.endpoints.get(endpoint.instance.key) is not endpoint:
            return
        if self._outliers.failed(endpoint, status, self.endpoints.values(), now, rng, refused=refused):
            self._weigh(now)

    def sweep(self, now: float, rng: Rng) -> None:
        """End suspicions and ejections that have lasted long enough, and compare success rates."""
        changed = self._warming and now >= self._weighed_at_s + GROWTH_STEP_S
        self.unsettled = self._warming
        for endpoint in self.endpoints.values():
            if endpoint.suspect and now >= endpoint.suspect_until_s:
                endpoint.suspect = False
            if endpoint.ejected and now >= endpoint.ejected_until_s:
                endpoint.joined_s = now
                readmit(endpoint)
                changed = True
            if endpoint.suspect or endpoint.ejected or endpoint.ejections or endpoint.errors:
                self.unsettled = True
        if self._outliers is not None and self._outliers.sweep(self.endpoints.values(), now, rng):
            changed = True
        if changed:
            self._weigh(now)

    @property
    def ejected(self) -> int:
        """How many endpoints are left alone at present."""
        return sum(endpoint.ejected for endpoint in self.endpoints.values())
