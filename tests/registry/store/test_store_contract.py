"""Every sentence of the store's contract as a test, run on every backend.

Nothing here assumes more than the contract says: revisions may have gaps, commits may take time, and reads show what
is durable. What concerns leases runs in virtual time, the rest on a real loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from homeport.client.core import wire
from homeport.client.core.errors import (
    Compacted,
    FutureRevision,
    InvalidArgument,
    LeaseGone,
    LimitExceeded,
    RequestError,
)
from homeport.client.core.model import TTL_S_MAX, TTL_S_MIN, Lost
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry.core import keys
from homeport.registry.core.leases import TICK_S
from homeport.registry.core.limits import KEY_BYTES_MAX, TXN_DEPTH_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX
from homeport.registry.core.txn import Change, Compare, Delete, EndLease, Put, PutResult, Range, RangeResult, Txn
from homeport.registry.core.watches import Batch, Watcher
from homeport.registry.store.contract import LeaseRecord, Store, lease_put
from homeport.registry.store.etcd import EtcdStore

if TYPE_CHECKING:  # the fixture's type; at run time pytest alone knows conftest
    from tests.registry.store.conftest import MakeStore


async def put(store: Store, key: bytes, value: bytes = b"", lease: int = 0) -> int:
    """Write one key and return the revision."""
    return (await store.commit(Txn(then=(Put(key, value, lease),)))).revision


async def put_many(store: Store, key: bytes, count: int) -> list[int]:
    """Write one key so many times, without waiting in between, and return the revisions."""
    results = await asyncio.gather(*(store.commit(Txn(then=(Put(key, b""),))) for _ in range(count)))
    return [result.revision for result in results]


def value_of(store: Store, key: bytes) -> bytes | None:
    found = store.mvcc.get(key)
    return found.value if found else None


async def grant(store: Store, ttl_s: float) -> int:
    lease = store.new_lease()
    await store.lease_grant(ttl_s, lease)
    return lease


async def passed(seconds: float) -> None:
    """Let virtual time pass."""
    done = asyncio.Event()
    running_loop().call_later(seconds, done.set)
    await done.wait()


async def gone_after_s(store: Store, key: bytes) -> float:
    """Virtual seconds until a key is deleted."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    gone = asyncio.Event()
    watcher = store.watch(key, None, 0, gone.set, "put")
    async with asyncio.timeout(10_000):
        await gone.wait()
    watcher.close()
    return loop.time() - start


class Reading:
    """A watcher whose wake-ups can be waited for."""

    def __init__(self, store: Store, key: bytes, end: bytes | None = None, start_revision: int = 0) -> None:
        self.woken = asyncio.Event()
        self.wakes = 0
        self.watcher: Watcher = store.watch(key, end, start_revision, self._wake)

    def _wake(self) -> None:
        self.wakes += 1
        self.woken.set()

    async def next(self) -> Batch | Lost:
        async with asyncio.timeout(30):
            while (item := self.watcher.take()) is None:
                self.woken.clear()
                if not self.watcher.pending:
                    await self.woken.wait()
        return item

    async def batch(self) -> Batch:
        item = await self.next()
        assert isinstance(item, Batch)
        return item


# --- identity and reading ---------------------------------------------------------------------------------------


async def test_the_store_id_is_minted_at_creation(make_store: MakeStore) -> None:
    async with make_store() as one, make_store() as other:
        store_id = one.store_id
        assert store_id
        assert store_id != other.store_id
        await put(one, b"a")
        assert one.store_id == store_id


async def test_a_new_store_is_empty_writable_and_has_its_first_revision(make_store: MakeStore) -> None:
    async with make_store() as store:
        assert store.read_only is None
        assert store.mvcc.revision == 1
        assert len(store.mvcc) == 0
        assert store.leases() == []


async def test_an_acknowledged_write_can_be_read(make_store: MakeStore) -> None:
    async with make_store() as store:
        revision = await put(store, b"a", b"1")
        assert value_of(store, b"a") == b"1"
        assert store.mvcc.revision >= revision
        await store.barrier()
        assert value_of(store, b"a") == b"1"


# --- commit -----------------------------------------------------------------------------------------------------


async def test_a_change_takes_one_revision_however_many_keys_it_has(make_store: MakeStore) -> None:
    async with make_store() as store:
        before = store.mvcc.revision
        result = await store.commit(Txn(then=(Put(b"a", b""), Put(b"b", b""), Delete(b"none"))))
        assert result.revision > before
        entries = store.mvcc.range(Range(b"", b"")).entries
        assert [(kv.key, kv.mod_revision) for kv in entries] == [(b"a", result.revision), (b"b", result.revision)]
        again = await put(store, b"a")  # the same value again is a change all the same
        assert again > result.revision


