"""Queues: items in order, to one consumer at a time, and back in their place when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from homeport.client import BadValue, Claim, Client, LeaseGone
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from tests.client.coordination.sites import REGISTRY, Site, host
from tests.client.replicas import Replica


@virtual_time(seed=1)
async def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    async with Site() as site:
        producers, consumer = [await site.client(n) for n in range(3)], await site.client(9)
        put: dict[int, bytes] = {}

        async def produce(number: int, client: Client) -> None:
            queue = client.queue("q")
            for item in range(10):
                value = b"%d.%d" % (number, item)
                put[await queue.put(value)] = value

        await asyncio.gather(*(produce(n, client) for n, client in enumerate(producers)))
        queue = consumer.queue("q")
        assert await queue.length() == 30
        out: list[bytes] = []
        while len(out) < 30:
            async with queue.claim() as job:
                assert job.token
                out.append(job.value)
        assert out == [put[revision] for revision in sorted(put)]
        assert await queue.length() == 0
        assert not await queue.claim().acquire(wait=False)
        assert site.user_keys() == [b"q/~queue/tail"]


@virtual_time(seed=2)
async def test_consumers_share_the_items_and_wait_for_more() -> None:
    async with Site() as site:
        producer = (await site.client(0)).queue("q")
        done: list[tuple[int, bytes]] = []

        async def consume(number: int, client: Client) -> None:
            while True:
                async with client.queue("q").claim() as job:
                    await asyncio.sleep(1.0)
                    done.append((number, job.value))

        consuming = [site.run(n, consume(n, await site.client(n))) for n in range(1, 4)]
        await asyncio.sleep(1.0)
        for item in range(9):
            await producer.put(b"%d" % item)
        await asyncio.sleep(4.0)
        assert sorted(value for _, value in done) == [b"%d" % item for item in range(9)]
        assert sorted({number for number, _ in done}) == [1, 2, 3]
        for task in consuming:
            task.cancel()
        await asyncio.gather(*consuming, return_exceptions=True)
        await asyncio.sleep(1.0)
        assert site.user_keys() == [b"q/~queue/tail"]


@virtual_time(seed=3)
async def test_the_item_of_a_dead_consumer_is_the_next_to_be_handed_out() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        for item in (b"first", b"second"):
            await b.queue("q").put(item)

        async def dies() -> int:
            claim = a.queue("q", ttl_s=3.0).claim()
            await claim.acquire()
            assert claim.value == b"first"
            return claim.token

        token = await site.run(0, dies())
        site.network.crash(host(0))
        del site.clients[host(0)]
        await asyncio.sleep(3.5)
        async with b.queue("q").claim() as job:
            assert job.value == b"first"
            assert job.token > token


@virtual_time(seed=4)
async def test_whoever_waits_is_handed_what_a_dead_consumer_had() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        await b.queue("q").put(b"only")
        await site.run(0, a.queue("q", ttl_s=3.0).claim().acquire())
        waiting = asyncio.ensure_future((job := b.queue("q").claim()).acquire())
        await asyncio.sleep(1.0)
        assert not waiting.done()
        site.network.crash(host(0))
        del site.clients[host(0)]
        async with asyncio.timeout(4.0):
            assert await waiting
        assert job.value == b"only"
        await job.done()
        assert await b.queue("q").length() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_an_item_whose_work_failed_is_back_in_its_place(shared: bool) -> None:
    @virtual_time(seed=5)
    async def run() -> None:
        async with Site() as site:
            client = await site.client(0)
            async with client.session() as session:
                queue = session.queue("q") if shared else client.queue("q")
                for item in (b"first", b"second"):
                    await queue.put(item)

                async def work(then: Callable[[Claim], None]) -> None:
                    async with queue.claim() as job:
                        then(job)

                def fail(_job: Claim) -> None:
                    raise ZeroDivisionError

                with pytest.raises(ZeroDivisionError):
                    await work(fail)
                seen: list[bytes] = []
                for _ in range(2):
                    await work(lambda job: seen.append(job.value))
                assert seen == [b"first", b"second"]
            assert site.user_keys() == [b"q/~queue/tail"]

    run()


@virtual_time(seed=6)
async def test_who_lost_a_claim_cannot_say_that_the_item_is_done() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        await b.queue("q").put(b"only")
        late = a.queue("q", ttl_s=3.0).claim()
        await late.acquire()
        site.network.partition(REGISTRY, host(0))
        await late.lost.wait()
        successor = b.queue("q").claim()
        assert await successor.acquire()
        site.network.heal()
        with pytest.raises(LeaseGone):
            await late.done()
        assert await b.queue("q").length() == 1
        await successor.done()
        assert await b.queue("q").length() == 0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_consumers_that_are_cancelled_anywhere_lose_no_item(seed: int, shared: bool) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with Site() as site:
            client, other = await site.client(0), await site.client(1)
            async with client.session() as session:
                done: list[bytes] = []

                async def consume() -> None:
                    queue = session.queue("q") if shared else client.queue("q")
                    async with queue.claim() as job:
                        value = job.value
                    done.append(value)

                for item in range(10):
                    await other.queue("q").put(b"%d" % item)
                for _ in range(25):
                    consuming = asyncio.ensure_future(consume())
                    await asyncio.sleep(site.loop.rng.uniform(0.0, 0.012))
                    if site.loop.rng.random() < 0.2:
                        site.network.reset_all()
                    consuming.cancel()
                    await asyncio.wait((consuming,))
                await asyncio.sleep(12.0)
                while await other.queue("q").length():
                    async with asyncio.timeout(15.0):
                        async with other.queue("q").claim() as job:
                            done.append(job.value)
            # A consumer that was cancelled may not know that its item is done; but none is lost, and none done twice.
            assert len(done) == len(set(done))
            assert site.user_keys() == [b"q/~queue/tail"]

    run()


@virtual_time(seed=9)
async def test_whoever_gives_a_claim_back_late_does_not_take_it_from_another() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        await b.queue("q").put(b"only")
        async with a.session() as session:
            late = session.queue("q").claim()
            await late.acquire()
            (key,) = [key for key in site.user_keys() if b"/claims/" in key]
            await b.kv.delete(key)
            successor = b.queue("q").claim()
            await successor.acquire()
            await late.release()
            assert key in site.user_keys()
            await successor.done()


@virtual_time(seed=8)
async def test_a_queue_whose_end_was_overwritten_says_so() -> None:
    async with Site() as site:
        client = await site.client(0)
        await client.kv.put("q/~queue/tail", b"one")
        with pytest.raises(BadValue, match="q/~queue/tail"):
            await client.queue("q").put(b"")


@virtual_time(seed=7)
async def test_over_replicas_items_pass_from_one_client_to_the_other() -> None:
    etcd = ModelEtcd()
    one, two = Replica(ModelLink(etcd, 0.001), 1), Replica(ModelLink(etcd, 0.02), 2)
    async with one, two, one.client() as a, two.client() as b:
        out: list[bytes] = []

        async def consume() -> None:
            while len(out) < 10:
                async with b.queue("q").claim() as job:
                    out.append(job.value)

        consuming = asyncio.ensure_future(consume())
        for item in range(10):
            await a.queue("q").put(b"%d" % item)
        await consuming
        assert out == [b"%d" % item for item in range(10)]
