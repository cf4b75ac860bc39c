"""Registries that share a model of etcd, for tests of clients over replicas."""

from __future__ import annotations

import random
from collections.abc import Callable

from homeport.mesh.simulation.etcd import ModelLink
from homeport.mesh.testing import running_loop
from homeport.registry import Registry
from homeport.registry.direct import DirectTransport
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd import EtcdStore


class Replica(Registry):
    """A registry over the model."""

    def __init__(self, link: ModelLink, seed: int) -> None:
        super().__init__(node="n", rng=random.Random(seed))
        self._model = link

    def _make_store(self, now: Callable[[], float], _backup: str | None) -> EmbeddedStore | EtcdStore:
        return EtcdStore(self._model, now=now, rng=self._rng)

    @property
    def transport(self) -> DirectTransport:
        return DirectTransport(self._running_operations, running_loop(), self._links)
