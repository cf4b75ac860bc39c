"""Locks and semaphores: mutual, fair, cancel-safe, and known to be lost before another has them."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable

import pytest

from homeport.client import Client, Holding, InvalidArgument, LeaseGone, Lock, Semaphore, Unavailable
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry
from tests.client.coordination.sites import REGISTRY, Site, host
from tests.client.replicas import Replica


@virtual_time(seed=1)
async def test_a_lock_is_held_by_one_at_a_time_in_the_order_in_which_they_came() -> None:
    async with Site() as site:
        order: list[int] = []
        tokens: list[int] = []

        async def holder(number: int, client: Client) -> None:
            await asyncio.sleep(0.1 * number)
            async with client.lock("jobs/nightly") as lock:
                assert lock.held
                order.append(number)
                tokens.append(lock.token)
                await asyncio.sleep(5.0)
                assert lock.held
                assert order[-1] == number, "nobody came between"

        clients = [await site.client(number) for number in range(5)]
        await asyncio.gather(*(site.run(n, holder(n, client)) for n, client in enumerate(clients)))
        assert order == [0, 1, 2, 3, 4]
        assert tokens == sorted(set(tokens)), "each holder's token is larger than all before"
        assert site.user_keys() == []
        assert not site.registry.store.leases()


@virtual_time(seed=1)
async def test_who_come_at_the_same_moment_over_etcd_hold_it_one_after_the_other() -> None:
    """What arrives together goes to etcd together, and must not be given one revision."""
    holding, tokens = 0, list[int]()

    async def hold(client: Client) -> None:
        nonlocal holding
        async with client.lock("l") as lock:
            holding += 1
            assert holding == 1
            tokens.append(lock.token)
            await asyncio.sleep(0.5)
            holding -= 1

    async with Replica(ModelLink(ModelEtcd(), 0.001), 1) as one, one.client() as client:
        await asyncio.gather(*(hold(client) for _ in range(5)))
    assert len(tokens) == 5
    assert tokens == sorted(set(tokens)), "each holder's token is larger than all before"


@virtual_time(seed=2)
async def test_a_release_wakes_one_waiter_and_no_herd() -> None:
    async with Site() as site:
        client = await site.client(0)
        locks = [client.lock("l") for _ in range(30)]
        await locks[0].acquire()
        waiting = []
        for lock in locks[1:]:
            waiting.append(asyncio.ensure_future(lock.acquire()))
            await asyncio.sleep(0.05)
        asked: list[str] = []
        call = client._connection.call

        async def counted(request: object, timeout_s: float = 5.0) -> object:
            asked.append(type(request).__name__)
            return await call(request, timeout_s)  # type: ignore[arg-type]

        client._connection.call = counted  # type: ignore[method-assign, assignment]
        await locks[0].release()
        await waiting[0]
        assert sorted(set(asked) - {"Renew"}) == ["KvTxn", "LeaseRevoke"]
        assert asked.count("KvTxn") == 1, "the next in the queue looked, and nobody else"
        for task in waiting[1:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@virtual_time(seed=3)
async def test_whoever_does_not_want_to_wait_is_told_and_leaves_nothing() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        async with a.lock("l"):
            before = site.user_keys()
            assert not await b.lock("l").acquire(wait=False)
            assert not await b.lock("l").acquire(timeout_s=1.0)
            await asyncio.sleep(0.1)
            assert site.user_keys() == before
        other = b.lock("l")
        assert await other.acquire(wait=False)
        await other.release()
        await other.release()
        assert not other.held
        assert other.token == 0


@virtual_time(seed=4)
async def test_a_dead_holder_is_followed_by_the_next_and_its_token_is_smaller() -> None:
    async with Site() as site:
        first, second = await site.client(0), await site.client(1)

        async def holds() -> int:
            lock = first.lock("l", ttl_s=3.0)
            await lock.acquire()
            return lock.token

        token = await site.run(0, holds())
        waiting = asyncio.ensure_future((lock := second.lock("l")).acquire())
        await asyncio.sleep(1.0)
        assert not waiting.done()
        site.network.crash(host(0))
        async with asyncio.timeout(3.5):
            assert await waiting
        assert lock.token > token
        await lock.release()
        del site.clients[host(0)]


@virtual_time(seed=5)
async def test_a_lock_that_was_lost_says_so_at_the_latest_when_it_is_left() -> None:
    async with Site() as site:
        client = await site.client(0)
        told: list[float] = []

        async def loses(name: str, then: Callable[[], None]) -> None:
            async with client.lock(name, ttl_s=2.0) as lock:
                lock.on_lost(lambda: told.append(site.loop.time()))
                began = site.loop.time()
                site.network.partition(REGISTRY)
                await lock.lost.wait()
                assert site.loop.time() - began < 2.0
                assert not lock.held
                then()

        with pytest.raises(LeaseGone, match="may be over"):
            await loses("l", lambda: None)
        assert len(told) == 1
        site.network.heal()
        with pytest.raises(ZeroDivisionError):
            await loses("l", lambda: operator.truediv(1, 0) and None)
        site.network.heal()
        async with client.lock("l") as lock:
            assert not lock.lost.is_set()


@virtual_time(seed=12)
async def test_a_holder_that_was_paused_at_the_very_end_is_told_all_the_same() -> None:
    async with Site() as site:
        client = await site.client(0)

        async def holds() -> None:
            async with client.lock("l", ttl_s=2.0):
                await asyncio.sleep(1.0)
                site.loop.stall(10.0)  # nothing has run since, no timer either

        with pytest.raises(LeaseGone):
            await holds()
        with pytest.raises(LeaseGone):
            async with client.session() as session, session.lock("l"):
                await session.close()


@virtual_time(seed=6)
async def test_a_guarded_body_is_cancelled_with_its_lock() -> None:
    async with Site() as site:
        client = await site.client(0)
        lock = client.lock("l", ttl_s=2.0)
        with pytest.raises(LeaseGone):
            lock.guarded()

        async def body() -> None:
            async with lock, lock.guarded():
                site.network.partition(REGISTRY)
                await asyncio.Event().wait()

        async with asyncio.timeout(30.0):
            with pytest.raises(LeaseGone):
                await body()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["lock", "semaphore"])
@pytest.mark.parametrize("seed", range(12))
def test_a_waiter_that_is_cancelled_anywhere_leaves_nothing_in_the_way(seed: int, kind: str, shared: bool) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with Site() as site:
            client, other = await site.client(0), await site.client(1)
            session = client.session()
            if shared:
                await session.start()

            def one(of: Client) -> Lock | Semaphore:
                mine = session if shared and of is client else None
                return of.lock("l", session=mine) if kind == "lock" else of.semaphore("l", 1, session=mine)

            for _ in range(20):
                wanted = one(client)
                acquiring = asyncio.ensure_future(wanted.acquire())
                await asyncio.sleep(site.loop.rng.uniform(0.0, 0.008))
                if site.loop.rng.random() < 0.3:
                    site.network.reset_all()
                acquiring.cancel()
                await asyncio.wait((acquiring,))
                if not acquiring.cancelled():
                    assert acquiring.result()
                    await wanted.release()
                async with asyncio.timeout(30.0):
                    async with one(other):
                        pass
            await session.close()
            await asyncio.sleep(15.0)
            assert site.user_keys() == []

    run()


@pytest.mark.parametrize("kind", ["lock", "semaphore", "queue", "barrier"])
def test_one_that_lost_patience_and_asks_again_at_once_does_not_stand_in_its_own_way(kind: str) -> None:
    @virtual_time(seed=13)
    async def run() -> None:
        async with Site() as site:
            client, other = await site.client(0), await site.client(1)
            async with client.session() as session:
                holder: Holding | None = None
                wanted: Holding
                match kind:
                    case "lock":
                        holder, wanted = other.lock("x"), session.lock("x")
                    case "semaphore":
                        holder, wanted = other.semaphore("x", 1), session.semaphore("x", 1)
                    case "queue":
                        wanted = session.queue("x").claim()
                    case _:
                        wanted = session.double_barrier("x", 2)
                if holder is not None:
                    await holder.acquire()
                for _ in range(5):
                    assert not await wanted.acquire(timeout_s=1.0)
                await asyncio.sleep(0.1)
                standing = [key for key in site.user_keys() if b"%016x" % session.id in key]
                assert standing == []
                again = asyncio.ensure_future(wanted.acquire(timeout_s=20.0))
                await asyncio.sleep(1.0)
                if holder is not None:
                    await holder.release()
                elif kind == "queue":
                    await other.queue("x").put(b"")
                else:
                    beside = asyncio.ensure_future(other.double_barrier("x", 2).acquire())
                assert await again
                if kind == "barrier":
                    assert await beside
                    return
                await wanted.release()

    run()


@virtual_time(seed=7)
async def test_a_waiter_keeps_its_place_over_a_broken_connection_and_waits_through_an_outage() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(3)]
        order: list[int] = []

        async def holder(number: int) -> None:
            await asyncio.sleep(0.1 * number)
            async with clients[number].lock("l", ttl_s=6.0):
                order.append(number)
                await asyncio.sleep(3.0)

        holding = [site.run(number, holder(number)) for number in range(3)]
        await asyncio.sleep(1.0)
        site.network.reset_all()
        await asyncio.gather(*holding)
        assert order == [0, 1, 2]
        async with clients[0].lock("l", ttl_s=3.0):
            waiting = asyncio.ensure_future(clients[1].lock("l", ttl_s=3.0).acquire())
            await asyncio.sleep(1.0)
            site.network.cut(REGISTRY, host(1))
            await asyncio.sleep(20.0)
            site.network.heal()
            await asyncio.sleep(10.0)
            assert not waiting.done()
        async with asyncio.timeout(5.0):
            assert await waiting


@virtual_time(seed=8)
async def test_a_session_shares_one_lease_and_one_fate() -> None:
    async with Site() as site:
        client = await site.client(0)

        async def body() -> None:
            async with client.session(ttl_s=3.0) as session, session.lock("a") as a:
                async with session.lock("b") as b, session.semaphore("s", 2) as s:
                    assert len(site.registry.store.leases()) == 1
                    assert len({a.token, b.token, s.token}) == 3
                assert a.remaining_s > 0
                async with session.lock("b"):
                    pass
                site.network.partition(REGISTRY)
                await a.lost.wait()
                assert session.lost.is_set()
                assert not a.held
                with pytest.raises(LeaseGone):
                    await session.lock("c").acquire()

        with pytest.raises(LeaseGone):
            await body()
        site.network.heal()


@virtual_time(seed=9)
async def test_mistakes_are_told_at_once() -> None:
    async with Site() as site:
        client = await site.client(0)
        session = client.session()
        for wrong, match in (
            (lambda: client.lock(""), "name is empty"),
            (lambda: client.lock("l", ttl_s=0.0), "ttl_s is 0"),
            (lambda: client.lock("l", ttl_s=5.0, session=session), "ttl_s or a session"),
            (lambda: client.semaphore("s", 0), "permits is 0"),
            (lambda: client.double_barrier("s", 0), "count is 0"),
            (lambda: client.queue("q", ttl_s=0.0), "ttl_s is 0"),
        ):
            with pytest.raises(InvalidArgument, match=match):
                wrong()
        lock = client.lock("l")
        async with lock:
            with pytest.raises(InvalidArgument, match="held already"):
                await lock.acquire()
        await site.registry.close()
        with pytest.raises(Unavailable):
            await client.lock("l").acquire(wait=False)
        assert not await client.lock("l").acquire(timeout_s=20.0)
        await site.start_registry()


@virtual_time(seed=10)
async def test_a_semaphore_has_so_many_holders_and_hands_permits_on_in_order() -> None:
    async with Site() as site:
        client = await site.client(0)
        holding = 0
        most = 0
        order: list[int] = []

        async def holder(number: int) -> None:
            nonlocal holding, most
            await asyncio.sleep(0.1 * number)
            async with client.semaphore("s", 3) as permit:
                order.append(number)
                assert permit.token
                holding += 1
                most = max(most, holding)
                await asyncio.sleep(running_loop().rng.uniform(2.0, 5.0))
                holding -= 1

        await asyncio.gather(*(holder(number) for number in range(12)))
        assert most == 3
        assert order == list(range(12))
        async with client.semaphore("s", 3):
            with pytest.raises(InvalidArgument, match="has 3 permits"):
                await client.semaphore("s", 4).acquire()
            assert await client.semaphore("s", 3).acquire(wait=False)
            last = client.semaphore("s", 3)
            assert await last.acquire(wait=False)
            assert not await client.semaphore("s", 3).acquire(wait=False)
            await last.release()
            assert await client.semaphore("s", 3).acquire(wait=False)


@virtual_time(seed=11)
async def test_over_replicas_a_lock_passes_from_one_client_to_the_next() -> None:
    etcd = ModelEtcd()
    one, two = Replica(ModelLink(etcd, 0.001), 1), Replica(ModelLink(etcd, 0.02), 2)
    async with one, two, one.client() as a, two.client() as b:
        held: list[str] = []

        async def holder(client: Client, name: str) -> None:
            for _ in range(5):
                async with client.lock("l") as lock:
                    held.append(name)
                    await asyncio.sleep(1.0)
                    assert lock.held
                    assert held[-1] == name

        await asyncio.gather(holder(a, "a"), holder(b, "b"))
        assert held == ["a", "b"] * 5 or held == ["b", "a"] * 5


async def test_a_lock_over_a_real_connection() -> None:
    async with Registry() as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as a, registry.client() as b:
            async with a.lock("l") as first:
                waiting = asyncio.ensure_future((second := b.lock("l")).acquire())
                token = first.token
            assert await waiting
            assert second.token > token
            await second.release()
