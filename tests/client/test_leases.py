"""A lease's owner knows that it is over before the registry ends it, whatever is slow, cut off or paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from homeport.client import Client, Closed, InvalidArgument, LeaseGone, Unavailable
from homeport.client.core.limits import CLOCKS_APART
from homeport.client.core.messages import LeaseRevoke
from homeport.client.leases import Lease
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry

REGISTRY, OWNER = "10.0.0.1", "10.0.0.2"
ADDRESS = f"{REGISTRY}:8300"


@asynccontextmanager
async def registry_and_client() -> AsyncIterator[tuple[Registry, Client]]:
    """A registry on one host, and a client on another."""
    network = running_loop().network
    with network.host(REGISTRY):
        registry = Registry(node="n")
        await registry.start()
        await registry.serve(rpc=ADDRESS)
    client = Client(ADDRESS)
    with network.host(OWNER):
        await client.start()
    yield registry, client
    await client.close()
    await registry.close()


def ends(registry: Registry, lease: Lease) -> asyncio.Future[float]:
    """The time at which the registry ends a lease."""
    at: asyncio.Future[float] = running_loop().create_future()

    def changed(_revision: int, _changes: tuple[object, ...]) -> None:
        if lease.id not in registry.store.leases() and not at.done():
            at.set_result(running_loop().time())

    registry.store.listen(changed)
    return at


@virtual_time(seed=1)
async def test_a_lease_lives_as_long_as_its_owner_and_takes_its_keys_with_it() -> None:
    async with registry_and_client() as (registry, client):
        async with client.lease(ttl_s=3.0) as lease:
            await client.kv.put("me", b"", lease=lease)
            await asyncio.sleep(60.0)
            assert 0 < lease.remaining_s <= 3.0
            assert await client.kv.get("me") is not None
        assert not lease.valid
        assert not lease.lost.is_set(), "giving back is no loss"
        assert await client.kv.get("me") is None
        assert not registry.store.leases()
        with pytest.raises(LeaseGone):
            await client.kv.put("me", b"", lease=lease)


@pytest.mark.parametrize("fault", ["partition", "stall", "cut", "slow answers"])
def test_the_owner_knows_of_the_loss_before_the_registry_ends_the_lease(fault: str) -> None:
    @virtual_time(seed=2)
    async def run() -> None:
        network = running_loop().network
        called: list[float] = []
        async with registry_and_client() as (registry, client):
            async with client.lease(ttl_s=3.0) as lease:
                ended = ends(registry, lease)
                lease.on_lost(lambda: called.append(running_loop().time()))
                await asyncio.sleep(10.2)
                match fault:
                    case "partition":
                        network.partition(REGISTRY, OWNER)
                    case "stall":
                        running_loop().network.link(REGISTRY, OWNER).latency_s = (100.0, 100.0)
                    case "cut":
                        network.cut(REGISTRY, OWNER)
                    case _:
                        network.link(REGISTRY, OWNER).latency_s = (2.5, 2.9)
                        network.link(OWNER, REGISTRY).latency_s = (0.5, 0.9)
                await lease.lost.wait()
                lost_at = running_loop().time()
                assert not lease.valid
                with pytest.raises(LeaseGone):
                    lease.expect_valid()
                assert lost_at < await ended
                assert called == [lost_at]
                network.heal()
                network.link(REGISTRY, OWNER).latency_s = network.link(OWNER, REGISTRY).latency_s = (0.001, 0.001)
            assert lease.lost.is_set()

    run()


@virtual_time(seed=3)
async def test_a_paused_owner_finds_its_lease_invalid_at_its_first_look() -> None:
    network = running_loop().network
    async with registry_and_client() as (_registry, client):
        looked: list[bool] = []

        async def owner() -> None:
            async with client.lease(ttl_s=3.0) as lease:
                while not lease.lost.is_set():
                    looked.append(lease.valid)
                    await asyncio.sleep(0.05)
                looked.append(lease.valid)

        with network.host(OWNER):
            owning = asyncio.ensure_future(owner())
        await asyncio.sleep(1.0)
        assert all(looked)
        looked.clear()
        network.stall(OWNER)
        await asyncio.sleep(20.0)
        assert not looked
        network.heal(OWNER)
        await owning
        assert not any(looked)


@virtual_time(seed=4)
async def test_an_answer_that_comes_late_does_not_make_a_lease_live_longer() -> None:
    network = running_loop().network
    async with registry_and_client() as (_registry, client), client.lease(ttl_s=9.0) as lease:
        network.link(REGISTRY, OWNER).latency_s = (1.0, 1.0)
        await asyncio.sleep(4.5)  # one renewal was sent after 3 s, and answered after 4
        assert lease.valid
        sent_at = lease.deadline - 9.0 * (1 - CLOCKS_APART)
        assert running_loop().time() - sent_at > 1.4


@virtual_time(seed=5)
async def test_a_lease_that_was_revoked_by_others_is_lost_at_the_next_renewal() -> None:
    async with registry_and_client() as (_registry, client), client.lease(ttl_s=3.0) as lease:
        await client.call(LeaseRevoke(lease=lease.id))
        async with asyncio.timeout(1.2):
            await lease.lost.wait()
        assert isinstance(lease.error, LeaseGone)


@virtual_time(seed=6)
async def test_a_lease_survives_an_outage_shorter_than_its_ttl() -> None:
    network = running_loop().network
    async with registry_and_client() as (_registry, client), client.lease(ttl_s=6.0) as lease:
        for _ in range(5):
            network.reset_all()
            await asyncio.sleep(3.0)
        assert lease.valid
        network.cut(REGISTRY, OWNER)
        await asyncio.sleep(2.0)
        network.heal()
        await asyncio.sleep(10.0)
        assert lease.valid


@virtual_time(seed=7)
async def test_a_guarded_body_is_cancelled_when_the_lease_is_lost() -> None:
    network = running_loop().network
    async with registry_and_client() as (_registry, client), client.lease(ttl_s=3.0) as lease:
        network.partition(REGISTRY, OWNER)
        with pytest.raises(LeaseGone, match="may be over"):
            async with lease.guarded():
                await asyncio.sleep(60.0)
        with pytest.raises(LeaseGone):
            async with lease.guarded():
                pytest.fail("it is lost already")
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        network.heal()


@virtual_time(seed=8)
async def test_whoever_cancels_a_guarded_body_is_not_mistaken_for_a_loss() -> None:
    async with registry_and_client() as (_registry, client), client.lease(ttl_s=3.0) as lease:

        async def body() -> None:
            async with lease.guarded():
                await asyncio.sleep(60.0)

        task = asyncio.ensure_future(body())
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ZeroDivisionError):
            async with lease.guarded():
                _ = 1 / 0
        assert lease.valid


@pytest.mark.parametrize("seed", range(20))
def test_a_start_that_is_cancelled_leaves_no_lease_behind(seed: int) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with registry_and_client() as (registry, client):
            assert await client.wait_connected()
            starting = asyncio.ensure_future(client.lease(ttl_s=60.0).start())
            await asyncio.sleep(running_loop().rng.uniform(0.0, 0.003))
            starting.cancel()
            await asyncio.wait((starting,))
            await asyncio.sleep(1.0)
            if starting.cancelled():
                assert not registry.store.leases()

    run()


@virtual_time(seed=9)
async def test_closing_the_client_loses_its_leases_and_waits_for_those_given_back() -> None:
    async with registry_and_client() as (registry, client):
        kept, given_back = client.lease(ttl_s=60.0), client.lease(ttl_s=60.0)
        await kept.start()
        await given_back.start()
        closing = asyncio.ensure_future(given_back.close())
        await asyncio.sleep(0)
        closing.cancel()
        await client.close()
        assert registry.store.leases() == [kept.id]
        assert kept.lost.is_set()
        assert not given_back.lost.is_set()


@virtual_time(seed=11)
async def test_a_close_that_is_cancelled_still_closes() -> None:
    network = running_loop().network
    async with registry_and_client() as (_registry, client):
        lease = client.lease(ttl_s=60.0)
        await lease.start()
        network.partition(REGISTRY, OWNER)
        lease.let_go()
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0.5)
        closing.cancel()
        await asyncio.wait((closing,))
        assert not client.connected
        with pytest.raises(Closed):
            await client.kv.get("a")
        network.heal()


@virtual_time(seed=10)
async def test_a_lease_tells_mistakes_at_once() -> None:
    async with registry_and_client() as (registry, client):
        with pytest.raises(InvalidArgument, match=r"ttl_s is 0\.1"):
            client.lease(ttl_s=0.1)
        async with client.lease() as lease:
            with pytest.raises(Closed, match="starts once"):
                await lease.start()
        await registry.close()
        await asyncio.sleep(1.0)
        began = running_loop().time()
        with pytest.raises(Unavailable, match="no registry"):
            await client.lease().start()
        assert running_loop().time() - began < 6.0
