"""Keys the comfortable way: transactions that are built, values of a type, and prefixes that are followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from homeport.client import BadValue, CasFailed, Client, InvalidArgument, KvEvents, KvSnapshot, LimitExceeded, Lost
from homeport.client.typed import TypedEvents, TypedSnapshot
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry
from homeport.registry.core.limits import PAGE_BYTES

Connect = Callable[[], Client]
Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def client(connect: Connect) -> AsyncIterator[Client]:
    async with connect() as client:
        yield client


class Limits(msgspec.Struct):
    """What a team might keep in the store."""

    requests_per_s: int


async def test_cas_writes_only_over_the_revision_it_names(client: Client) -> None:
    first = await client.kv.cas("a", b"1", 0)
    assert first is not None
    assert await client.kv.cas("a", b"2", 0) is None
    second = await client.kv.cas("a", b"2", first)
    assert second is not None
    assert second > first


async def test_a_transaction_is_built_and_answers_each_of_its_operations(client: Client) -> None:
    seen = await client.kv.put("config", b"old")
    await client.kv.put("log/1", b"x")
    txn = client.kv.txn().require("config", revision=seen).require("draft", exists=False)
    put = txn.put("config", b"new", with_prev=True)
    logs = txn.get("log/", prefix=True)
    newest = txn.get("", prefix=True, sort_by="mod", descending=True, limit=1, keys_only=True)
    logs_count = txn.count("log/")
    dropped = txn.delete("log/", prefix=True, with_prev=True)
    inner = txn.nested().require("draft", exists=True)
    drafted = inner.put("x", b"")
    absent = inner.otherwise.get("draft")
    now = txn.otherwise.get("config")
    done = await txn.commit()
    assert done.succeeded
    assert put.prev is not None
    assert (put.prev.value, put.count) == (b"old", 1)
    assert [kv.key for kv in logs.entries] == [b"log/1"]
    assert newest.entry is not None
    assert (newest.entry.key, newest.entry.mod_revision, newest.count) == (b"config", done.revision, 2)
    assert logs_count.count == 1
    assert (dropped.count, [kv.value for kv in dropped.prevs]) == (1, [b"x"])
    assert not inner.succeeded
    assert absent.entry is None
    for unrun in (drafted, now):
        assert not unrun.ran
    with pytest.raises(InvalidArgument, match="did not run it"):
        _ = now.entry
    again = client.kv.txn().require("config", revision=seen)
    now = again.otherwise.get("config")
    assert not (await again.commit()).succeeded
    assert now.entry is not None
    assert now.entry.value == b"new"


async def test_each_demand_of_a_transaction_is_checked(client: Client) -> None:
    async with client.lease(ttl_s=5.0) as lease:
        created = await client.kv.put("a", b"1", lease=lease)
        revision = await client.kv.put("a", b"2", lease=lease)

        async def holds(**demand: object) -> bool:
            return (await client.kv.txn().require("a", **demand).commit()).succeeded  # type: ignore[arg-type]

        assert await holds(revision=revision, created=created, version=2, value=b"2", lease=lease, exists=True)
        wrong: list[dict[str, object]] = [
            {"revision": created},
            {"created": revision},
            {"version": 1},
            {"value": b"1"},
            {"lease": 0},
            {"exists": False},
        ]
        assert [await holds(**demand) for demand in wrong] == [False] * 6
        with pytest.raises(InvalidArgument, match="nothing is demanded"):
            client.kv.txn().require("a")
        assert (await client.kv.txn().compare("a", "version", ">", 1, prefix=True).commit()).succeeded


async def test_a_read_that_did_not_fit_is_never_mistaken_for_a_whole_one(client: Client) -> None:
    for key in ("a", "b"):
        await client.kv.put(key, b"v" * (PAGE_BYTES // 2 + 1))
    txn = client.kv.txn()
    both = txn.get("", prefix=True)
    first = txn.get("", prefix=True, limit=2)
    gone = txn.delete("b", with_prev=True)
    await txn.commit()
    with pytest.raises(LimitExceeded, match="1 of 2"):
        _ = both.entries
    with pytest.raises(LimitExceeded, match="0 of 2"):
        _ = first.entries
    with pytest.raises(LimitExceeded):
        _ = gone.prev
    assert (both.count, gone.count) == (2, 1)


@pytest.mark.parametrize("stored", ["json", "msgpack"])
async def test_typed_values_come_back_as_they_were_put(client: Client, stored: str) -> None:
    limits = client.kv.typed(Limits, format=stored)  # type: ignore[arg-type]
    revision = await limits.put("limits/a", Limits(5))
    found = await limits.get("limits/a")
    assert found is not None
    assert (found.value, found.mod_revision) == (Limits(5), revision)
    assert await limits.cas("limits/a", Limits(6), 0) is None
    assert await limits.cas("limits/a", Limits(6), revision) is not None
    assert [entry.value for entry in await limits.list("limits/")] == [Limits(6)]
    assert await limits.get("limits/b") is None
    assert await limits.delete("limits/a") == 1


async def test_a_typed_value_of_another_shape_is_named_and_not_passed_on(client: Client) -> None:
    await client.kv.put("limits/a", b'{"requests_per_s": "many"}')
    limits = client.kv.typed(Limits)
    with pytest.raises(BadValue, match=r"limits/a.*requests_per_s"):
        await limits.get("limits/a")
    with pytest.raises(InvalidArgument, match="cannot be encoded"):
        await client.kv.typed(object).put("x", object())
    with pytest.raises(InvalidArgument, match="allowed: json, msgpack"):
        client.kv.typed(Limits, format="yaml")  # type: ignore[arg-type]


async def test_updates_by_many_at_once_all_count(client: Client) -> None:
    counter = client.kv.typed(int)
    entries = await asyncio.gather(*(counter.update("n", lambda old: (old or 0) + 1) for _ in range(20)))
    assert sorted(entry.value for entry in entries) == list(range(1, 21))
    found = await counter.get("n")
    assert found == max(entries, key=lambda entry: entry.value)


async def test_an_update_gives_up_when_others_are_always_faster(client: Client) -> None:
    counter = client.kv.typed(int)

    async def disturb() -> None:
        while True:
            await client.kv.put("n", b"0")

    def change(old: int | None) -> int:
        return (old or 0) + 1

    real = counter.get

    async def slow(key: str | bytes, *, newest: bool = False, timeout_s: float) -> object:
        found = await real(key, newest=newest, timeout_s=timeout_s)
        await client.kv.put("n", b"0")
        return found

    counter.get = slow  # type: ignore[method-assign, assignment]
    with pytest.raises(CasFailed, match="others wrote"):
        await counter.update("n", change)


async def test_following_a_prefix_begins_with_what_there_is_and_goes_on_with_what_changes(client: Client) -> None:
    await client.kv.put("s/a", b"1")
    steps = client.kv.follow("s/")
    first = await anext(steps)
    assert isinstance(first, KvSnapshot)
    assert [kv.key for kv in first.entries] == [b"s/a"]
    await client.kv.put("elsewhere", b"")
    await client.kv.put("s/b", b"2")
    await client.kv.delete("s/a")
    changes = [await anext(steps), await anext(steps)]
    assert [(e.key, e.value) for step in changes if isinstance(step, KvEvents) for e in step.events] == [
        (b"s/b", b"2"),
        (b"s/a", None),
    ]
    await steps.aclose()


async def test_following_typed_values_gives_values(client: Client) -> None:
    limits = client.kv.typed(Limits)
    await limits.put("l/a", Limits(1))
    steps = limits.follow("l/")
    first = await anext(steps)
    assert isinstance(first, TypedSnapshot)
    assert [entry.value for entry in first.entries] == [Limits(1)]
    await limits.put("l/a", Limits(2))
    await limits.delete("l/a")
    seen = [await anext(steps), await anext(steps)]
    assert [e.value for step in seen if isinstance(step, TypedEvents) for e in step.events] == [Limits(2), None]
    await steps.aclose()


@virtual_time(seed=11)
async def test_following_says_what_is_lost_and_shows_what_there_is_then() -> None:
    address = "127.0.0.1:8300"
    async with Client(address) as client:
        steps = client.kv.follow("s/")
        async with Registry(node="n") as registry:
            await registry.serve(rpc=address)
            await client.kv.put("s/a", b"1")
            first = await anext(steps)
            waiting = asyncio.ensure_future(anext(steps))
            await asyncio.sleep(1.0)
        async with Registry(node="n") as registry:  # another history
            await registry.serve(rpc=address)
            lost = await waiting
            await client.kv.put("s/b", b"2")
            second = await anext(steps)
    assert isinstance(first, KvSnapshot)
    assert isinstance(lost, Lost)
    assert isinstance(second, KvSnapshot)
    assert [kv.key for kv in second.entries] == [b"s/b"]
    await steps.aclose()


def test_following_a_durable_registry_over_its_restart_loses_and_repeats_nothing(tmp_path: Path) -> None:
    @virtual_time(seed=12)
    async def run() -> None:
        address = "127.0.0.1:8300"
        seen: list[bytes | None] = []
        async with Client(address) as client:
            steps = client.kv.follow("s/")
            for number in range(3):
                async with Registry(data_dir=tmp_path, node="n") as registry:
                    await registry.serve(rpc=address)
                    if not number:
                        assert isinstance(await anext(steps), KvSnapshot)
                    for step in range(5):
                        await client.kv.put("s/a", b"%d" % (5 * number + step))
                    while len(seen) < 5 * (number + 1) - 2:  # some are still to come when it goes
                        change = await anext(steps)
                        assert isinstance(change, KvEvents)
                        seen += [event.value for event in change.events]
        assert seen == [b"%d" % number for number in range(len(seen))]
        assert len(seen) >= 13
        await steps.aclose()

    run()
