"""Elections and barriers: one leader whom all see, gates that open for everyone, groups that come and go together."""

from __future__ import annotations

import asyncio

import pytest

from homeport.client import Client, LeaseGone
from homeport.mesh.testing import virtual_time
from tests.client.coordination.sites import REGISTRY, Site, host


async def observe(client: Client, seen: list[bytes | None]) -> None:
    """Note what every leader says of itself."""
    async for leader in client.election("e").observe():
        said = leader.value if leader is not None else None
        seen.append(said)


@virtual_time(seed=1)
async def test_one_leads_and_everybody_sees_who() -> None:
    async with Site() as site:
        a, b, observer = [await site.client(number) for number in range(3)]
        seen: list[bytes | None] = []

        observing = asyncio.ensure_future(observe(observer, seen))
        await asyncio.sleep(1.0)
        first, second = a.election("e", value=b"a"), b.election("e")
        assert await first.campaign()
        campaigning = asyncio.ensure_future(second.campaign(b"b"))
        await asyncio.sleep(1.0)
        leader = await observer.election("e").leader()
        assert leader is not None
        assert (leader.value, leader.token) == (b"a", first.token)
        await first.proclaim(b"a, busy")
        await asyncio.sleep(1.0)
        await first.resign()
        assert await campaigning
        await asyncio.sleep(1.0)
        with pytest.raises(LeaseGone):
            await first.proclaim(b"x")
        await second.resign()
        await asyncio.sleep(1.0)
        assert seen == [None, b"a", b"a, busy", b"b", None]
        assert await observer.election("e").leader() is None
        observing.cancel()


@virtual_time(seed=2)
async def test_a_dead_leader_is_followed_and_an_observer_that_was_cut_off_sees_the_present_one() -> None:
    async with Site() as site:
        a, b, observer = [await site.client(number) for number in range(3)]
        seen: list[bytes | None] = []

        async def leads() -> None:
            await a.election("e", ttl_s=3.0, value=b"a").acquire()

        await site.run(0, leads())
        observing = asyncio.ensure_future(observe(observer, seen))
        successor = b.election("e", value=b"b")
        campaigning = asyncio.ensure_future(successor.campaign())
        await asyncio.sleep(1.0)
        site.network.cut(REGISTRY, host(2))
        site.network.crash(host(0))
        del site.clients[host(0)]
        assert await campaigning
        await asyncio.sleep(10.0)
        assert seen == [b"a"]
        site.network.heal(REGISTRY, host(2))
        await asyncio.sleep(10.0)
        assert seen == [b"a", b"b"]
        assert not await a_candidate_that_gives_up(observer)
        observing.cancel()
        await successor.resign()


async def a_candidate_that_gives_up(client: Client) -> bool:
    return await client.election("e", value=b"c").campaign(timeout_s=1.0)


@virtual_time(seed=3)
async def test_a_gate_holds_everyone_up_until_it_is_opened() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(3)]
        gate = clients[0].barrier("gate")
        assert await clients[1].barrier("gate").wait()
        await gate.hold()
        await gate.hold()
        assert not await clients[1].barrier("gate").wait(timeout_s=1.0)
        waiting = [asyncio.ensure_future(client.barrier("gate").wait()) for client in clients]
        await asyncio.sleep(5.0)
        site.network.reset_all()
        await asyncio.sleep(5.0)
        assert not any(task.done() for task in waiting)
        await gate.release()
        assert all(await asyncio.gather(*waiting))
        async with clients[0].lease(ttl_s=3.0) as lease:
            await gate.hold(lease=lease)
            waiting = [asyncio.ensure_future(clients[1].barrier("gate").wait())]
            await asyncio.sleep(5.0)
            assert not waiting[0].done()
        assert await waiting[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_comes_in_together_and_leaves_together_round_after_round(seed: int) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with Site() as site:
            clients = [await site.client(number) for number in range(4)]
            inside = arrived = 0

            async def member(client: Client) -> None:
                nonlocal inside, arrived
                for number in range(1, 4):
                    await asyncio.sleep(site.loop.rng.uniform(0.0, 5.0))
                    arrived += 1
                    async with client.double_barrier("phase", 4):
                        assert arrived == 4 * number, "all had come before one was let in"
                        inside += 1
                        await asyncio.sleep(site.loop.rng.uniform(0.0, 5.0))
                        inside -= 1
                    assert inside == 0, "all had left before one was let out"

            await asyncio.gather(*(member(client) for client in clients))
            assert site.user_keys() == []

    run()


@virtual_time(seed=4)
async def test_a_member_that_dies_inside_holds_nobody_up_for_longer_than_its_lease() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(3)]
        barriers = [client.double_barrier("phase", 2, ttl_s=3.0) for client in clients]
        dying = site.run(0, barriers[0].enter())
        assert await barriers[1].enter()
        await dying
        site.network.crash(host(0))
        del site.clients[host(0)]
        async with asyncio.timeout(4.0):
            assert await barriers[1].leave()
        assert not await barriers[1].enter(timeout_s=1.0), "nothing is left of the group before"
        assert all(await asyncio.gather(barriers[1].enter(), barriers[2].enter()))
        assert not await barriers[1].leave(timeout_s=1.0)
        assert await barriers[2].leave()
        assert await barriers[1].leave()


@virtual_time(seed=5)
async def test_a_whole_group_that_dies_leaves_no_open_door_behind() -> None:
    async with Site() as site:
        clients = [await site.client(number) for number in range(4)]
        dying = [site.run(number, clients[number].double_barrier("p", 2, ttl_s=3.0).enter()) for number in (0, 1)]
        await asyncio.gather(*dying)
        for number in (0, 1):
            site.network.crash(host(number))
            del site.clients[host(number)]
        await asyncio.sleep(5.0)
        assert site.user_keys() == [b"p/~barrier.ready"]
        late = clients[2].double_barrier("p", 2)
        assert not await late.enter(timeout_s=5.0)
        both = [late, clients[3].double_barrier("p", 2)]
        assert all(await asyncio.gather(*(each.enter() for each in both)))
        assert all(await asyncio.gather(*(each.leave() for each in both)))
        assert site.user_keys() == []


@virtual_time(seed=6)
async def test_a_member_that_fails_does_not_wait_for_the_others() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)

        async def fails() -> None:
            async with a.double_barrier("p", 2):
                raise ZeroDivisionError

        other = b.double_barrier("p", 2)
        entering = asyncio.ensure_future(other.enter())
        with pytest.raises(ZeroDivisionError):
            await fails()
        assert await entering
        assert await other.leave(timeout_s=1.0)
