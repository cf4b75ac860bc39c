"""No user notices: instances are killed, stopped and replaced, and misbehave, under load that never asks twice."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.crash.workload import of_long
from tests.resilience.site import Site


async def test_nobody_notices_that_an_instance_is_killed(site: Site) -> None:
    await site.fill(3)
    await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(200)
        await site.members["orders-2"].kill()
        await load.more(200)
        await site.available("orders-1", "orders-3")
        await load.more(100)
    assert all(failure.action == "POST" for failure in load.judge(site.witness("orders-2")))


@pytest.mark.parametrize("manners", ["resets", "slow", "long"])
async def test_nobody_notices_an_instance_of_bad_manners(site: Site, manners: str) -> None:
    await site.add("orders-bad", manners=manners)
    await site.fill(2)
    await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(400)
    unsafe = load.judge(site.witness("orders-bad") if manners == "resets" else ())
    assert all(failure.action == "POST" for failure in unsafe)
    assert site.witness("orders-bad")


async def test_an_answer_that_is_shorter_than_it_says_is_never_taken_for_whole(site: Site) -> None:
    await site.add("orders-bad", manners="short")
    await site.fill(2)
    await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(200)
    unsafe = load.judge(site.witness("orders-bad"))
    assert {failure.request_id for failure in unsafe} == set(site.witness("orders-bad"))


@pytest.mark.long
async def test_nobody_notices_that_an_instance_is_stopped_in_its_tracks(site: Site) -> None:
    await site.fill(3)
    await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(200)
        site.members["orders-2"].signal(signal.SIGSTOP)
        await site.available("orders-1", "orders-3")
        await load.more(200)
        site.members["orders-2"].signal(signal.SIGCONT)
        await site.available("orders-1", "orders-2", "orders-3")
        await load.more(200)
    assert all(failure.action == "POST" for failure in load.judge(site.witness("orders-2")))
    assert max(load.tally.latencies_ms) < 15_000, "somebody waited for the per-try timeout"


@pytest.mark.long
async def test_nobody_notices_that_all_instances_are_replaced_one_after_the_other(site: Site) -> None:
    await site.fill(3)
    await site.start_edge()
    load = site.load()
    names = ["orders-1", "orders-2", "orders-3"]
    async with load.running():
        for turn in range(of_long(5, 1)):
            for old in list(names):
                new = f"{old.partition('+')[0]}+{turn}"
                await site.add(new)
                await site.available(*names, new)
                site.members[old].signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    await site.members[old].child.wait()
                names = [new if name == old else name for name in names]
                await site.available(*names)
        await load.more(100)
    assert load.judge() == []


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_nobody_notices_that_the_registry_is_down_for_minutes_and_instances_die_meanwhile(site: Site) -> None:
    await site.fill(4)
    await site.start_edge()
    load = site.load()
    async with load.running(4):
        await load.more(100)
        assert site.registry is not None
        await site.registry.kill()
        await load.more(200)
        await site.members["orders-1"].kill()
        down_s = of_long(180, 20)
        await asyncio.sleep(down_s)  # the outage itself: two of its TTLs would pass in two seconds
        await site.start_registry()
        await site.available("orders-2", "orders-3", "orders-4")
        await load.more(200)
    assert all(failure.action == "POST" for failure in load.judge(site.witness("orders-1")))
    assert load.tally.requests > down_s * 20


@pytest.mark.long
async def test_nobody_notices_that_the_edge_was_restarted_while_no_registry_answers(site: Site) -> None:
    await site.fill(2)
    edge = await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(100)
    assert site.registry is not None
    await site.registry.kill()
    edge.signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        await edge.child.wait()
    await site.start_edge()
    async with load.running():
        await load.more(200)
    assert load.judge() == []
