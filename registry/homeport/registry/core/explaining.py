"""Why an instance is in or out of rotation, in words: everything that counted, what decides first."""

from __future__ import annotations

from homeport.client.core.model import Check, Instance, InstanceKey, Status
from homeport.registry.core.catalogue import Catalogue, CheckRecord

_OUTPUT_CHARS = 200  # of what a check last said: enough for a status line and the beginning of an error

_MARKS = {
    "stale": "its lease ended together with most others', so it is kept for one more TTL at most",
    "unwritten": "this registry found it failed while its store was read-only; other registries may not know",
}


def explain(catalogue: Catalogue, key: InstanceKey) -> tuple[bool, tuple[str, ...]] | None:
    """Whether the instance takes new traffic, and why; None if there is no such instance."""
    entry = catalogue.find(*key)
    if entry is None or not key[1]:
        return None
    seen = entry.seen
    reasons = [_verdict(seen)]
    if seen.state == "draining":
        reasons.append("state draining: it leaves, and was told so by whoever registered it")
    elif seen.state == "maintenance":
        reasons.append("state maintenance: somebody took it out, whatever its checks say")
    if seen.mark:
        reasons.append(_MARKS[seen.mark])
    reasons += _checks("check", entry.registered.checks, catalogue.records(key))
    node = catalogue.nodes.get(key[0])
    if node is not None and node.status != "passing":
        about = node.entry.registered if node.entry else None
        reasons.append(f"its node {key[0]} is {node.status}, and so is everything on it")
        reasons += _checks(f"node {key[0]}, check", about.checks if about else (), catalogue.records((key[0], "")))
    if not entry.lease:
        reasons.append("no lease: it stays registered until somebody deregisters it")
    elif not entry.stale:
        reasons.append(f"its lease of {seen.ttl_s:g} s is being renewed; it goes when that ends")
    if seen.available and seen.weight == 0:
        reasons.append("weight 0: it takes traffic only while nobody else is there")
    return seen.available, tuple(reasons)


def _verdict(seen: Instance) -> str:
    if seen.available:
        return f"in rotation: {seen.state}, and {seen.status}"
    return f"out of rotation: {seen.status if seen.state == 'up' else seen.state}"


def _checks(what: str, defined: tuple[Check, ...], records: dict[str, CheckRecord]) -> list[str]:
    lines = []
    for check in defined:
        record = records.get(check.name)
        status: Status = check.initial if record is None else record.status
        said = "no verdict yet" if record is None else _said(record)
        lines.append(f"{what} {check.name} ({check.kind}) is {status}: {said}")
    names = {check.name for check in defined}
    lines += [f"{what} {name} is {each.status}: {_said(each)}" for name, each in records.items() if name not in names]
    return lines


def _said(record: CheckRecord) -> str:
    text = " ".join(record.output.split())
    return (text[:_OUTPUT_CHARS] + "..." if len(text) > _OUTPUT_CHARS else text) or "it said nothing"
