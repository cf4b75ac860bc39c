"""The endpoints of one service: who may take traffic, how busy each is, and which idle connections to keep.

Everything is decided synchronously and the connections to close are returned; the caller closes them. The set of
instances is the truth and is compared as a whole, so a missed event cannot leave a stale endpoint behind. Endpoints
stay as they were last known until told otherwise: a lost registry changes nothing here.

An endpoint that left (`gone`) lives on in the requests that still use it; nothing new reaches it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic, Protocol, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Candidates, least_request
from homeport.client.core.model import Instance, InstanceKey
from homeport.sidecar.core import limits


class Connection(Protocol):
    """The pool's view of a connection: something that may have been idle for too long."""

    idle_since_s: float


C = TypeVar("C", bound=Connection)


class Endpoint(Generic[C]):
    """One instance as the balancer sees it, with its idle connections, newest last."""

    __slots__ = (
        "active", "address", "available", "failures", "gone", "idle", "idle_max_s",
        "instance", "port", "suspect", "suspect_until_s", "weight",
    )  # fmt: skip

    def __init__(self, instance: Instance) -> None:
        self.active = 0  # requests, from selection to the answer's last byte
        self.suspect = False  # failed lately
        self.suspect_until_s = 0.0
        self.failures = 0  # in a row
        self.gone = False
        self.idle: list[C] = []
        self.describe(instance)

    def describe(self, instance: Instance) -> None:
        """Take over what the registry says now; the address must not have changed."""
        self.instance = instance
        self.address = instance.address
        self.port = instance.port
        self.weight = instance.weight
        self.available = instance.available
        kept_s = instance.idle_timeout_s
        self.idle_max_s = min(limits.POOL_IDLE_S, kept_s * limits.POOL_IDLE_SHARE) if kept_s else limits.POOL_IDLE_S

    @property
    def waiting_is_hopeless(self) -> bool:
        """Whether a request that still waits here should go elsewhere; a draining instance finishes what it has."""
        return self.gone or self.instance.status == "critical"

    def take(self, now: float) -> C | None:
        """The connection used last, or None when there is none that is fresh enough."""
        idle = self.idle
        if idle and now - idle[-1].idle_since_s <= self.idle_max_s:
            return idle.pop()
        return None

    def give_back(self, connection: C, now: float) -> bool:
        """Keep a connection for the next request; False means that the caller closes it."""
        if self.gone or not self.available:
            return False
        connection.idle_since_s = now
        self.idle.append(connection)
        return True

    def forget(self, connection: C) -> None:
        """An idle connection was closed by the other end."""
        if connection in self.idle:
            self.idle.remove(connection)

    def expire(self, now: float) -> list[C]:
        """Take out the connections that have been idle too long; the oldest stand first."""
        oldest = now - self.idle_max_s
        kept = 0
        for connection in self.idle:
            if connection.idle_since_s >= oldest:
                break
            kept += 1
        closing = self.idle[:kept]
        del self.idle[:kept]
        return closing

    def failed(self, now: float) -> None:
        """A try failed for a reason that is the host's."""
        self.failures += 1
        self.suspect = True
        self.suspect_until_s = now + limits.SUSPECT_S

    def succeeded(self) -> None:
        self.failures = 0
        self.suspect = False


class Change(Generic[C]):
    """What an update asks the caller to do: connections to close, endpoints that requests should not wait for."""

    __slots__ = ("closing", "hopeless")

    def __init__(self) -> None:
        self.closing: list[C] = []
        self.hopeless: list[Endpoint[C]] = []


class Cluster(Generic[C]):
    """All endpoints of one service and its counters."""

    __slots__ = (
        "candidates", "connect_failures", "connects", "endpoints", "fixed", "known", "met",
        "replays", "requests", "retries", "service", "timeouts", "used_at_s",
    )  # fmt: skip

    def __init__(self, service: str, *, fixed: bool = False) -> None:
        self.service = service
        self.fixed = fixed  # named by the configuration, not followed in the registry
        self.known = fixed  # whether the registry has ever answered for it
        self.met = fixed  # whether it has ever had an instance
        self.used_at_s = 0.0
        self.endpoints: dict[InstanceKey, Endpoint[C]] = {}
        self.candidates: Candidates[Endpoint[C]] = Candidates()
        self.requests = [0] * 6  # final answers of upstreams by the first digit of their status; [0]: none came
        self.retries = 0
        self.replays = 0  # of which: a fresh connection to the same host, after a stale one
        self.connects = 0
        self.connect_failures = 0
        self.timeouts = 0

    def update(self, instances: Mapping[InstanceKey, Instance]) -> Change[C]:
        """Make the endpoints those of `instances`."""
        change: Change[C] = Change()
        self.known = True
        for key in [key for key in self.endpoints if key not in instances]:
            self._retire(key, change)
        for key, instance in instances.items():
            endpoint = self.endpoints.get(key)
            if endpoint is not None and (endpoint.address, endpoint.port) != (instance.address, instance.port):
                self._retire(key, change)  # the same id somewhere else is another endpoint
                endpoint = None
            if endpoint is None:
                self.endpoints[key] = Endpoint(instance)
                continue
            if endpoint.instance is instance:
                continue
            endpoint.describe(instance)
            if not endpoint.available:
                change.closing += endpoint.idle
                endpoint.idle = []
                if endpoint.waiting_is_hopeless:
                    change.hopeless.append(endpoint)
        self.met = self.met or bool(self.endpoints)
        self.candidates = Candidates(endpoint for endpoint in self.endpoints.values() if endpoint.available)
        return change

    def _retire(self, key: InstanceKey, change: Change[C]) -> None:
        endpoint = self.endpoints.pop(key)
        endpoint.gone = True
        change.closing += endpoint.idle
        endpoint.idle = []
        change.hopeless.append(endpoint)

    def pick(self, rng: Rng, tried: Collection[Endpoint[C]] = ()) -> Endpoint[C] | None:
        """Choose an endpoint outside `tried`, or at least not the last of `tried`; None when nobody is left."""
        endpoint = least_request(self.candidates, rng, tried)
        if endpoint is None and len(tried) > 1:
            *_, last = tried
            endpoint = least_request(self.candidates, rng, (last,))
        return endpoint

    def sweep(self, now: float) -> list[C]:
        """End suspicions that have lasted long enough; return the idle connections to close."""
        closing: list[C] = []
        for endpoint in self.endpoints.values():
            if endpoint.suspect and now >= endpoint.suspect_until_s:
                endpoint.suspect = False
            if endpoint.idle:
                closing += endpoint.expire(now)
        return closing

    @property
    def active(self) -> int:
        return sum(endpoint.active for endpoint in self.endpoints.values())
