"""Blocking queries see what no revision says, over one store as over replicas: the overlay, and stale instances."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from homeport.client import Client, Instance
from homeport.client.core.messages import Register
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import connector_factory, virtual_time
from homeport.registry import Registry
from homeport.registry.core.leases import TICK_S
from homeport.registry.fronts.consul.waiting import UNSURE_S, UNSURE_WAIT_S
from tests.client.replicas import Replica

TTL_S = 8.0  # longer than a replica promises without a quorum
PATHS = ("health/service/orders", "catalog/service/orders", "catalog/node/n", "health/node/n", "health/state/any")
both = pytest.mark.parametrize("make", [lambda: Registry(node="n", rng=random.Random(1)), lambda: over_etcd()])


def over_etcd() -> Replica:
    return Replica(ModelLink(ModelEtcd(), 0.001), 1)


def cut_off(registry: Registry) -> None:
    """Nothing can be written from now on."""
    if isinstance(registry, Replica):
        registry._model.fail(True)
    else:
        registry.store.read_only = "the disk is full"


class Front:
    """What a Consul client asks."""

    def __init__(self, at: str, session: aiohttp.ClientSession) -> None:
        self._at = at
        self._session = session

    async def __call__(self, path: str, index: int = 0) -> tuple[int, Any]:
        """The index and the answer; blocks while there is nothing newer than `index`."""
        query = f"index={index}&wait=9m" if index else ""
        async with self._session.get(f"http://{self._at}/v1/{path}?{query}") as answer:
            return int(answer.headers["X-Consul-Index"]), await answer.json()


@asynccontextmanager
async def served(registry: Registry) -> AsyncIterator[tuple[Front, Client]]:
    async with registry, registry.client() as client:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        async with aiohttp.ClientSession(connector=connector_factory(), timeout=aiohttp.ClientTimeout()) as session:
            yield Front(at or "", session), client


async def register(client: Client, count: int) -> None:
    for at in range(count):
        one = Instance(service="orders", id=f"o{at}", node="n", address="10.0.0.1", port=1, ttl_s=TTL_S)
        await client.call(Register(instance=one))
    await client.kv.put("the", b"newest of all")


@both
@virtual_time(seed=1)
async def test_a_query_wakes_when_an_ended_lease_cannot_be_written(make: Callable[[], Registry]) -> None:
    registry = make()
    async with served(registry) as (front, client):
        await register(client, 2)
        known = {path: await front(path) for path in PATHS}
        waiting = {path: asyncio.ensure_future(front(path, index)) for path, (index, _) in known.items()}
        cut_off(registry)
        await asyncio.sleep(TTL_S - 0.5)
        assert not any(one.done() for one in waiting.values())
        await asyncio.sleep(0.5 + TICK_S + 0.01)
        assert [path for path, one in waiting.items() if not one.done()] == []
        for path, one in waiting.items():
            index, _ = one.result()
            assert index > known[path][0], path
            assert index <= registry.store.mvcc.revision, "so nothing that is written later is missed"
        _, rows = waiting["health/service/orders"].result()
        assert {check["Status"] for row in rows for check in row["Checks"]} >= {"critical"}


@both
@virtual_time(seed=2)
async def test_who_knows_the_newest_revision_is_answered_all_the_same(make: Callable[[], Registry]) -> None:
    registry = make()
    async with served(registry) as (front, client):
        await register(client, 1)
        newest = registry.store.mvcc.revision
        waiting = asyncio.ensure_future(front("health/service/orders", newest))
        cut_off(registry)
        await asyncio.sleep(TTL_S + TICK_S + 0.01)
        index, rows = waiting.result()
        assert index == newest
        assert {check["Status"] for row in rows for check in row["Checks"]} >= {"critical"}


@both
@virtual_time(seed=3)
async def test_a_query_wakes_when_stale_instances_are_let_go(make: Callable[[], Registry]) -> None:
    registry = make()
    async with served(registry) as (front, client):
        await register(client, 30)
        await asyncio.sleep(TTL_S + TICK_S + 0.5)
        await client.kv.put("something", b"newer")
        index, rows = await front("health/service/orders")
        assert len(rows) == 30
        waiting = asyncio.ensure_future(front("health/service/orders", index))
        names = asyncio.ensure_future(front("catalog/services", (await front("catalog/services"))[0]))
        await asyncio.sleep(TTL_S)
        after, rows = waiting.result()
        assert rows == []
        assert index < after <= registry.store.mvcc.revision
        assert "orders" not in names.result()[1]


@both
@virtual_time(seed=4)
async def test_what_is_written_afterwards_wakes_again(make: Callable[[], Registry]) -> None:
    registry = make()
    async with served(registry) as (front, client):
        await register(client, 2)
        index, _ = await front("health/service/orders")
        cut_off(registry)
        await asyncio.sleep(TTL_S + TICK_S + 0.01)
        index, _ = await front("health/service/orders", index)
        waiting = asyncio.ensure_future(front("health/service/orders", index))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        if isinstance(registry, Replica):
            registry._model.fail(False)
        else:
            registry.store.read_only = None
        await asyncio.sleep(2.0)
        after, rows = waiting.result()
        assert rows == [], "their leases have ended, and now that is written"
        assert after > index


@both
@virtual_time(seed=5)
async def test_who_was_answered_between_two_looks_at_one_revision_hears_of_the_second(
    make: Callable[[], Registry],
) -> None:
    registry = make()
    async with served(registry) as (front, client):
        await register(client, 1)
        await asyncio.sleep(1.0)
        await client.call(Register(instance=Instance(service="orders", id="late", node="n", port=1, ttl_s=TTL_S)))
        await client.kv.put("the", b"newest of all")
        cut_off(registry)
        loop = asyncio.get_running_loop()
        between = {}
        begun = loop.time()
        await asyncio.sleep(TTL_S - 1.0 + TICK_S)
        for path in PATHS:
            between[path] = await front(path)
        assert "late" in str(between["health/service/orders"][1])
        await asyncio.sleep(begun + TTL_S + 2 * TICK_S - loop.time())
        for path, (index, before) in between.items():
            asked = loop.time()
            again, after = await front(path, index)
            assert again == index == registry.store.mvcc.revision, path
            assert before != after or path.startswith("catalog/"), path
            assert loop.time() - asked <= UNSURE_WAIT_S + 0.1, path
        await asyncio.sleep(UNSURE_S)
        waiting = [asyncio.ensure_future(front(path, index)) for path, (index, _) in between.items()]
        await asyncio.sleep(60.0)
        assert not any(one.done() for one in waiting), "and then they wait for news as always"
        for one in waiting:
            one.cancel()
