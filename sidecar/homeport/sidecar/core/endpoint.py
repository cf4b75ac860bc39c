"""One instance as the balancer sees it: what it has under way, the evidence of its answers, its idle connections.

An endpoint that left (`gone`) lives on in the requests that still use it; nothing new reaches it.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from homeport.client.core.balancing import Latency
from homeport.client.core.model import Instance
from homeport.sidecar.core import limits
from homeport.sidecar.core.circuit import CircuitBreaker
from homeport.sidecar.core.idempotency import NO_TOKEN


class Connection(Protocol):
    """The pool's view of a connection: something that may have been idle for too long."""

    idle_since_s: float


C = TypeVar("C", bound=Connection)


class Endpoint(Generic[C]):
    """One instance as the balancer sees it, with its idle connections, newest last."""

    __slots__ = (
        "active", "address", "answers", "answers_total", "available", "circuit", "ejected", "ejected_until_s",
        "ejections", "errors", "failures", "gone", "idle", "idle_max_s", "instance", "joined_s",
        "latency", "memory_token", "name", "port", "row_5xx", "row_connect", "row_gateway", "suspect",
        "suspect_until_s", "times_sum_s", "weight",
    )  # fmt: skip

    def __init__(self, instance: Instance, circuit: CircuitBreaker | None = None) -> None:
        self.name = f"{instance.node}/{instance.id}"
        self.circuit = circuit  # the cluster's: connections are counted where they open and close
        self.latency: Latency | None = None  # timed only for a policy that asks
        self.joined_s = float("-inf")  # or recovered: where slow start counts from
        self.answers_total = 0
        self.times_sum_s = 0.0  # how long all of those took
        self.answers = self.errors = 0  # in this interval of outlier detection
        self.row_5xx = self.row_gateway = self.row_connect = 0
        self.ejected = False
        self.ejected_until_s = 0.0
        self.ejections = 0
        self.active = 0  # requests, from selection to the answer's last byte
        self.suspect = False  # failed lately
        self.suspect_until_s = 0.0
        self.failures = 0  # in a row
        self.gone = False
        self.idle: list[C] = []
        self.memory_token = NO_TOKEN  # what its inbound said last of what it remembers
        self.describe(instance)

    def describe(self, instance: Instance) -> None:
        """Take over what the registry says now; the address must not have changed."""
        self.instance = instance
        self.address = instance.address
        self.port = instance.port
        self.weight: float = instance.weight
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

    def put_back(self, connection: C) -> None:
        """It was taken and not used: the newest is what it was before."""
        self.idle.append(connection)

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
        self.failures = self.row_5xx = self.row_gateway = self.row_connect = 0
        self.suspect = False
