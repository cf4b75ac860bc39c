"""The counters of a sidecar as Prometheus metrics, made at the moment of a scrape; and those of workers, added up."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from homeport.sidecar.reports import BOUNDS, CLASSES, Watched, clusters_of, listeners_of

# What every worker says of the same thing, and must not be added.
_GREATEST: Final = (
    "_age_seconds",
    "_held",
    "_endpoints",
    "_endpoints_available",
    "_endpoints_ejected",
    "_routes_refused",
)


class _Metrics(Collector):
    """Turns the integers into metric families at the moment of a scrape."""

    def __init__(self, sidecar: Watched) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("homeport_tasks", "asyncio tasks of the process.", value=len(asyncio.all_tasks()))
        yield from self._downstream()
        yield from self._tcp()
        yield from self._observer()
        yield from self._upstream()
        yield from self._endpoints()
        yield from self._routes()
        yield from self._idempotency()

    def _idempotency(self) -> Iterator[Metric]:
        outbound, inbound = self._sidecar.outbound, self._sidecar.inbound
        if outbound is not None:
            yield CounterMetricFamily(
                "homeport_idempotency_keys_given", "Requests that got a key here.", value=outbound.keys_given
            )
            yield CounterMetricFamily(
                "homeport_idempotency_retries",
                "Retries of requests that may have been delivered.",
                value=outbound.keyed_retries,
            )
        memory = inbound.memory if inbound is not None else None
        if memory is None:
            return
        refused = CounterMetricFamily(
            "homeport_idempotency_refused", "Requests with a key that were not run, by reason.", labels=["reason"]
        )
        for verdict, count in memory.refused.items():
            refused.add_metric([verdict.word], count)
        yield refused
        for name, text, value in (
            ("homeport_idempotency_run", "Requests with a key that were run.", memory.arrived),
            ("homeport_idempotency_replayed", "Requests that were answered from memory.", memory.replayed),
            ("homeport_idempotency_waited", "Requests that waited for the same one under way.", memory.waited),
            ("homeport_idempotency_forgotten", "Answers that are remembered no more.", memory.forgotten),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("homeport_idempotency_answers", "Answers remembered or under way.", value=len(memory))
        yield GaugeMetricFamily("homeport_idempotency_bytes", "What they take.", value=memory.bytes)

    def _routes(self) -> Iterator[Metric]:
        outbound = self._sidecar.outbound
        if outbound is None:
            return
        taken = CounterMetricFamily("homeport_route_rq", "Requests, by the route taken.", labels=["service", "route"])
        wrong = GaugeMetricFamily(
            "homeport_routes_error_held",
            "1 while the store has a document of routes that is refused.",
            labels=["service"],
        )
        mirrored = 0
        for service, entry in outbound.table:
            wrong.add_metric([service], bool(entry.error))
            for at, plan in enumerate(entry.router.plans if entry.router is not None else ()):
                taken.add_metric([service, plan.route.name or str(at)], plan.requests)
                mirrored += plan.mirrored
        yield from (taken, wrong)
        for name, text, value in (
            ("homeport_mirror_rq", "Copies of requests sent to mirrors.", mirrored),
            ("homeport_mirror_rq_dropped", "Copies not sent: too many, or too large.", outbound.mirrors_dropped),
            ("homeport_fault_delays", "Requests delayed on purpose.", outbound.delayed),
            ("homeport_routes_refused", "Documents of routes that were not right.", outbound.table.refused),
        ):
            yield CounterMetricFamily(name, text, value=value)

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
        for listener in listeners_of(self._sidecar):
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
            "hedges": CounterMetricFamily(
                "homeport_upstream_rq_hedge", "Of which: beside a try that had not failed.", labels=labels
            ),
            "hedges_won": CounterMetricFamily(
                "homeport_upstream_rq_hedge_won", "Of which: answered first.", labels=labels
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
        for direction, cluster in clusters_of(self._sidecar):
            at = [direction, cluster.service]
            for code_class, count in zip(CLASSES, cluster.requests, strict=True):
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
        for direction, cluster in clusters_of(self._sidecar):
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
    return list(zip(BOUNDS, accumulate(times), strict=True))


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
