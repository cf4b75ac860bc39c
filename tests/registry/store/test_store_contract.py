"""Every sentence of the store's contract as a test, run on every backend: identity, reading, commits, compaction.

Nothing here assumes more than the contract says: revisions may have gaps, commits may take time, and reads show what
is durable. Watches and leases have files of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.errors import (
    Compacted,
    FutureRevision,
    InvalidArgument,
    LeaseGone,
    LimitExceeded,
    RequestError,
)
from homeport.registry.core.limits import KEY_BYTES_MAX, TXN_DEPTH_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX
from homeport.registry.core.txn import Compare, Delete, EndLease, Put, PutResult, Range, RangeResult, Txn
from homeport.registry.store.contract import lease_put
from tests.registry.store.steps import grant, put, value_of

if TYPE_CHECKING:  # the fixture's type; at run time pytest alone knows conftest
    from tests.registry.store.conftest import MakeStore


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
