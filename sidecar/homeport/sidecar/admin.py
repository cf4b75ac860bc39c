"""The sidecar's own HTTP port, for operators and scrapers: /ready, /clusters, /stats, /metrics and POST /drain.

Counters are plain integers that the data path adds to; they become metrics only here, when somebody asks.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from homeport.sidecar.core.histogram import BOUNDS_S
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.http1.upstream import Cluster
from homeport.sidecar.inbound import Inbound
from homeport.sidecar.observer import Observer
from homeport.sidecar.outbound import Outbound
from homeport.sidecar.tcp import TcpListener

# What every worker says of the same thing, and must not be added.
_GREATEST: Final = ("_age_seconds", "_held", "_endpoints", "_endpoints_available", "_endpoints_ejected")
_BOUNDS: Final = (*(repr(bound) for bound in BOUNDS_S), "+Inf")
_CLASSES: Final = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


class Watched(Protocol):
    """What the admin port shows: a sidecar."""

    outbound: Outbound | None
    inbound: Inbound | None
    tcp: list[TcpListener]
    observer: Observer | None

    @property
    def draining(self) -> bool: ...
    async def drain(self) -> bool: ...


def _listeners(sidecar: Watched) -> list[Listener]:
    return [listener for listener in (sidecar.outbound, sidecar.inbound) if listener is not None]


def _clusters(sidecar: Watched) -> Iterator[tuple[str, Cluster]]:
    if sidecar.outbound is not None:
        for cluster in sidecar.outbound.clusters.values():
            yield "outbound", cluster
    if sidecar.inbound is not None:
        yield "inbound", sidecar.inbound.app


def clusters(sidecar: Watched) -> list[dict[str, object]]:
    """Every service in use, with its endpoints, as plain values."""
    listing: list[dict[str, object]] = []
    for direction, cluster in _clusters(sidecar):
        subscription = sidecar.outbound.subscriptions.get(cluster.service) if sidecar.outbound is not None else None
        listing.append(
            {
                "service": cluster.service,
                "direction": direction,
                "known": cluster.known,
                "live": subscription.live if subscription is not None else None,
                "held": subscription.held if subscription is not None else None,
                "revision": subscription.revision if subscription is not None else None,
                "age_s": round(subscription.age_s(), 3) if subscription is not None else None,
                "endpoints": [
                    {
                        "id": endpoint.instance.id,
                        "node": endpoint.instance.node,
                        "address": f"{endpoint.address}:{endpoint.port}",
                        "state": endpoint.instance.state,
                        "status": endpoint.instance.status,
                        "available": endpoint.available,
                        "weight": endpoint.weight,
                        "active": endpoint.active,
                        "answers": endpoint.answers_total,
                        "answers_s": endpoint.times_sum_s,
                        "idle": len(endpoint.idle),
                        "failures": endpoint.failures,
                        "suspect": endpoint.suspect,
                        "ejected": endpoint.ejected,
                        "ejections": endpoint.ejections,
                    }
                    for endpoint in cluster.endpoints.values()
                ],
            }
        )
    return listing


def stats(sidecar: Watched) -> dict[str, object]:
    """The counters, as plain values."""
    listeners = {
        listener.name: {
            "connections": len(listener.connections),
            "connections_total": listener.connections_total,
            "requests_active": listener.active,
            "requests_total": listener.requests_total,
            "own_answers": dict(listener.refusals),
            "draining": listener.draining,
        }
        for listener in _listeners(sidecar)
    }
    ports = [
        {
            "service": port.service,
            "direction": "tcp",
            "connections": len(port.connections),
            "connections_total": port.connections_total,
            "bytes_in": port.received,
            "bytes_out": port.sent,
            "ended_by": dict(port.flags),
        }
        for port in sidecar.tcp
    ]
    services = [
        {
            "service": cluster.service,
            "direction": direction,
            "requests": dict(zip(_CLASSES, cluster.requests, strict=True)),
            "retries": cluster.retries,
            "replays": cluster.replays,
            "connects": cluster.connects,
            "connect_failures": cluster.connect_failures,
            "timeouts": cluster.timeouts,
            "retries_unpaid": cluster.retries_unpaid,
            "overflows": cluster.overflows,
            "ejections": cluster.ejections,
            "ejections_spared": cluster.ejections_spared,
            "times": dict(zip(_BOUNDS, cluster.times, strict=True)),
            "times_sum_s": cluster.times_sum_s,
        }
        for direction, cluster in _clusters(sidecar)
    ]
    return {"listeners": listeners, "tcp": ports, "services": services}


class _Metrics(Collector):
    """Turns the integers into metric families at the moment of a scrape."""

    def __init__(self, sidecar: Watched) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        yield from self._downstream()
        yield from self._tcp()
        yield from self._observer()
        yield from self._upstream()
        yield from self._endpoints()

    def _downstream(self) -> Iterator[Metric]:
        labels = ["listener"]
        requests = CounterMetricFamily("homeport_downstream_rq", "Requests answered.", labels=labels)
        active = GaugeMetricFamily("homeport_downstream_rq_active", "Requests under way.", labels=labels)
        total = CounterMetricFamily("homeport_downstream_cx", "Connections accepted.", labels=labels)
        open_now = GaugeMetricFamily("homeport_downstream_cx_active", "Connections open.", labels=labels)
        own = CounterMetricFamily(
            "homeport_downstream_own_answers",
            "Answers by the sidecar itself, by response flag.",
            labels=[*labels, "flag"],
        )
        for listener in _listeners(self._sidecar):
            at = [listener.name]
            requests.add_metric(at, listener.requests_total)
            active.add_metric(at, listener.active)
            total.add_metric(at, listener.connections_total)
            open_now.add_metric(at, len(listener.connections))
            for flag, count in listener.refusals.items():
                own.add_metric([*at, flag], count)
        yield from (requests, active, total, open_now, own)

    def _observer(self) -> Iterator[Metric]:
        observer = self._sidecar.observer
        if observer is None:
            return
        if observer.log is not None:
            yield CounterMetricFamily("homeport_access_log_lines", "Lines for the access log.", observer.log.written)
            yield CounterMetricFamily("homeport_access_log_dropped", "Of which were lost.", observer.log.dropped)
        if observer.exporter is not None:
            yield CounterMetricFamily("homeport_spans_exported", "Spans a collector took.", observer.exporter.exported)
            yield CounterMetricFamily("homeport_spans_dropped", "Spans that were lost.", observer.exporter.dropped)

    def _tcp(self) -> Iterator[Metric]:
        labels = ["service"]
        total = CounterMetricFamily("homeport_tcp_cx", "Connections accepted.", labels=labels)
        active = GaugeMetricFamily("homeport_tcp_cx_active", "Connections open.", labels=labels)
        received = CounterMetricFamily("homeport_tcp_received_bytes", "From clients that are gone.", labels=labels)
        sent = CounterMetricFamily("homeport_tcp_sent_bytes", "To clients that are gone.", labels=labels)
        ended = CounterMetricFamily(
            "homeport_tcp_cx_ended_by", "Connections that did not end by themselves.", labels=[*labels, "flag"]
        )
        for port in self._sidecar.tcp:
            at = [port.service]
            total.add_metric(at, port.connections_total)
            active.add_metric(at, len(port.connections))
            received.add_metric(at, port.received)
            sent.add_metric(at, port.sent)
            for flag, count in port.flags.items():
                ended.add_metric([*at, flag], count)
        yield from (total, active, received, sent, ended)

    def _upstream(self) -> Iterator[Metric]:
        labels = ["direction", "service"]
        times = HistogramMetricFamily(
            "homeport_upstream_rq_time_seconds", "From sending a request to its answer's head.", labels=labels
        )
        requests = CounterMetricFamily(
            "homeport_upstream_rq", "Answers of upstreams, by class of status.", labels=[*labels, "code_class"]
        )
        counters = {
            "retries": CounterMetricFamily("homeport_upstream_rq_retry", "Tries after the first.", labels=labels),
            "replays": CounterMetricFamily(
                "homeport_upstream_rq_replay", "Of which: the same host, over a fresh connection.", labels=labels
            ),
            "timeouts": CounterMetricFamily("homeport_upstream_rq_timeout", "No first byte in time.", labels=labels),
            "connects": CounterMetricFamily("homeport_upstream_cx", "Connections opened.", labels=labels),
            "connect_failures": CounterMetricFamily(
                "homeport_upstream_cx_connect_fail", "Connections that could not be opened.", labels=labels
            ),
            "retries_unpaid": CounterMetricFamily(
                "homeport_upstream_rq_retry_unpaid", "Retries that the budget had nothing left for.", labels=labels
            ),
            "overflows": CounterMetricFamily(
                "homeport_upstream_rq_overflow", "Requests refused at a limit of the service.", labels=labels
            ),
            "ejections": CounterMetricFamily("homeport_upstream_ejections", "Endpoints ejected.", labels=labels),
            "ejections_spared": CounterMetricFamily(
                "homeport_upstream_ejections_spared", "Ejections that would have left too few.", labels=labels
            ),
        }
        for direction, cluster in _clusters(self._sidecar):
            at = [direction, cluster.service]
            for code_class, count in zip(_CLASSES, cluster.requests, strict=True):
                if count:
                    requests.add_metric([*at, code_class], count)
            times.add_metric(at, _buckets(cluster.times), cluster.times_sum_s)
            for field, family in counters.items():
                family.add_metric(at, getattr(cluster, field))
        yield from (requests, times)
        yield from counters.values()

    def _endpoints(self) -> Iterator[Metric]:
        labels = ["direction", "service"]
        everyone = GaugeMetricFamily("homeport_upstream_endpoints", "Known endpoints.", labels=labels)
        able = GaugeMetricFamily("homeport_upstream_endpoints_available", "Endpoints that take traffic.", labels=labels)
        ejected = GaugeMetricFamily("homeport_upstream_endpoints_ejected", "Endpoints left alone.", labels=labels)
        active = GaugeMetricFamily("homeport_upstream_rq_active", "Requests under way.", labels=labels)
        connected = GaugeMetricFamily("homeport_upstream_cx_active", "Connections open, idle ones too.", labels=labels)
        connecting = GaugeMetricFamily("homeport_upstream_cx_pending", "Connections being opened.", labels=labels)
        budget = GaugeMetricFamily(
            "homeport_upstream_rq_retry_budget", "Retries that the budget has left right now.", labels=labels
        )
        idle = GaugeMetricFamily("homeport_upstream_cx_idle", "Idle connections kept.", labels=labels)
        age = GaugeMetricFamily(
            "homeport_subscription_age_seconds", "Time since the registry confirmed the endpoints.", labels=["service"]
        )
        held = GaugeMetricFamily(
            "homeport_subscription_held",
            "1 while endpoints that a reconnected registry does not know are kept in use.",
            labels=["service"],
        )
        for direction, cluster in _clusters(self._sidecar):
            at = [direction, cluster.service]
            endpoints = cluster.endpoints.values()
            everyone.add_metric(at, len(endpoints))
            able.add_metric(at, sum(endpoint.available for endpoint in endpoints))
            ejected.add_metric(at, sum(endpoint.ejected for endpoint in endpoints))
            active.add_metric(at, cluster.active)
            idle.add_metric(at, sum(len(endpoint.idle) for endpoint in endpoints))
            if cluster.circuit is not None:
                connected.add_metric(at, cluster.circuit.connections)
                connecting.add_metric(at, cluster.circuit.pending)
            if cluster.budget is not None and self._sidecar.outbound is not None:
                budget.add_metric(at, cluster.budget.balance(self._sidecar.outbound.now()))
        if self._sidecar.outbound is not None:
            for service, subscription in self._sidecar.outbound.subscriptions.items():
                age.add_metric([service], subscription.age_s())
                held.add_metric([service], subscription.held)
        yield from (everyone, able, ejected, active, idle, connected, connecting, budget, age, held)


def _buckets(times: Sequence[int]) -> list[tuple[str, float]]:
    """Each bucket with all below it, as Prometheus has them."""
    return list(zip(_BOUNDS, accumulate(times), strict=True))


def metrics(sidecar: Watched) -> bytes:
    """The counters in the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(sidecar))
    return generate_latest(registry)


