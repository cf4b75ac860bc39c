"""`/sd/prometheus`: every instance as a target, for Prometheus's HTTP service discovery.

Labels have the names that Prometheus's own Consul discovery gives them, so that relabelling rules stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from homeport.registry.core.entries import Entry
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER
from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.rows import health_entry

_NO_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")


class TargetGroup(msgspec.Struct, frozen=True):
    """Targets that have the same labels: here one of each."""

    targets: list[str]
    labels: dict[str, str]


def targets(call: Call) -> Answer:
    """The instances of the services asked for, or of all, that carry all of the tags."""
    agent, catalogue = call.agent, call.agent.catalogue
    names = call.texts("service") or sorted(catalogue.services)
    tags = {tag.lower() for tag in call.texts("tag")}
    passing = call.flag("passing")
    found = []
    services = [catalogue.services[name] for name in dict.fromkeys(names) if name in catalogue.services]
    for service in services:
        for _, entry in sorted(service.entries.items()):
            if passing and not (entry.seen.status == "passing" and entry.seen.state == "up"):
                continue
            if not tags.issubset(tag.lower() for tag in entry.seen.tags):
                continue
            shown = health_entry(agent, entry)
            if call.filter is None or call.filter(shown):
                found.append(_target(entry, shown))
    return Answer(body=bodies.encode(found))


def _target(entry: Entry, shown: shapes.HealthEntry) -> TargetGroup:
    one, node = entry.registered, shown.node
    host = f"[{one.address}]" if ":" in one.address else one.address
    labels = {
        "address": node.address,
        "dc": DATACENTER,
        "health": "critical" if entry.seen.state != "up" else entry.seen.status,
        "node": one.node,
        "service": one.service,
        "service_address": shown.service.address,
        "service_id": one.id,
        "service_port": str(one.port),
        "tags": f",{','.join(one.tags)}," if one.tags else "",
        **_each("metadata", node.meta),
        **_each("service_metadata", one.meta),
        **_each("tagged_address", node.tagged_addresses),
    }
    return TargetGroup([f"{host}:{one.port}"], {f"__meta_consul_{name}": value for name, value in labels.items()})


def _each(kind: str, values: dict[str, str]) -> dict[str, str]:
    return {f"{kind}_{_NO_LABEL.sub('_', name)}": value for name, value in values.items()}
