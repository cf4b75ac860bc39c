"""The store's contract about who follows it, on every backend: listeners hear all, watchers all or what they lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from homeport.client.core.errors import (
    FutureRevision,
    InvalidArgument,
)
from homeport.client.core.model import Lost
from homeport.registry.core.txn import Change, Delete, Put, Txn
from homeport.registry.core.watches import Batch, Watcher
from tests.registry.store.steps import Reading, put, put_many

if TYPE_CHECKING:  # the fixture's type; at run time pytest alone knows conftest
    from tests.registry.store.conftest import MakeStore


async def test_a_listener_hears_each_revision_after_the_state_and_before_everybody_else(make_store: MakeStore) -> None:
    async with make_store() as store:
        await put(store, b"before")
        told: list[str] = []

        def listener(revision: int, changes: tuple[Change, ...]) -> None:
            assert store.mvcc.revision == revision
            assert [store.mvcc.get(change.key) for change in changes] == [change.kv for change in changes]
            told.append(f"listener {revision}")

        store.listen(listener)
        watcher = store.watch(b"", b"", 0, lambda: told.append(f"watcher {store.mvcc.revision}"))
        expected = []
        for _ in range(3):
            revision = await put(store, b"a")
            told.append(f"writer {revision}")
            expected += [f"listener {revision}", f"watcher {revision}", f"writer {revision}"]
            assert watcher.take() is not None
        assert told == expected


async def test_a_watch_starts_at_its_revision_inclusive_and_goes_on_live(make_store: MakeStore) -> None:
    async with make_store() as store:
        revisions = [await put(store, b"a", b"%d" % number) for number in range(5)]
        reading = Reading(store, b"a", start_revision=revisions[2])
        revisions += [await put(store, b"a", b"%d" % number) for number in range(5, 8)]
        batches = [await reading.batch() for _ in revisions[2:]]
        assert [batch.revision for batch in batches] == revisions[2:]
        assert [batch.changes[0].kv and batch.changes[0].kv.value for batch in batches] == [
            b"%d" % n for n in range(2, 8)
        ]
        assert reading.watcher.take() is None
        assert reading.watcher.progress() == store.mvcc.revision


async def test_a_watch_from_now_hears_nothing_older(make_store: MakeStore) -> None:
    async with make_store() as store:
        await put(store, b"a", b"old")
        reading = Reading(store, b"a")
        assert reading.watcher.take() is None
        revision = await put(store, b"a", b"new")
        assert (await reading.batch()).revision == revision


async def test_a_watch_of_the_next_revision_is_allowed_and_of_a_later_one_is_not(make_store: MakeStore) -> None:
    async with make_store() as store:
        store.watch(b"a", None, store.mvcc.revision + 1, lambda: None).close()
        with pytest.raises(FutureRevision):
            store.watch(b"a", None, store.mvcc.revision + 2, lambda: None)
        with pytest.raises(InvalidArgument):
            store.watch(b"a", None, -1, lambda: None)


async def test_a_revision_is_never_split_and_carries_previous_values(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.commit(Txn(then=(Put(b"p/1", b"1"), Put(b"p/2", b"2"), Put(b"q", b""))))
        reading = Reading(store, b"p/", b"p0")
        await store.commit(Txn(then=(Put(b"p/1", b"one"), Delete(b"p/2"), Put(b"p/3", b"3"), Put(b"q", b""))))
        batch = await reading.batch()
        steps = {one.key: (one.prev and one.prev.value, one.kv and one.kv.value) for one in batch.changes}
        assert steps == {b"p/1": (b"1", b"one"), b"p/2": (b"2", None), b"p/3": (None, b"3")}


async def test_a_watcher_is_woken_once_until_it_takes(make_store: MakeStore) -> None:
    async with make_store() as store:
        reading = Reading(store, b"a")
        for _ in range(3):
            await put(store, b"a")
        assert reading.wakes == 1
        for _ in range(3):
            await reading.batch()
        await put(store, b"a")
        assert reading.wakes == 2


async def test_a_watcher_that_sleeps_loses_nothing_that_history_still_holds(make_store: MakeStore) -> None:
    async with make_store() as store:
        reading = Reading(store, b"a")
        revisions = await put_many(store, b"a", 1_500)
        assert [(await reading.batch()).revision for _ in revisions] == revisions


async def test_a_watcher_is_told_exactly_what_was_compacted_away(make_store: MakeStore) -> None:
    async with make_store() as store:
        revisions = [await put(store, b"a") for _ in range(10)]
        store.compact(revisions[6])
        reading = Reading(store, b"a", start_revision=revisions[3])
        assert await reading.next() == Lost(from_revision=revisions[3], to_revision=revisions[6])
        assert [(await reading.batch()).revision for _ in range(3)] == revisions[7:]


async def test_what_a_watcher_has_looked_through_is_not_called_lost(make_store: MakeStore) -> None:
    """It fell behind, and history of other keys is forgotten beyond the place up to which it knows all."""
    async with make_store() as store:
        first = await put(store, b"a")
        last = max(await put_many(store, b"b", 700))  # more than a reader looks through at once
        reading = Reading(store, b"a", start_revision=first)
        assert (await reading.batch()).revision == first
        store.compact(first + 100)
        revision = await put(store, b"a")
        assert (await reading.batch()).revision == revision > last


async def test_a_closed_watcher_hears_nothing_more(make_store: MakeStore) -> None:
    async with make_store() as store:
        reading = Reading(store, b"a")
        late = Reading(store, b"a", start_revision=1)
        await put(store, b"a")
        wakes = reading.wakes, late.wakes
        for one in (reading, late):
            one.watcher.close()
            one.watcher.close()
            assert one.watcher.take() is None
            assert not one.watcher.pending
        await put(store, b"a")
        assert (reading.wakes, late.wakes) == wakes
        assert store.numbers()["watchers"] == 0


async def test_a_watcher_that_reads_while_others_are_woken_is_told_once(make_store: MakeStore) -> None:
    async with make_store() as store:
        heard: list[int] = []
        behind: list[Watcher] = []

        def wake() -> None:
            for watcher in behind:
                while watcher.pending:
                    item = watcher.take()
                    if isinstance(item, Batch):
                        heard.append(item.revision)

        revisions = [await put(store, b"a") for _ in range(3)]
        store.watch(b"", b"", 0, wake)
        behind.append(store.watch(b"a", None, revisions[0], lambda: None))
        revisions.append(await put(store, b"a"))
        wake()
        assert heard == revisions
