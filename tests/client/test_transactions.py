"""Transactions on users' keys: what they promise over every transport, and over both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from homeport.client import Client, InvalidArgument, LeaseGone, LimitExceeded
from homeport.client.core import wire
from homeport.client.core.messages import KvGet, KvPut, KvTxn, KvTxnDone, LeaseGrant
from homeport.client.core.txn import (
    Branched,
    Compare,
    Delete,
    Deleted,
    Get,
    Got,
    Nested,
    Put,
    Written,
    prefix_end,
)
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry
from homeport.registry.core import keys
from homeport.registry.core.limits import KEY_BYTES_MAX, PAGE_BYTES, TXN_DEPTH_MAX, TXN_KEYS_MAX, TXN_OPS_MAX
from homeport.registry.core.txn import Put as StorePut
from homeport.registry.core.txn import Txn
from tests.client.replicas import Replica

Connect = Callable[[], Client]


@pytest.fixture
async def client(connect: Connect) -> AsyncIterator[Client]:
    async with connect() as client:
        yield client


async def _story(client: Client) -> None:
    """Takes a key once, changes it under conditions, and reads what is left."""
    taken = Compare(b"lock", "version", "=", 0)
    first = await client.call(KvTxn((taken,), (Put(b"lock", b"me"),), (Get(b"lock"),)))
    assert first == KvTxnDone(first.revision, True, (Written(),))
    second = await client.call(KvTxn((taken,), (Put(b"lock", b"you"),), (Get(b"lock"),)))
    assert not second.succeeded
    (got,) = second.responses
    assert isinstance(got, Got)
    assert [(kv.key, kv.value, kv.create_revision) for kv in got.entries] == [(b"lock", b"me", first.revision)]
    done = await client.call(
        KvTxn(
            (Compare(b"lock", "mod", "=", first.revision), Compare(b"lock", "value", "=", b"me")),
            (
                Put(b"lock", b"we", with_prev=True),
                Put(b"log/1", b"x"),
                Get(b"log/", prefix_end(b"log/")),
                Nested((Compare(b"log/2", "create", ">", 0),), (), (Put(b"log/2", b"y"), Get(b"log/", b"log0"))),
                Delete(b"nothing"),
            ),
        )
    )
    assert done.succeeded
    put, _, listed, nested, deleted = done.responses
    assert isinstance(put, Written)
    assert put.prev is not None
    assert (put.prev.value, put.prev.mod_revision) == (b"me", first.revision)
    assert isinstance(listed, Got)
    assert [(kv.key, kv.mod_revision) for kv in listed.entries] == [(b"log/1", done.revision)]
    assert isinstance(nested, Branched)
    assert not nested.succeeded
    written, both = nested.responses
    assert isinstance(written, Written)
    assert isinstance(both, Got)
    assert [kv.mod_revision for kv in both.entries] == [done.revision] * 2, "all at one revision"
    assert deleted == Deleted(0)
    found = await client.call(KvGet(key=b"log/2"))
    assert found.entry is not None
    assert found.entry.mod_revision == done.revision
    gone = await client.call(KvTxn(then=(Delete(b"", b"", with_prev=True),)))
    (deleted,) = gone.responses
    assert isinstance(deleted, Deleted)
    assert [kv.key for kv in deleted.prevs] == [b"lock", b"log/1", b"log/2"]
    assert (await client.call(KvTxn(then=(Get(b"", b""),)))).responses == (Got(),)


async def test_a_transaction_happens_whole_under_its_conditions(client: Client) -> None:
    await _story(client)


@virtual_time(seed=1)
async def test_over_replicas_a_transaction_happens_whole_under_its_conditions() -> None:
    async with Replica(ModelLink(ModelEtcd(), 0.001), 1) as replica, replica.client() as client:
        await _story(client)


@virtual_time(seed=2)
async def test_a_transaction_that_only_reads_sees_what_another_replica_acknowledged() -> None:
    etcd = ModelEtcd()
    slow = ModelLink(etcd, 0.2)
    async with Replica(ModelLink(etcd, 0.001), 1) as one, Replica(slow, 2) as two, one.client() as a, two.client() as b:
        for number in range(3):
            await a.kv.put("a", b"%d" % number)
            (got,) = (await b.call(KvTxn(then=(Get(b"a"),)))).responses
            assert isinstance(got, Got)
            assert [kv.value for kv in got.entries] == [b"%d" % number]


async def test_a_get_is_bounded_sorted_and_counted_as_asked(client: Client) -> None:
    revisions = [await client.kv.put(key, b"v" * size) for key, size in (("b", 3), ("a", 2), ("c", 1))]

    async def got(**options: Any) -> Got:
        (answer,) = (await client.call(KvTxn(then=(Get(b"", b"", **options),)))).responses
        assert isinstance(answer, Got)
        return answer

    assert [kv.key for kv in (await got()).entries] == [b"a", b"b", b"c"]
    assert [kv.key for kv in (await got(sort_by="create")).entries] == [b"b", b"a", b"c"]
    newest = await got(sort_by="create", descending=True, limit=1)
    assert ([kv.key for kv in newest.entries], newest.count, newest.more) == ([b"c"], 3, True)
    assert [kv.key for kv in (await got(sort_by="value", descending=True)).entries] == [b"b", b"a", b"c"]
    assert [kv.key for kv in (await got(max_create_revision=revisions[0])).entries] == [b"b"]
    assert [kv.key for kv in (await got(min_mod_revision=revisions[1], max_mod_revision=revisions[1])).entries] == [
        b"a"
    ]
    assert [kv.value for kv in (await got(keys_only=True)).entries] == [b""] * 3
    counted = await got(count_only=True)
    assert (counted.entries, counted.count) == ((), 3)


async def test_a_compare_of_a_range_speaks_of_all_its_keys(client: Client) -> None:
    for key in ("r/1", "r/2"):
        await client.kv.put(key, b"same")
    everywhere = Compare(b"r/", "value", "=", b"same", end=b"r0")
    empty = Compare(b"s/", "create", "=", 0, end=b"s0")
    assert (await client.call(KvTxn((everywhere, empty)))).succeeded
    await client.kv.put("r/2", b"other")
    assert not (await client.call(KvTxn((everywhere,)))).succeeded


async def test_a_transaction_never_reaches_beyond_the_users_keys(client: Client, registry: Registry) -> None:
    async with client.register("orders", port=1):
        (deleted,) = (await client.call(KvTxn(then=(Delete(b"", b""),)))).responses
        assert deleted == Deleted(0)
        assert len(await client.resolve("orders")) == 1
        assert (await client.call(KvTxn((Compare(b"", "create", "=", 0, end=b""),)))).succeeded


async def test_a_delete_takes_what_consuls_api_knows_of_a_key_with_it(client: Client, registry: Registry) -> None:
    for key in (b"a", b"b/1"):
        await client.call(KvPut(key=key, value=b""))
        await registry.store.commit(_details(key))
    await client.call(KvTxn(then=(Delete(b"a"), Delete(b"b/", b"b0"))))
    assert not list(registry.store.mvcc.keys(keys.USER_DETAILS, keys.prefix_end(keys.USER_DETAILS)))


def _details(key: bytes) -> Any:
    return Txn(then=(StorePut(keys.USER_DETAILS + key, wire.encode({"flags": 1})),))


async def test_a_refused_transaction_changes_nothing_and_says_what_is_allowed(client: Client) -> None:
    async def refused(error: type[Exception], match: str, **parts: Any) -> None:
        before = (await client.call(KvGet(key=b"x"))).revision
        with pytest.raises(error, match=match):
            await client.call(KvTxn(**parts))
        assert (await client.call(KvGet(key=b"x"))).revision == before

    put = Put(b"x", b"1")
    await refused(InvalidArgument, "b'x' is written twice", then=(put, Delete(b"y"), put))
    await refused(InvalidArgument, "b'x' is written twice", then=(put, Delete(b"", b"")))
    await refused(InvalidArgument, "the key is empty", then=(Put(b"", b"1"),))
    await refused(InvalidArgument, "needs a number", compare=(Compare(b"x", "mod", "=", b"1"),))
    await client.kv.put("z", b"")
    await refused(InvalidArgument, "needs bytes", then=(put,), compare=(Compare(b"z", "value", "=", 1),))
    await refused(InvalidArgument, "limit is -1", then=(Get(b"x", limit=-1),))
    await refused(InvalidArgument, "params", then=({"op": "explode", "key": b"x"},))
    await refused(InvalidArgument, "params", compare=(Compare(b"x", "age", "=", 1),))  # type: ignore[arg-type]
    await refused(LeaseGone, "does not exist", then=(put, Put(b"y", b"", lease=7)))
    await refused(LimitExceeded, f"allowed: {KEY_BYTES_MAX - 2}", then=(put, Get(b"x" * KEY_BYTES_MAX)))
    await refused(
        LimitExceeded, f"more than {TXN_OPS_MAX}", then=(put, *[Delete(b"%d" % n) for n in range(TXN_OPS_MAX)])
    )
    nested = Nested(orelse=tuple([Delete(b"%d" % n) for n in range(TXN_OPS_MAX)]))
    await refused(LimitExceeded, f"more than {TXN_OPS_MAX}", then=(put, nested))
    deep = Nested(then=(put,))
    for _ in range(TXN_DEPTH_MAX):
        deep = Nested(then=(deep,))
    await refused(LimitExceeded, f"deeper than {TXN_DEPTH_MAX}", then=(deep,))


async def test_a_full_transaction_of_deletes_is_not_too_large(client: Client) -> None:
    done = await client.call(KvTxn(then=tuple([Delete(b"%d" % n) for n in range(TXN_OPS_MAX)])))
    assert done.responses == (Deleted(0),) * TXN_OPS_MAX


async def test_ranges_that_would_hold_the_registry_up_are_refused(client: Client, registry: Registry) -> None:
    puts = tuple([StorePut(b"k/n/%05d" % n, b"") for n in range(TXN_KEYS_MAX // 2 + 1)])
    await registry.store.commit(Txn(then=puts), ops_max=TXN_KEYS_MAX)
    whole = Get(b"n/", b"n0", count_only=True)
    (got,) = (await client.call(KvTxn(then=(whole, Get(b"z", b"a"))))).responses[:1]
    assert isinstance(got, Got)
    assert got.count == TXN_KEYS_MAX // 2 + 1
    with pytest.raises(LimitExceeded, match=f"allowed: {TXN_KEYS_MAX}"):
        await client.call(KvTxn(then=(whole, whole)))
    with pytest.raises(LimitExceeded, match=f"allowed: {TXN_KEYS_MAX}"):
        await client.call(KvTxn(then=(whole, Get(b"z", b"a"), Get(b"z", b"a"), whole)))


async def test_an_answer_says_what_it_has_no_room_for(client: Client) -> None:
    half = b"v" * (PAGE_BYTES // 2 + 1)
    for key in ("a", "b"):
        await client.kv.put(key, half)
    done = await client.call(KvTxn(then=(Get(b"a", b"c"), Get(b"b"), Delete(b"a", with_prev=True), Put(b"c", b""))))
    listed, alone, deleted, written = done.responses
    assert isinstance(listed, Got)
    assert ([kv.key for kv in listed.entries], listed.count, listed.more) == ([b"a"], 2, True)
    assert alone == Got((), 1, True)
    assert deleted == Deleted(1, (), True)
    assert written == Written()
    assert await client.kv.get("a") is None
    largest = b"v" * PAGE_BYTES
    await client.kv.put("b", largest)
    (got,) = (await client.call(KvTxn(then=(Get(b"b"),)))).responses
    assert isinstance(got, Got)
    assert got.entries[0].value == largest, "one entry always has room"


async def test_a_put_hangs_on_the_lease_it_names(client: Client) -> None:
    lease = (await client.call(LeaseGrant(ttl_s=5.0))).lease
    await client.call(KvTxn(then=(Put(b"x", b"1", lease=lease),)))
    assert (await client.call(KvTxn((Compare(b"x", "lease", "=", lease),)))).succeeded
