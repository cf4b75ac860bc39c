"""Why an instance is in or out of rotation, in words: everything that counted, what decides first.

What only the shell knows (how long a lease lasts, who looks, when next) is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import msgspec

from homeport.client.core.model import Check, Instance, InstanceKey, Status
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord

_OUTPUT_CHARS = 200  # of what a check last said: enough for a status line and the beginning of an error

_MARKS = {
    "stale": "its lease ended together with most others', so it is kept for one more TTL at most",
    "unwritten": "this registry found it failed while its store was read-only; other registries may not know",
}


class Looked(msgspec.Struct, frozen=True):
    """How the looks at a check stand: the last results that still count, oldest first, and when the next is due."""

    recent: tuple[Status, ...]
    next_s: float  # 0 while one is under way


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalogue does not hold."""

    lease_left_s: float | None = None  # None: no lease
    kept_s: float = 0.0  # how much longer it is kept, if its lease is over
    deregistered_in_s: float = inf
    looked: Mapping[str, Looked] | None = None  # by check; None: another replica looks after it,
    machine: str = ""  # which has to be on this machine, if it matters
    reason: str = ""  # of its maintenance, as whoever set it said
    node_reason: str = ""


def explain(catalogue: Catalogue, key: InstanceKey, beside: Beside) -> tuple[bool, tuple[str, ...]] | None:
    """Whether the instance takes new traffic, and why; None if there is no such instance."""
    entry = catalogue.find(*key)
    if entry is None or not key[1]:
        return None
    seen = entry.seen
    reasons = [_verdict(seen)]
    if seen.state == "draining":
        reasons.append("state draining: it leaves, and was told so by whoever registered it")
    elif seen.state == "maintenance":
        reasons.append(f"state maintenance: somebody took it out{_because(beside.reason)}, whatever its checks say")
    if seen.mark:
        reasons.append(_MARKS[seen.mark])
    if entry.stale:
        half = "fewer" if seen.available else "no fewer"
        reasons.append(
            f"{max(beside.kept_s, 0):.1f} s of that are left; {half} than half of its service's others remain"
        )
    others = f"only replicas on machine {beside.machine} can look" if beside.machine else "another replica looks"
    reasons += _checks("check", entry.registered.checks, catalogue.checks.of(key), beside.looked, others)
    if not catalogue.checks.statuses(key, entry.registered):
        reasons.append("no checks: that counts as passing")
    node = catalogue.nodes.get(key[0])
    if node is not None and node.status != "passing":
        about = node.entry.registered if node.entry else None
        if about is not None and about.state == "maintenance":
            reasons.append(f"its node {key[0]} is in maintenance{_because(beside.node_reason)}")
        reasons.append(f"its node {key[0]} is {node.status}, and so is everything on it")
        reasons += _checks(
            f"node {key[0]}, check", about.checks if about else (), catalogue.checks.of((key[0], "")), {}
        )
    if not entry.lease:
        reasons.append("no lease: it stays registered until somebody deregisters it")
    elif not entry.stale:
        reasons.append(f"its lease of {seen.ttl_s:g} s ends in {beside.lease_left_s or 0:.1f} s unless it is renewed")
    if beside.deregistered_in_s < inf:
        when = f"in {beside.deregistered_in_s:.0f} s" if beside.deregistered_in_s > 0 else "at the next sweep"
        reasons.append(f"it is deregistered {when} unless the check that has been critical for so long recovers")
    if seen.available and seen.weight == 0:
        reasons.append("weight 0: it takes traffic only while nobody else is there")
    return seen.available, tuple(reasons)


def _verdict(seen: Instance) -> str:
    if seen.available:
        return f"in rotation: {seen.state}, and {seen.status}"
    return f"out of rotation: {seen.status if seen.state == 'up' else seen.state}"


def _checks(
    what: str,
    defined: tuple[Check, ...],
    records: dict[str, CheckRecord],
    looked: Mapping[str, Looked] | None,
    others: str = "",
) -> list[str]:
    lines = []
    for check in defined:
        record = records.get(check.name)
        status: Status = check.initial if record is None else record.status
        said = "no verdict yet" if record is None else _said(record)
        if record is None and check.kind == "ttl":
            status, said = "critical", f"nothing was reported for {check.ttl_s:g} s"
        elif check.kind not in ("ttl", "alias"):
            if looked is None:
                said += f"; {others}"
            elif check.name in looked:
                said += f"; {_progress(check, status, looked[check.name])}"
        lines.append(f"{what} {check.name} ({check.kind}) is {status}: {said}")
    names = {check.name for check in defined}
    lines += [f"{what} {name} is {each.status}: {_said(each)}" for name, each in records.items() if name not in names]
    return lines


def _progress(check: Check, status: Status, looked: Looked) -> str:
    up = status == "critical" or (status == "warning" and looked.recent[-1:] == ("passing",))
    needed, goal = (check.passing_after, "passing") if up else (check.critical_after, "critical")
    row = 0
    for result in reversed(looked.recent):
        if (result == "passing") != up:
            break
        row += 1
    last = f"last results {', '.join(looked.recent)}" if looked.recent else "no result yet"
    warned = f" ({check.warning_after} for a warning)" if check.warning_after and status == "passing" else ""
    when = f"the next look is in {looked.next_s:.1f} s" if looked.next_s else "a look is under way"
    return f"{last}: {row} of the {needed} in a row that make it {goal}{warned}; {when}"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _said(record: CheckRecord) -> str:
    text = " ".join(record.output.split())
    return (text[:_OUTPUT_CHARS] + "..." if len(text) > _OUTPUT_CHARS else text) or "it said nothing"
