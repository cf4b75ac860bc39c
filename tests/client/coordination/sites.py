"""A registry and some clients, each on a host of its own, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any, Self

from homeport.client import Client
from homeport.mesh.testing import running_loop
from homeport.mesh.testing.virtual import VirtualTask
from homeport.registry import Registry
from homeport.registry.store.embedded import EmbeddedStore

REGISTRY = "10.0.0.1"
ADDRESS = f"{REGISTRY}:8300"


class SwiftRegistry(Registry):
    """A registry whose disk forgets nothing, since only processes end here: so it need not wait for it."""

    def _make_store(self, now: Callable[[], float], backup: str | None) -> EmbeddedStore:
        return EmbeddedStore(now=now, rng=self._rng, data_dir=self._data_dir, backup=backup, synchronous="OFF")


class Site:
    """A registry and its clients; an async context manager.

    Args:
        data_dir: where the registry keeps its data over restarts; None: in memory.
    """

    def __init__(self, data_dir: str | None = None) -> None:
        self.loop = running_loop()
        self.network = self.loop.network
        self.clients: dict[str, Client] = {}
        self.registry: Registry
        self._data_dir = data_dir

    async def __aenter__(self) -> Self:
        await self.start_registry()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.network.heal()
        for client in self.clients.values():
            await client.close()
        await self.registry.close()

    async def start_registry(self) -> None:
        """Start the registry, with what it wrote down before."""
        with self.network.host(REGISTRY):
            rng = random.Random(self.loop.rng.getrandbits(64))
            self.registry = SwiftRegistry(self._data_dir, node="n", rng=rng)
            await self.registry.start()
            await self.registry.serve(rpc=ADDRESS)

    async def client(self, number: int) -> Client:
        """Client number so and so, on a host of its own."""
        with self.network.host(host(number)):
            client = Client(ADDRESS, rng=random.Random(self.loop.rng.getrandbits(64)))
            await client.start()
        self.clients[host(number)] = client
        return client

    def run(self, number: int, work: Coroutine[Any, Any, Any]) -> VirtualTask[Any]:
        """Run something on a client's host."""
        with self.network.host(host(number)):
            task = self.loop.create_task(work)
        assert isinstance(task, VirtualTask)
        return task

    def user_keys(self) -> list[bytes]:
        """All users' keys."""
        return [key.removeprefix(b"k/") for key in self.registry.store.mvcc.keys(b"k/", b"k0")]


def host(number: int) -> str:
    return f"10.1.{number // 256}.{number % 256}"
