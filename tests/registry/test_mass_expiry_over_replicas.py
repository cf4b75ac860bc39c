"""The guard against mass expiry over a shared store: all replicas count all ends, and keep alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from homeport.client import Client, Instance
from homeport.client.core.messages import Deregister, Register, Renew, Resolve
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from homeport.registry.core.entries import Entry
from homeport.registry.core.health import Verdict
from homeport.registry.core.leases import TICK_S
from homeport.registry.core.mass_expiry import WINDOW_S, MassExpiry
from tests.client.replicas import Replica

TTL_S = 5.0
WRITTEN_S = 0.5  # until ends that are due have reached every replica


@asynccontextmanager
async def cluster(replicas: int) -> AsyncIterator[tuple[list[Replica], list[Client]]]:
    """So many replicas, each with a client of its own."""
    etcd = ModelEtcd()
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(Replica(ModelLink(etcd, 0.001), n)) for n in range(replicas)]
        yield running, [await stack.enter_async_context(replica.client()) for replica in running]


async def register(client: Client, service: str, at: int) -> int:
    instance = Instance(service=service, id=f"{service}-{at}", port=at + 1, ttl_s=TTL_S)
    return (await client.call(Register(instance=instance))).lease


async def shown(client: Client, service: str) -> dict[str, str]:
    """What a replica shows, with its mark."""
    return {one.id: one.mark for one in (await client.call(Resolve(service=service, passing=False))).instances}


async def served(client: Client, service: str) -> int:
    return len((await client.call(Resolve(service=service))).instances)


@virtual_time(seed=1)
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
async def test_when_all_leases_end_every_replica_keeps_all_instances_for_one_more_ttl(replicas: int) -> None:
    async with cluster(replicas) as (running, clients):
        for at in range(60):
            await register(clients[at % replicas], "orders", at)
        await asyncio.sleep(TTL_S + TICK_S + WRITTEN_S)
        for replica, client in zip(running, clients, strict=True):
            assert replica.store.leases() == [], "the leases themselves ended in time"
            found = await shown(client, "orders")
            assert (len(found), set(found.values())) == (60, {"stale"})
            assert await served(client, "orders") == 60
        await asyncio.sleep(TTL_S)
        assert [await shown(client, "orders") for client in clients] == [{}] * replicas


@virtual_time(seed=3)
@pytest.mark.parametrize(("ending", "renewing"), [(18, 0), (30, 30)])
async def test_fewer_than_twenty_or_half_of_all_just_end(ending: int, renewing: int) -> None:
    async with cluster(3) as (_, clients):
        for at in range(ending):
            await register(clients[at % 3], "orders", at)
        kept = [await register(clients[at % 3], "users", at) for at in range(renewing)]
        await asyncio.sleep(TTL_S / 2)
        for at, client in enumerate(clients):
            await client.call(Renew(leases=tuple(kept[at::3])))
        await asyncio.sleep(TTL_S / 2 + TICK_S + WRITTEN_S)
        for client in clients:
            assert await shown(client, "orders") == {}
            assert await served(client, "users") == renewing


@virtual_time(seed=8)
async def test_leases_of_anything_else_that_end_with_some_instances_make_no_mass_of_them() -> None:
    async with cluster(2) as (running, clients):
        await asyncio.gather(*(running[0].store.lease_grant(TTL_S) for _ in range(600)))
        for at in range(25):
            await register(clients[0], "orders", at)
        kept = [await register(clients[1], "users", at) for at in range(75)]
        await asyncio.sleep(TTL_S / 2)
        await clients[1].call(Renew(leases=tuple(kept)))
        await asyncio.sleep(TTL_S / 2 + TICK_S + WRITTEN_S)
        for client in clients:
            assert await shown(client, "orders") == {}


@virtual_time(seed=9)
@pytest.mark.parametrize("all_at_once", [False, True])
async def test_a_mirror_that_stood_still_keeps_what_the_others_keep(all_at_once: bool) -> None:
    async with cluster(3) as (running, clients):
        kept = [await register(clients[0], "users", at) for at in range(30)]
        for at in range(40):
            await register(clients[1], "orders", at)
            if not all_at_once:
                await asyncio.sleep(0.075)  # so that their ends are three seconds apart
        if all_at_once:
            kept.clear()
        await clients[0].call(Renew(leases=tuple(kept)))
        await asyncio.sleep(TTL_S - 3.0 if not all_at_once else TTL_S - TICK_S)
        running[2]._model.fail(True)
        for _ in range(3):
            await asyncio.sleep(1.0 + TICK_S)
            if kept:
                await clients[0].call(Renew(leases=tuple(kept)))
        running[2]._model.fail(False)
        await running[2].store.barrier()
        found = [await shown(client, "orders") for client in clients]
        assert found[0] == found[1] == found[2] == (dict.fromkeys(found[0], "stale") if all_at_once else {})
        assert len(found[0]) == 40 * all_at_once


@virtual_time(seed=4)
async def test_whoever_deregisters_a_kept_instance_at_one_replica_has_it_gone_at_all() -> None:
    async with cluster(3) as (_, clients):
        for at in range(30):
            await register(clients[at % 3], "orders", at)
        await asyncio.sleep(TTL_S + TICK_S + WRITTEN_S)
        assert (await clients[0].call(Deregister(id="orders-1"))).applied
        await asyncio.sleep(WRITTEN_S)
        assert [len(await shown(client, "orders")) for client in clients] == [29, 29, 29]
        assert not (await clients[1].call(Deregister(id="orders-1"))).applied


@virtual_time(seed=5)
async def test_a_kept_instance_that_fails_a_check_at_one_replica_is_gone_at_all() -> None:
    async with cluster(3) as (running, clients):
        for at in range(30):
            await register(clients[at % 3], "orders", at)
        entry = running[1].catalogue.find("n", "orders-0")
        assert entry is not None
        await asyncio.sleep(TTL_S + TICK_S + WRITTEN_S)
        failed = Verdict("critical", "refused", refused=True)
        running[1]._statuses.report(("n", "orders-0"), entry.registered.create_revision, "connect", failed)
        await asyncio.sleep(WRITTEN_S)
        for client in clients:
            assert "orders-0" not in await shown(client, "orders")


@virtual_time(seed=6)
async def test_keys_on_leases_know_no_such_mercy() -> None:
    async with cluster(3) as (running, clients):
        for at in range(30):
            await register(clients[at % 3], "orders", at)
        lease = running[0].store.new_lease()
        await running[0].store.lease_grant(TTL_S, lease)
        await clients[0].kv.put("a", b"1", lease=lease)
        await asyncio.sleep(TTL_S + TICK_S + WRITTEN_S)
        assert [await client.kv.get("a") for client in clients] == [None, None, None]
        assert [await served(client, "orders") for client in clients] == [30, 30, 30]


@virtual_time(seed=7)
async def test_what_is_deregistered_goes_however_much_it_is_at_once() -> None:
    async with cluster(3) as (_, clients):
        for at in range(60):
            await register(clients[at % 3], "orders", at)
        await asyncio.gather(*(clients[at % 3].call(Deregister(id=f"orders-{at}")) for at in range(60)))
        await asyncio.sleep(WRITTEN_S)
        assert [await shown(client, "orders") for client in clients] == [{}, {}, {}]


def entries(count: int) -> list[Entry]:
    one = Instance(service="orders", id="o", port=1)
    return [Entry(one, 1, one) for _ in range(count)]


def test_a_wave_of_ends_that_takes_longer_to_write_than_the_window_is_kept_whole() -> None:
    guard, leased, ending, step = MassExpiry(), 10_000, 6_000, 100
    kept: list[Entry] = []
    for done in range(0, ending, step):
        now = done / step * 0.05  # three seconds
        kept += guard.ending(now, now - WINDOW_S, entries(step), ending - done - step, leased - done)
        for one in kept:
            one.kept_until = now + TTL_S
    assert (len(kept), guard.happened) == (ending, 1)
    after = now + WINDOW_S / 2
    assert guard.ending(after, after - WINDOW_S, entries(step), 0, leased - ending) == [], "it was not due with them"


def test_a_wave_is_over_when_nothing_of_it_has_ended_for_a_while() -> None:
    guard = MassExpiry()
    assert len(guard.ending(0.0, -WINDOW_S, entries(20), 5_000, 100)) == 20
    assert len(guard.ending(WINDOW_S / 2, -WINDOW_S / 2, entries(1), 0, 5_000)) == 1
    assert guard.ending(2 * WINDOW_S, WINDOW_S, entries(1), 0, 5_000) == []
