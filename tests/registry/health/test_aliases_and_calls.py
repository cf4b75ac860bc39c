"""`alias` and `call` checks in a whole registry, in virtual time; and the writer that every verdict goes through."""

from __future__ import annotations

import asyncio
import random

import pytest

from homeport.client import Check, Client
from homeport.client.core.messages import ReportCheck
from homeport.client.core.model import Status
from homeport.mesh.testing import virtual_now, virtual_time
from homeport.registry import Registry
from homeport.registry.core.health import Verdict
from homeport.registry.core.limits import STATUS_TICK_S

SOON_S = 3 * STATUS_TICK_S  # longer than anything here may take, and far below any interval


def alias(of: str, node: str = "", name: str = "alias") -> Check:
    return Check(name=name, kind="alias", alias_id=of, alias_node=node)


def own() -> Check:
    return Check(name="own", kind="ttl", ttl_s=86_400.0, initial="critical")


async def add(client: Client, id_: str, *checks: Check) -> None:
    await client.register(id_, id=id_, port=1, ttl_s=0, checks=checks).start()


async def say(client: Client, id_: str, status: Status) -> None:
    await client.call(ReportCheck(id=id_, check="own", status=status))
    await asyncio.sleep(SOON_S)


def status_of(registry: Registry, id_: str) -> str:
    entry = registry.catalogue.find(registry.node, id_)
    assert entry is not None
    return entry.seen.status


@virtual_time(seed=1)
async def test_an_alias_follows_its_target_at_once_both_ways_also_through_another_alias() -> None:
    async with Registry(node="home") as registry, registry.client() as client:
        await add(client, "second", alias("first"))
        await add(client, "first", alias("db"))
        await asyncio.sleep(SOON_S)
        assert status_of(registry, "second") == "critical", "its target is not there"
        await add(client, "db", own())
        statuses: tuple[Status, ...] = ("passing", "warning", "critical", "passing")
        for status in statuses:
            await say(client, "db", status)
            assert [status_of(registry, one) for one in ("first", "second")] == [status, status]
        record = registry.catalogue.checks.one(("home", "second"), "alias")
        assert record is not None
        assert record.output == "alias: 'first' on node 'home' is passing"


@virtual_time(seed=2)
async def test_aliases_of_each_other_do_not_keep_each_other_critical() -> None:
    async with Registry(node="home") as registry, registry.client() as client:
        names = ("a", "b", "c")
        for this, following in zip(names, ("b", "c", "a"), strict=True):
            await add(client, this, own(), alias(following))
        await add(client, "narcissus", alias("narcissus"))
        rng = random.Random(2)
        for _ in range(20):
            for name in rng.sample(names, 3):
                await say(client, name, rng.choice(("passing", "critical")))
        for name in names:
            await say(client, name, "passing")
        assert {status_of(registry, name) for name in names} == {"passing"}
        assert status_of(registry, "narcissus") == "passing"
        await say(client, "b", "critical")
        assert {status_of(registry, name) for name in names} == {"critical"}
        await say(client, "b", "passing")
        assert {status_of(registry, name) for name in names} == {"passing"}


@virtual_time(seed=3)
async def test_an_alias_does_not_outlive_its_target() -> None:
    async with Registry(node="home") as registry, registry.client() as client:
        target = client.register("db", id="db", port=1, ttl_s=5.0)
        await target.start()
        await add(client, "web", alias("db"))
        await asyncio.sleep(SOON_S)
        assert status_of(registry, "web") == "passing"
        await target.stop()
        await asyncio.sleep(SOON_S)
        assert status_of(registry, "web") == "critical"


@virtual_time(seed=4)
async def test_a_settled_alias_writes_nothing() -> None:
    async with Registry(node="home") as registry, registry.client() as client:
        await add(client, "a", alias("b"))
        await add(client, "b", alias("a"))
        await asyncio.sleep(SOON_S)
        revision = registry.store.mvcc.revision
        await asyncio.sleep(3600.0)
        assert registry.store.mvcc.revision == revision


# --- calls


@virtual_time(seed=5)
async def test_a_call_check_is_what_its_coroutine_says_and_critical_when_it_raises_hangs_or_is_missing() -> None:
    answer: object = None

    async def look() -> object:
        if isinstance(answer, Exception):
            raise answer
        if answer == "hang":
            await asyncio.sleep(3600)
        return answer

    check = Check(name="call", kind="call", call="queue", interval_s=1.0, passing_after=1, critical_after=1)
    async with Registry(node="home") as registry, registry.client() as client:
        await add(client, "web", check)

        async def becomes(status: str, words: str) -> None:
            begun = virtual_now()
            while True:
                record = registry.catalogue.checks.one(("home", "web"), "call")
                if record is not None and record.status == status and words in record.output:
                    assert status_of(registry, "web") == status
                    return
                assert virtual_now() - begun < 700, record
                await asyncio.sleep(0.5)

        await asyncio.sleep(3.0)
        assert status_of(registry, "web") == "critical", "nothing was provided"
        registry.provide("queue", look)  # type: ignore[arg-type]  # wrong answers are what is tested
        await becomes("passing", "call queue: passing")
        answer = ("warning", "400 jobs wait")
        await becomes("warning", "call queue: 400 jobs wait")
        answer = RuntimeError("no broker")
        await becomes("critical", "no broker")
        answer = "passing"
        await becomes("passing", "passing")
        answer = "hang"
        await becomes("critical", "timed out")
        answer = "passing"
        await becomes("passing", "passing")
        answer = "splendid"
        await becomes("critical", "allowed")


# --- what is written


@pytest.mark.parametrize("before", ["passing", "critical"])
@virtual_time(seed=6)
async def test_a_status_reported_while_the_one_before_it_is_written_is_written_too(before: Status) -> None:
    after: Status = "critical" if before == "passing" else "passing"
    async with Registry(node="home") as registry, registry.client() as client:
        await add(client, "web", Check(name="up", kind="tcp", address="127.0.0.1:9", interval_s=86_400.0))
        entry = registry.catalogue.find("home", "web")
        assert entry is not None
        created = entry.registered.create_revision
        told: list[object] = []

        def tell(_revision: int, changes: object) -> None:
            if not told:  # in the very turn in which the first one is written
                told.append(changes)
                registry._statuses.report(("home", "web"), created, "up", Verdict(after, "then"))

        registry.store.listen(tell)
        registry._statuses.report(("home", "web"), created, "up", Verdict(before, "first"))
        await asyncio.sleep(SOON_S)
        record = registry.catalogue.checks.one(("home", "web"), "up")
        assert record is not None
        assert (record.status, record.output) == (after, "then")