def added_metrics(texts: Sequence[bytes]) -> bytes:
    """One exposition out of those of several workers: counts are added, of ages and the like the greatest is taken."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            add = max if family.name.endswith(_GREATEST) else operator.add
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                at = (sample.name, tuple(sorted(sample.labels.items())))
                known[at] = add(known[at], sample.value) if at in known else sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    return generate_latest(registry)


class Source(Protocol):
    """What the admin port is made of: one sidecar, or the workers of one."""

    @property
    def draining(self) -> bool: ...
    async def drain(self) -> bool: ...
    async def clusters(self) -> list[dict[str, object]]: ...
    async def stats(self) -> dict[str, object]: ...
    async def metrics(self) -> bytes: ...


class Own:
    """The source that a sidecar of one process is."""

    def __init__(self, sidecar: Watched) -> None:
        self._sidecar = sidecar

    @property
    def draining(self) -> bool:
        return self._sidecar.draining

    async def drain(self) -> bool:
        return await self._sidecar.drain()

    async def clusters(self) -> list[dict[str, object]]:
        return clusters(self._sidecar)

    async def stats(self) -> dict[str, object]:
        return stats(self._sidecar)

    async def metrics(self) -> bytes:
        return metrics(self._sidecar)


def application(source: Source) -> web.Application:
    """The aiohttp application that serves all of this."""

    async def ready(_request: web.Request) -> web.Response:
        if source.draining:
            return web.Response(status=503, text="draining\n")
        return web.Response(text="ready\n")

    async def show_clusters(_request: web.Request) -> web.Response:
        return web.json_response(await source.clusters())

    async def show_stats(_request: web.Request) -> web.Response:
        return web.json_response(await source.stats())

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=await source.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def drain(_request: web.Request) -> web.Response:
        return web.json_response({"drained": await source.drain()})

    app = web.Application()
    routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
        ("GET", "/ready", ready),
        ("GET", "/clusters", show_clusters),
        ("GET", "/stats", show_stats),
        ("GET", "/metrics", show_metrics),
        ("POST", "/drain", drain),
    ]
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    return app
