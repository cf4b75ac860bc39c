"""Over etcd several transactions go as one revision; what one of them read is still before what a later one wrote."""

from __future__ import annotations

import asyncio

import pytest

from homeport.mesh.testing import virtual_time
from homeport.registry.core.txn import Compare, Delete, Put, Range, RangeResult, Txn
from tests.registry.store.test_replicas import replicas


@virtual_time(seed=1)
async def test_who_reads_and_then_watches_misses_nothing_that_went_with_the_reading() -> None:
    async with replicas(1) as (one,):
        store = one.store
        await store.commit(Txn((), (Put(b"k/a", b"1"),)))
        busy = store.commit(Txn((), (Put(b"k/other", b""),)))  # so that the next ones gather
        reads = [
            store.commit(Txn((), (Range(b"k/a", None),))),
            store.commit(Txn((), (Range(b"k/", b"k0"),))),
            store.commit(Txn((Compare(b"k/a", "version", "=", 0),), (), (Range(b"k/a", None),))),
        ]
        deleted = store.commit(Txn((), (Delete(b"k/a"),)))
        await asyncio.gather(busy, *reads, deleted)
        for read in reads:
            (found,) = read.result().responses
            assert isinstance(found, RangeResult)
            assert b"k/a" in [kv.key for kv in found.entries]
            assert read.result().revision < deleted.result().revision


@virtual_time(seed=2)
@pytest.mark.parametrize(
    "deletion", [Delete(b"k/a"), Delete(b"k/", b"k/b"), Put(b"k/a", b"2")], ids=["one", "range", "put"]
)
@pytest.mark.parametrize("look", [Range(b"k/a", None), Range(b"k/a", b"k/b")], ids=["key", "range"])
async def test_who_reads_and_writes_and_then_watches_misses_nothing_either(look: Range, deletion: Delete | Put) -> None:
    async with replicas(1) as (one,):
        store = one.store
        await store.commit(Txn((), (Put(b"k/a", b"1"),)))
        busy = store.commit(Txn((), (Put(b"k/other", b""),)))  # so that the next ones gather
        mixed = store.commit(Txn((), (look, Put(b"k/mine", b""))))
        guarded = store.commit(Txn((Compare(b"k/a", "value", "=", b"1"),), (Put(b"k/also-mine", b""),)))
        changed = store.commit(Txn((), (deletion,)))
        await asyncio.gather(busy, mixed, guarded, changed)
        found = mixed.result().responses[0]
        assert isinstance(found, RangeResult)
        assert [kv.value for kv in found.entries] == [b"1"]
        assert guarded.result().succeeded
        assert mixed.result().revision <= guarded.result().revision < changed.result().revision
