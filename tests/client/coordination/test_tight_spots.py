"""Coordination where it is tight: large items, names within names, groups in step, registries that begin anew."""

from __future__ import annotations

import asyncio

import pytest

from homeport.client import Client, LeaseGone
from homeport.mesh.testing import virtual_time
from tests.client.coordination.sites import Site


@virtual_time(seed=1)
async def test_items_too_large_for_one_page_are_found_behind_those_that_are_claimed() -> None:
    async with Site() as site:
        client = await site.client(0)
        queue = client.queue("q")
        for number in range(5):
            await queue.put(b"%d" % number + bytes(600_000))
        claims = [queue.claim() for _ in range(5)]
        for number, claim in enumerate(claims):
            assert await claim.acquire(timeout_s=1.0), f"item {number} is free"
            assert claim.value[:1] == b"%d" % number
        assert not await queue.claim().acquire(wait=False)


@virtual_time(seed=2)
async def test_a_producer_that_outlives_its_registry_overwrites_nothing_in_the_next() -> None:
    async with Site() as site:
        old, new = await site.client(0), await site.client(1)
        queue = old.queue("q")
        revision, epochs = await queue.put(b"of the history before"), [old.link_epoch, new.link_epoch]
        await site.registry.close()
        await site.start_registry()
        for client, epoch in zip((old, new), epochs, strict=True):
            assert await client.wait_relinked(epoch, 30.0)
        # Here the queue is longer, and its end was written at the very revision that the old one remembers.
        assert await new.kv.put(queue.prefix + b"tail", b"6") == revision
        await queue.put(b"late")
        tail = await new.kv.get(queue.prefix + b"tail")
        assert tail is not None
        assert tail.value == b"7"
        assert [kv.key for kv in await new.kv.list(queue.items)] == [queue.items + b"%016x" % 7]


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_come_back_at_once_never_wait_for_each_other(seed: int) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with Site() as site:
            clients = [await site.client(number) for number in range(3)]
            rounds = [0, 0, 0]

            async def member(number: int, client: Client) -> None:
                for _ in range(20):
                    async with client.double_barrier("phase", 3):
                        rounds[number] += 1
                        await asyncio.sleep(site.loop.rng.uniform(0.0, 0.01))
                        assert max(rounds) - min(rounds) <= 1, "nobody is a round ahead of who comes in"

            async with asyncio.timeout(60.0):
                await asyncio.gather(*(member(number, client) for number, client in enumerate(clients)))
            assert site.user_keys() == []

    run()


@virtual_time(seed=3)
async def test_as_many_as_there_are_permits_get_one_without_waiting() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(6)]
        got = await asyncio.gather(*(client.semaphore("s", 5).acquire(wait=False) for client in clients))
        assert sum(got) == 5


@virtual_time(seed=4)
async def test_as_many_as_there_are_items_get_one_without_waiting() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(6)]
        for number in range(5):
            await clients[0].queue("q").put(b"%d" % number)
        got = await asyncio.gather(*(client.queue("q").claim().acquire(wait=False) for client in clients))
        assert sum(got) == 5


@virtual_time(seed=5)
async def test_names_within_names_and_things_of_one_name_do_not_stand_in_each_others_way() -> None:
    async with Site() as site:
        client = await site.client(0)
        await client.queue("jobs").put(b"item")
        await client.kv.put("jobs/readme", b"of a user")
        async with client.lock("jobs/nightly"), client.semaphore("jobs", 1), client.election("jobs"):
            for holding in (client.lock("jobs"), client.semaphore("jobs/nightly", 1), client.queue("jobs").claim()):
                assert await holding.acquire(timeout_s=5.0), f"{holding} is free"
            assert not await client.double_barrier("jobs", 2).enter(timeout_s=5.0), "one is no group of two"


@virtual_time(seed=6)
async def test_who_holds_something_on_a_session_that_another_closes_is_told() -> None:
    async with Site() as site:
        client = await site.client(0)
        session = client.session(ttl_s=10.0)
        await session.start()
        lock = session.lock("a")
        told: list[str] = []

        async def work() -> None:
            await lock.acquire()
            lock.on_lost(lambda: told.append("lost"))
            with pytest.raises(LeaseGone):
                async with lock.guarded():
                    await asyncio.sleep(100.0)

        working = site.run(0, work())
        await asyncio.sleep(1.0)
        assert lock.token
        await session.close()
        assert not lock.held
        await asyncio.sleep(1.0)
        assert lock.lost.is_set()
        assert working.done(), "a guarded body does not outlive the lease it is guarded by"


@virtual_time(seed=7)
async def test_who_has_given_it_back_hears_no_more_of_the_session() -> None:
    async with Site() as site:
        client = await site.client(0)
        told: list[str] = []
        async with client.session(ttl_s=3.0) as session:
            async with session.lock("a") as lock:
                lock.on_lost(lambda: told.append("lost"))
            async with session.lock("b") as lock, lock.guarded():
                txn = client.kv.txn()
                txn.require(lock.key, created=lock.token)
                assert (await txn.commit()).succeeded
            assert lock.key == b""
        assert not told
        assert not lock.lost.is_set()
