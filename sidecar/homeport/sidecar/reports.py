"""How a sidecar stands, as plain values: what its admin port shows, and what workers tell their parent.

The data path counts in plain integers; they are read here and in `metrics`, when somebody asks, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from homeport.client.core.backoff import Rng
from homeport.sidecar.core.explain import explained
from homeport.sidecar.core.explain_routes import Question, explained_routes
from homeport.sidecar.core.histogram import BOUNDS_S
from homeport.sidecar.core.route_table import Routed
from homeport.sidecar.core.routes import Passed
from homeport.sidecar.core.routing import encoded
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.http1.upstream import Cluster
from homeport.sidecar.inbound import Inbound
from homeport.sidecar.observer import Observer
from homeport.sidecar.outbound import HTTP_PREFIX, Outbound
from homeport.sidecar.tcp import TcpListener

BOUNDS: Final = (*(repr(bound) for bound in BOUNDS_S), "+Inf")  # of the buckets of latencies, in seconds
CLASSES: Final = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


class Watched(Protocol):
    """What the admin port shows: a sidecar."""

    outbound: Outbound | None
    inbound: Inbound | None
    tcp: list[TcpListener]
    observer: Observer | None
    at: dict[str, str]

    @property
    def draining(self) -> bool: ...
    async def drain(self) -> bool: ...


def listeners_of(sidecar: Watched) -> list[Listener]:
    """Those that speak HTTP."""
    return [listener for listener in (sidecar.outbound, sidecar.inbound) if listener is not None]


def clusters_of(sidecar: Watched) -> Iterator[tuple[str, Cluster]]:
    """Every service in use, with the direction it is used in."""
    if sidecar.outbound is not None:
        for cluster in sidecar.outbound.clusters.values():
            yield "outbound", cluster
    if sidecar.inbound is not None:
        yield "inbound", sidecar.inbound.app


def clusters(sidecar: Watched) -> list[dict[str, object]]:
    """Every service in use, with its endpoints, as plain values."""
    listing: list[dict[str, object]] = []
    for direction, cluster in clusters_of(sidecar):
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
        for listener in listeners_of(sidecar)
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
            "requests": dict(zip(CLASSES, cluster.requests, strict=True)),
            "retries": cluster.retries,
            "replays": cluster.replays,
            "hedges": cluster.hedges,
            "hedges_won": cluster.hedges_won,
            "connects": cluster.connects,
            "connect_failures": cluster.connect_failures,
            "timeouts": cluster.timeouts,
            "retries_unpaid": cluster.retries_unpaid,
            "overflows": cluster.overflows,
            "ejections": cluster.ejections,
            "ejections_spared": cluster.ejections_spared,
            "times": dict(zip(BOUNDS, cluster.times, strict=True)),
            "times_sum_s": cluster.times_sum_s,
        }
        for direction, cluster in clusters_of(sidecar)
    ]
    return {"listeners": listeners, "tcp": ports, "services": services}


def routes(sidecar: Watched) -> dict[str, object]:
    """Which names lead where: local ports, services in use, documents of routes."""
    outbound = sidecar.outbound
    ports = {listener.service: sidecar.at[listener.name] for listener in sidecar.tcp}
    services = []
    for service, cluster in outbound.clusters.items() if outbound is not None else ():
        source = "passthrough" if isinstance(service, Passed) else "static" if cluster.fixed else "registry"
        services.append({"service": str(service), "direction": "outbound", "source": source, "known": cluster.known})
    documents = [_documented(service, entry) for service, entry in outbound.table] if outbound is not None else []
    http = {name.removeprefix(HTTP_PREFIX): at for name, at in sidecar.at.items() if name.startswith(HTTP_PREFIX)}
    return {"tcp": ports, "http": http, "services": services, "documents": documents}


def _documented(service: str, entry: Routed) -> dict[str, object]:
    """The routes of one service: what is in force, what was refused and why, and how many requests each has taken."""
    plans = entry.router.plans if entry.router is not None else []
    return {
        "service": service,
        "direction": "outbound",
        "source": "store" if entry.store is not None else "file" if entry.file is not None else "none",
        "revision": entry.revision,
        "refused_revision": entry.refused_revision,
        "error": entry.error,
        "requests": [
            {"at": at, "route": plan.route.name, "requests": plan.requests, "mirrored": plan.mirrored}
            for at, plan in enumerate(plans)
        ],
        "unmatched": entry.router.unmatched if entry.router is not None else 0,
        # As text, so that several workers' are one and not a sum.
        "document": encoded(entry.in_force).decode() if entry.in_force is not None else "{}",
    }


def explain(sidecar: Watched, question: Question, rng: Rng) -> dict[str, object] | None:
    """Who would take a request to a service, and why others would not; None: it is not in use here."""
    for direction, cluster in clusters_of(sidecar):
        if cluster.service == question.service:
            listener = sidecar.outbound if direction == "outbound" else sidecar.inbound
            assert listener is not None
            now = listener.now()
            answer = {"service": question.service, "direction": direction, **explained(cluster, now, rng)}
            if cluster.router is not None and sidecar.outbound is not None:
                at = sidecar.outbound.clusters.get
                answer |= explained_routes(cluster.router, cluster, at, question, now, rng)
            elif question.path:
                answer["taken"] = "no route: it goes to any instance"
            return answer
    return None
