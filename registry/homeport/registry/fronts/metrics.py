"""Numbers for Prometheus, made when scraped: the store's, the catalogue's and the HTTP front's own.

The front counts in plain integers; a collector turns them into metrics, so that counting costs an addition.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from homeport.client.core.model import Status
from homeport.registry.fronts.consul import shapes
from homeport.registry.fronts.consul.answers import Answer

if TYPE_CHECKING:
    from homeport.registry.fronts.consul.agent import Agent
    from homeport.registry.fronts.consul.calls import Call

# Numbers of the store that only grow; the others are gauges.
_STORE_COUNTERS: Final = frozenset(
    {"commits", "etcd_batches", "etcd_conflicts", "etcd_resyncs", "journal_batches", "renewals"}
)


class FrontNumbers:
    """What the HTTP front counts."""

    __slots__ = ("blocked", "body_bytes", "connections", "connections_cut", "connections_refused", "requests", "wakes")

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by row of the table and status
        self.connections = 0
        self.connections_refused = 0
        self.connections_cut = 0  # of clients that were too slow
        self.blocked = 0  # queries that wait now
        self.body_bytes = 0  # of bodies that are being read now
        self.wakes = 0  # queries that were woken by a change


class _Collector:
    """Reads the numbers at the moment of the scrape."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        agent = self._agent
        for name, value in agent.store.numbers().items():
            if name in _STORE_COUNTERS:
                yield CounterMetricFamily(f"homeport_store_{name}", f"The store's {name}.", value=value)
            else:
                yield GaugeMetricFamily(f"homeport_store_{name}", f"The store's {name.replace('_', ' ')}.", value=value)
        for name, value in agent.operations.doubts.numbers().items():
            kind = CounterMetricFamily if name == "mass_expiries" else GaugeMetricFamily
            yield kind(f"homeport_{name}", f"{name.replace('_', ' ').capitalize()}.", value=value)
        yield GaugeMetricFamily("homeport_services", "Services with an instance.", value=len(agent.catalogue.services))
        instances = GaugeMetricFamily("homeport_instances", "Instances by status.", labels=["status"])
        statuses = Counter(
            entry.seen.status for service in agent.catalogue.services.values() for entry in service.entries.values()
        )
        for status in get_args(Status):
            instances.add_metric([status], statuses[status])
        yield instances
        yield GaugeMetricFamily("homeport_tasks", "asyncio tasks of the process.", value=len(asyncio.all_tasks()))
        yield GaugeMetricFamily("homeport_watches", "Watches of RPC clients.", value=agent.operations.peers.watches)
        front = agent.numbers
        yield GaugeMetricFamily("homeport_http_connections", "Open HTTP connections.", value=front.connections)
        yield CounterMetricFamily(
            "homeport_http_connections_refused", "HTTP connections beyond the limit.", value=front.connections_refused
        )
        yield CounterMetricFamily(
            "homeport_http_connections_cut", "HTTP connections of clients too slow.", value=front.connections_cut
        )
        yield GaugeMetricFamily("homeport_http_blocked_queries", "Blocking queries that wait.", value=front.blocked)
        yield GaugeMetricFamily("homeport_http_body_bytes", "Bytes of bodies being read.", value=front.body_bytes)
        yield CounterMetricFamily("homeport_http_wakes", "Blocking queries woken by a change.", value=front.wakes)
        requests = CounterMetricFamily(
            "homeport_http_requests", "HTTP requests by endpoint and status.", labels=["endpoint", "status"]
        )
        for (endpoint, http_status), count in sorted(front.requests.items()):
            requests.add_metric([endpoint, str(http_status)], count)
        yield requests


def exposition(call: Call) -> Answer:
    """The page that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(call.agent))
    return Answer(body=generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def telemetry(agent: Agent) -> shapes.Metrics:
    """The same numbers in the shape of Consul's agent, counters since the front opened."""
    age_s = max(asyncio.get_running_loop().time() - agent.started, 1.0)
    gauges: list[shapes.Gauge] = []
    counters: list[shapes.Counted] = []
    for family in _Collector(agent).collect():
        for sample in family.samples:
            if family.type == "gauge":
                gauges.append(shapes.Gauge(name=sample.name, value=sample.value, labels=sample.labels))
            elif sample.value:
                counters.append(_counted(sample.name, sample.value, sample.labels, age_s))
    now = dt.datetime.now(dt.UTC)
    return shapes.Metrics(
        timestamp=now.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"), gauges=tuple(gauges), counters=tuple(counters)
    )


def _counted(name: str, value: float, labels: dict[str, str], age_s: float) -> shapes.Counted:
    """A counter of ours: it was raised by one each time."""
    return shapes.Counted(
        name=name, count=int(value), rate=value / age_s, sum=value, min=1, max=1, mean=1, stddev=0, labels=labels
    )