@pytest.mark.parametrize(
    "txn",
    [
        Txn(),
        Txn(then=(Range(b"a"),)),
        Txn(then=(Delete(b"none"), Delete(b"x", b"y"))),
        Txn((Compare(b"a", "version", "=", 7),), (Put(b"a", b"2"),)),
        Txn(then=(EndLease(99),)),
    ],
)
async def test_what_changes_nothing_takes_no_revision(make_store: MakeStore, txn: Txn) -> None:
    async with make_store() as store:
        revision = await put(store, b"a", b"1")
        result = await store.commit(txn)
        assert result.revision == revision == store.mvcc.revision
        assert value_of(store, b"a") == b"1"


async def test_transactions_are_decided_in_the_order_of_the_calls(make_store: MakeStore) -> None:
    async with make_store() as store:
        free = (Compare(b"lock", "version", "=", 0),)
        calls = [store.commit(Txn(free, (Put(b"lock", b"%d" % who),), (Range(b"lock"),))) for who in range(20)]
        results = await asyncio.gather(*calls)
        assert [result.succeeded for result in results] == [True] + [False] * 19
        for refused in results[1:]:
            found = refused.responses[0]
            assert isinstance(found, RangeResult)
            assert [kv.value for kv in found.entries] == [b"0"]
        assert value_of(store, b"lock") == b"0"


async def test_any_number_of_transactions_at_once_are_each_done(make_store: MakeStore) -> None:
    async with make_store() as store:
        puts = [store.commit(Txn(then=(Put(b"%d" % at, b"%d" % at),))) for at in range(1000)]
        revisions = [done.revision for done in await asyncio.gather(*puts)]
        assert revisions == sorted(revisions)
        assert all(value_of(store, b"%d" % at) == b"%d" % at for at in range(1000))


async def test_an_answer_comes_when_what_it_saw_can_be_read(make_store: MakeStore) -> None:
    """A failed compare reveals the state as well, so it waits just as long."""
    async with make_store() as store:
        seen: list[tuple[int, int]] = []

        async def ask(txn: Txn) -> None:
            result = await store.commit(txn)
            seen.append((result.revision, store.mvcc.revision))

        refused = Txn((Compare(b"a", "version", "=", 0),), (), (Range(b"a"),))
        await asyncio.gather(*(ask(txn) for _ in range(10) for txn in (Txn(then=(Put(b"a", b""),)), refused)))
        assert all(durable >= revision for revision, durable in seen)
        assert len(seen) == 20


async def test_cancelling_forgets_the_answer_and_not_the_effect(make_store: MakeStore) -> None:
    async with make_store() as store:
        store.commit(Txn(then=(Put(b"a", b"1"),))).cancel()
        await put(store, b"b")
        assert value_of(store, b"a") == b"1"


async def test_a_nested_transaction_sees_what_was_written_before_it(make_store: MakeStore) -> None:
    async with make_store() as store:
        inner = Txn((Compare(b"a", "value", "=", b"1"),), (Put(b"b", b"yes"),), (Put(b"b", b"no"),))
        await store.commit(Txn(then=(Put(b"a", b"1"), inner)))
        assert value_of(store, b"b") == b"yes"


async def test_a_put_answers_with_what_was_there(make_store: MakeStore) -> None:
    async with make_store() as store:
        await put(store, b"a", b"1")
        result = await store.commit(Txn(then=(Put(b"a", b"2"),)))
        (answer,) = result.responses
        assert isinstance(answer, PutResult)
        assert answer.prev is not None
        assert answer.prev.value == b"1"


def nested(depth: int) -> Txn:
    return Txn(then=(nested(depth - 1) if depth else Put(b"deep", b""),))


