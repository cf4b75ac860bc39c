"""Which route a request would take, why not the ones before it, and who is there to take it: per route and destination.

The words of a mismatch come from the route that did not match; who takes traffic is explained as for the whole service
(`explain`), over the instances of the destination's subset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Subset
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.endpoint import C
from homeport.sidecar.core.explain import chosen
from homeport.sidecar.core.router import Place, RoutePlan, Router


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to know: how `service` is balanced, and with a `path`, what becomes of a request to it."""

    service: str
    path: str = ""
    method: str = "GET"
    headers: tuple[str, ...] = ()  # `name: value`


def explained_routes(
    router: Router, asked: Cluster[C], at: Callable[[str], Cluster[C] | None], question: Question, now: float, rng: Rng
) -> dict[str, Any]:
    """The answer for the routes of one service, as plain values.

    Args:
        asked: The service.
        at: Another one by its name; None: it is not in use.
    """
    lines = [header.encode("latin-1", "replace") for header in question.headers]
    method, path = question.method.encode("latin-1", "replace"), question.path.partition("?")[0]
    taken = ""
    routes: list[dict[str, Any]] = []
    for number, plan in enumerate(router.plans):
        entry: dict[str, Any] = {"at": number, "route": plan.route.name, "requests": plan.requests}
        if path:
            why_not = plan.why_not(method, path, lines)
            entry["why"] = (
                f"does not match: {why_not}" if why_not else "matches, but comes later" if taken else "takes it"
            )
            taken = taken or ("" if why_not else plan.route.name or f"route {number}")
        if plan.redirect is not None:
            entry["redirect"] = str(plan.redirect.status)
        else:
            entry["to"] = _destinations(plan, asked, at, now, rng)
        routes.append(entry)
    answer: dict[str, Any] = {"taken": taken or "no route: it goes to any instance"} if path else {}
    return answer | {"routes": routes}


def _destinations(
    plan: RoutePlan, asked: Cluster[C], at: Callable[[str], Cluster[C] | None], now: float, rng: Rng
) -> list[dict[str, Any]]:
    found = []
    for number, (place, share) in enumerate(plan.shares):
        cluster = at(place.service) if place.service else asked
        entry: dict[str, Any] = {
            "at": number,
            "destination": f"{place.service or asked.service} {_named(place.subset)}".strip(),
            "chance": round(share, 4),
        }
        found.append(entry | (_candidates(cluster, place, now, rng) if cluster is not None else {"known": False}))
    return found


def _candidates(cluster: Cluster[C], place: Place, now: float, rng: Rng) -> dict[str, Any]:
    balancing = cluster.settings.balancing
    if place.subset is not None:
        balancing = msgspec.structs.replace(balancing, subset=place.subset)
    return {"known": cluster.known, **chosen(cluster, balancing, now, rng)}


def _named(subset: Subset | None) -> str:
    if subset is None:
        return ""
    parts = {"tag": subset.tag, "version": subset.version, "zone": subset.zone, **subset.meta}
    return ", ".join(f"{name}={value}" for name, value in parts.items() if value)
