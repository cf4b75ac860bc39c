"""Why a request to a service would go where it goes: who may take it, who may not and why, and who would.

The words follow the order in which endpoints are chosen (`client.core.balancing.selection`): meant to serve, subset,
health and ejection, panic, zone, weight. Shares come from picks out of a choice that is made anew for the question, so
that asking moves no turn and counts no load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Balancing, Candidates, choose
from homeport.client.core.balancing.selection import Zoned, meant, panics, serving
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.endpoint import C, Endpoint

PICKS: Final = 400  # a share is then within 5 % or so, and the question takes a millisecond


def explained(cluster: Cluster[C], now: float, rng: Rng) -> dict[str, Any]:
    """The answer for one cluster, as plain values."""
    answer = {"known": cluster.known, **chosen(cluster, cluster.settings.balancing, now, rng)}
    circuit, budget = cluster.circuit, cluster.budget
    if circuit is not None:
        answer["circuit"] = {
            "requests": circuit.requests,
            "requests_max": circuit.requests_max,
            "pending": circuit.pending,
            "pending_max": circuit.pending_max,
            "connections": circuit.connections,
            "connections_max": circuit.connections_max,
            "retries": circuit.retries,
            "retries_max": circuit.retries_max,
        }
    if budget is not None:
        answer["retries_affordable"] = round(budget.balance(now), 1)
    return answer


def chosen(cluster: Cluster[C], settings: Balancing, now: float, rng: Rng) -> dict[str, Any]:
    """Who of its endpoints is chosen under these settings, and why others are not."""
    everyone = list(cluster.endpoints.values())
    choice: Candidates[Endpoint[C]] = choose(settings, everyone)
    keys = [None] if cluster.affinity is None else [str(number).encode() for number in range(PICKS)]
    picks = [choice.pick(rng, (), now, keys[number % len(keys)]) for number in range(PICKS if choice.members else 0)]
    counts = Counter(picked for picked in picks if picked is not None)
    panic = panics(settings, meant(settings, everyone))
    return {
        "policy": settings.policy,
        "panic": panic,
        "would_pick": picks[0].instance.id if picks and picks[0] is not None else None,
        "endpoints": [
            {
                "id": endpoint.instance.id,
                "node": endpoint.instance.node,
                "address": f"{endpoint.address}:{endpoint.port}",
                "candidate": endpoint in choice.members,
                "why": _why(settings, everyone, choice, endpoint, now, panic=panic),
                "share": round(counts[endpoint] / PICKS, 2),
                "active": endpoint.active,
                "weight": round(endpoint.weight, 3),
                "latency_ms": round(endpoint.latency.cost(0, now) * 1e3, 3) if endpoint.latency is not None else None,
            }
            for endpoint in everyone
        ],
    }


def _why(
    settings: Balancing,
    everyone: Sequence[Endpoint[C]],
    choice: Candidates[Endpoint[C]],
    endpoint: Endpoint[C],
    now: float,
    *,
    panic: bool,
) -> str:
    """One endpoint's part in it, in words."""
    instance = endpoint.instance
    if not serving(instance):
        return (
            f"excluded: it is {'in maintenance' if 'maintenance' in (instance.state, instance.status) else 'draining'}"
        )
    if endpoint not in meant(settings, everyone):
        return "excluded: it is not in the subset that takes traffic"
    if endpoint in choice.members:
        return f"candidate{_notes(choice, endpoint, now, panic=panic)}"
    if not endpoint.available:
        return f"excluded: the registry says it is {instance.status}"
    if endpoint.ejected:
        lasts_s = max(0.0, endpoint.ejected_until_s - now)
        return (
            f"excluded: ejected for {lasts_s:.0f} s more, for the {_nth(endpoint.ejections)} time; a second try at best"
        )
    if not endpoint.weight:
        return "excluded: its weight is 0, and others have one"
    return "excluded: it is not among those to choose from"


def _notes(choice: Candidates[Endpoint[C]], endpoint: Endpoint[C], now: float, *, panic: bool) -> str:
    notes = []
    if panic and not (endpoint.available and not endpoint.ejected):
        ill = "ejected" if endpoint.available else endpoint.instance.status
        notes.append(f"although {ill}: too few are healthy, so all are asked")
    elif endpoint.ejected:
        notes.append("although ejected: else nobody would be left")
    if endpoint.suspect:
        notes.append(f"failed lately, so second choice for {max(0.0, endpoint.suspect_until_s - now):.1f} s more")
    if isinstance(choice, Zoned):
        near = endpoint in choice.near.members
        share = choice.share if near else 1.0 - choice.share
        notes.append(f"{'own' if near else 'another'} zone, which gets {share:.0%}")
    if endpoint.weight < endpoint.instance.weight:
        notes.append("its weight still grows")
    return f": {'; '.join(notes)}" if notes else ""


def _nth(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"