REFUSED: dict[str, tuple[Txn, type[RequestError]]] = {
    "an empty key": (Txn(then=(Put(b"", b""),)), InvalidArgument),
    "a key written twice": (Txn(then=(Put(b"x", b""), Put(b"x", b""))), InvalidArgument),
    "a key written and deleted": (Txn(then=(Put(b"x", b""), Delete(b"", b""))), InvalidArgument),
    "a key deleted and written": (Txn(then=(Delete(b"a"), Put(b"a", b""))), InvalidArgument),
    "a key that is too long": (Txn(then=(Put(b"x" * (KEY_BYTES_MAX + 1), b""),)), LimitExceeded),
    "a value that is too long": (Txn(then=(Put(b"x", b"y" * (VALUE_BYTES_MAX + 1)),)), LimitExceeded),
    "too many operations": (Txn(then=tuple(Put(b"%d" % n, b"") for n in range(TXN_OPS_MAX + 1))), LimitExceeded),
    "too many operations in parts": (
        Txn(then=tuple(Txn(then=tuple(Put(b"%d.%d" % (m, n), b"") for n in range(20))) for m in range(10))),
        LimitExceeded,
    ),
    "too deep a nesting": (nested(TXN_DEPTH_MAX + 1), LimitExceeded),
    "a lease that does not exist": (Txn(then=(Put(b"x", b"", 99),)), LeaseGone),
    "a compare of a value with a number": (Txn((Compare(b"a", "value", "=", 1),)), InvalidArgument),
    "a compare of a number with a value": (Txn((Compare(b"a", "mod", "=", b"1"),)), InvalidArgument),
    "a read of the future": (Txn(then=(Range(b"a", revision=99),)), FutureRevision),
    "a lease granted and ended at once": (Txn(then=(lease_put(5, 10), EndLease(5))), InvalidArgument),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_mistake_is_refused_at_once_and_changes_nothing(make_store: MakeStore, name: str) -> None:
    txn, error = REFUSED[name]
    async with make_store() as store:
        revision = await put(store, b"a", b"1")
        with pytest.raises(error):
            store.commit(Txn(then=(Put(b"first", b""), txn)) if name != "too deep a nesting" else txn)
        assert store.mvcc.revision == revision
        assert value_of(store, b"first") is None
        assert await put(store, b"a", b"2") > revision


async def test_the_largest_transaction_is_taken(make_store: MakeStore) -> None:
    async with make_store() as store:
        ops = tuple(Put(b"%03d" % number, b"") for number in range(TXN_OPS_MAX))
        await store.commit(Txn(then=ops))
        await store.commit(nested(TXN_DEPTH_MAX))
        await put(store, b"x" * KEY_BYTES_MAX, b"y" * VALUE_BYTES_MAX)
        more = tuple(Put(b"%03d" % number, b"") for number in range(TXN_OPS_MAX * 2))
        await store.commit(Txn(then=more), ops_max=TXN_OPS_MAX * 2)
        assert len(store.mvcc) == TXN_OPS_MAX * 2 + 2


# --- listeners and watches --------------------------------------------------------------------------------------


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


# --- compaction -------------------------------------------------------------------------------------------------


async def test_compaction_forgets_what_no_later_read_can_see(make_store: MakeStore) -> None:
    async with make_store() as store:
        revisions = [await put(store, b"a", b"%d" % number) for number in range(5)]
        store.compact(revisions[2])
        with pytest.raises(Compacted):
            store.mvcc.range(Range(b"a", revision=revisions[1]))
        for number in (2, 3, 4):
            assert store.mvcc.range(Range(b"a", revision=revisions[number])).entries[0].value == b"%d" % number
        with pytest.raises(Compacted):
            store.compact(revisions[2])
        with pytest.raises(FutureRevision):
            store.compact(store.mvcc.revision + 1)


# --- leases -----------------------------------------------------------------------------------------------------


@virtual_time()
async def test_a_lease_exists_exactly_as_long_as_its_key(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        assert store.leases() == [lease]
        assert wire.decode(LeaseRecord, value_of(store, keys.lease(lease)) or b"").ttl_s == 10.0
        await store.commit(Txn(then=(Delete(keys.lease(lease)),)))
        assert store.leases() == []
        assert store.lease_renew(lease) == 0.0


@virtual_time()
async def test_a_granted_id_is_drawn_unless_given(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.lease_grant(10.0, 77)
        await store.lease_grant(10.0)
        await store.lease_grant(10.0)
        leases = store.leases()
        assert leases[0] == 77
        assert len(set(leases)) == 3
        drawn = [store.new_lease() for _ in range(100)]
        assert all(0 < lease < 1 << 63 for lease in drawn)
        assert not set(drawn) & set(leases)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, TTL_S_MIN / 2, TTL_S_MAX * 2, float("nan"), float("inf")])
async def test_a_ttl_out_of_range_is_refused(make_store: MakeStore, ttl_s: float) -> None:
    async with make_store() as store:
        with pytest.raises(InvalidArgument):
            store.lease_grant(ttl_s)
        assert store.leases() == []


@virtual_time()
async def test_a_transaction_may_grant_a_lease_and_use_it(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = store.new_lease()
        await store.commit(Txn(then=(lease_put(lease, 5.0), Put(b"a", b"", lease))))
        assert 5.0 <= await gone_after_s(store, b"a") <= 5.0 + TICK_S


@virtual_time()
async def test_a_lease_ends_no_earlier_than_its_ttl_and_no_later_than_a_tick_after(make_store: MakeStore) -> None:
    async with make_store() as store:
        for ttl_s in (0.5, 1.0, 3.21, 60.0):
            lease = await grant(store, ttl_s)
            await put(store, b"a", b"", lease)
            assert ttl_s <= await gone_after_s(store, b"a") <= ttl_s + TICK_S
            assert store.lease_renew(lease) == 0.0
            assert store.lease_remaining_s(lease) is None


@virtual_time()
async def test_the_ttl_counts_from_the_last_renewal_received(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 2.0)
        await put(store, b"a", b"", lease)
        for _ in range(50):
            await passed(1.9)
            assert store.lease_renew(lease) == 2.0
        assert value_of(store, b"a") == b""
        assert 2.0 <= await gone_after_s(store, b"a") <= 2.0 + TICK_S


@virtual_time()
async def test_renewing_writes_nothing(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 2.0)
        revision = store.mvcc.revision
        for _ in range(100):
            assert store.lease_renew(lease) == 2.0
        await store.commit(Txn())
        assert store.mvcc.revision == revision


@virtual_time()
async def test_the_remaining_time_is_what_remains(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        await passed(4.0)
        assert store.lease_remaining_s(lease) == pytest.approx(6.0, abs=0.01)
        store.lease_renew(lease)
        assert store.lease_remaining_s(lease) == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("renewed", [False, True])
def test_a_stall_extends_all_leases_by_its_length(make_store: MakeStore, renewed: bool) -> None:
    @virtual_time()
    async def run() -> None:
        async with make_store() as store:
            lease = await grant(store, 5.0)
            await put(store, b"a", b"", lease)
            await passed(3.0)
            # Of one that says nothing for longer, other replicas would take the leases over, each with its full TTL.
            running_loop().stall(3.0 if isinstance(store, EtcdStore) else 3_600.0)
            left_s = 2.0
            if renewed:  # heard before anything else after the stall, and good for a TTL like any other
                assert store.lease_renew(lease) == 5.0
                left_s = 5.0
            assert left_s - 0.01 <= await gone_after_s(store, b"a") <= left_s + TICK_S + 0.1

    run()


@virtual_time()
async def test_revoking_deletes_the_lease_and_its_keys_in_one_revision(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease, other = await grant(store, 10.0), await grant(store, 10.0)
        for key in (b"a", b"b", b"detached", b"moved"):
            await put(store, key, b"", lease)
        await put(store, b"detached")
        await put(store, b"moved", b"", other)
        reading = Reading(store, b"", b"")
        result = await store.lease_revoke(lease)
        batch = await reading.batch()
        assert batch.revision == result.revision
        assert {change.key for change in batch.changes} == {b"a", b"b", keys.lease(lease)}
        assert all(change.kv is None for change in batch.changes)
        assert reading.watcher.take() is None
        assert (await store.lease_revoke(lease)).revision == result.revision
        assert store.leases() == [other]


@virtual_time()
async def test_an_expiry_deletes_the_keys_in_one_revision(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 1.0)
        for number in range(50):
            await put(store, b"%d" % number, b"", lease)
        reading = Reading(store, b"", b"")
        assert len((await reading.batch()).changes) == 51
        assert len(store.mvcc) == 0


@virtual_time()
async def test_a_lease_granted_anew_has_its_new_ttl(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.lease_grant(1.0, 7)
        await put(store, b"a", b"", 7)
        await passed(0.5)
        await store.lease_grant(20.0, 7)
        assert 20.0 <= await gone_after_s(store, b"a") <= 20.0 + TICK_S


@virtual_time()
async def test_a_lease_and_a_key_of_it_put_in_one_transaction_are_not_ended_half(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        await put(store, b"a", b"", lease)
        with pytest.raises(InvalidArgument):
            store.commit(Txn(then=(Put(b"b", b"", lease), EndLease(lease))))
        with pytest.raises(LeaseGone):
            store.commit(Txn(then=(EndLease(lease), Put(b"b", b"", lease))))
        await store.commit(Txn(then=(Put(b"a", b"kept"), EndLease(lease))))
        assert [kv.key for kv in store.mvcc.range(Range(b"", b"")).entries] == [b"a"]


# --- numbers ----------------------------------------------------------------------------------------------------


async def test_the_numbers_count(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        revision = await put(store, b"a", b"", lease)
        reading: Callable[[], None] = store.watch(b"a", None, 0, lambda: None).close
        numbers = store.numbers()
        assert all(isinstance(number, int) for number in numbers.values())
        expected = {"revision": revision, "keys": 2, "leases": 1, "watchers": 1}
        assert {name: numbers[name] for name in expected} == expected
        reading()
        assert store.numbers()["watchers"] == 0
