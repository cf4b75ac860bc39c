"""Instances, connections and clusters for tests of pure decisions."""

from __future__ import annotations

from typing import Any

from homeport.client.core.model import Instance
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.settings import ServiceSettings


class Pooled:
    """A connection as a pool sees it."""

    idle_since_s = 0.0


def instance(number: int = 1, **fields: Any) -> Instance:
    defaults: dict[str, Any] = {"service": "a", "id": str(number), "address": "10.0.0.1", "port": number}
    return Instance(**(defaults | fields))


def cluster_of(count: int, settings: ServiceSettings | None = None) -> Cluster[Pooled]:
    """A cluster of that many instances, known from the start."""
    made: Cluster[Pooled] = Cluster("a", ServiceSettings() if settings is None else settings)
    made.update({instance(number).key: instance(number) for number in range(1, count + 1)})
    return made
