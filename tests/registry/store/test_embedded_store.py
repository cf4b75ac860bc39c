"""What the embedded store promises beyond the contract: a bounded history, and a clean end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from homeport.client.core.errors import Closed, Compacted
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry.core.limits import HISTORY_AGE_S_MAX, HISTORY_REVISIONS_MAX
from homeport.registry.core.txn import Put, Range, Txn
from homeport.registry.store.embedded import EmbeddedStore


@asynccontextmanager
async def running() -> AsyncIterator[EmbeddedStore]:
    store = EmbeddedStore(now=asyncio.get_running_loop().time, rng=random.Random(0))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def test_history_is_bounded_in_revisions() -> None:
    async with running() as store:
        write = Txn(then=(Put(b"a", b""),))
        longest = 0
        for _ in range(2 * HISTORY_REVISIONS_MAX):
            store.commit(write)
            longest = max(longest, store.mvcc.history_length())
        assert HISTORY_REVISIONS_MAX <= longest <= 1.1 * HISTORY_REVISIONS_MAX
        oldest = store.mvcc.revision - HISTORY_REVISIONS_MAX
        assert store.mvcc.range(Range(b"a", revision=oldest)).entries[0].mod_revision == oldest


@virtual_time()
async def test_history_is_bounded_in_age() -> None:
    async with running() as store:
        old = (await store.commit(Txn(then=(Put(b"a", b""),)))).revision
        passed = asyncio.Event()
        running_loop().call_later(HISTORY_AGE_S_MAX * 0.9, passed.set)
        await passed.wait()
        assert store.mvcc.range(Range(b"a", revision=old)).count == 1
        young = (await store.commit(Txn(then=(Put(b"a", b""),)))).revision
        passed.clear()
        running_loop().call_later(HISTORY_AGE_S_MAX * 0.5, passed.set)
        await passed.wait()
        assert store.mvcc.range(Range(b"a", revision=young)).count == 1
        assert store.mvcc.compact_revision >= old
        with pytest.raises(Compacted):
            store.mvcc.range(Range(b"a", revision=old - 1))


@virtual_time()
async def test_a_closed_store_refuses_writes_and_lets_its_clock_stop() -> None:
    async with running() as store:
        await store.lease_grant(1.0)
    await store.close()
    with pytest.raises(Closed):
        store.commit(Txn(then=(Put(b"a", b""),)))
    passed = asyncio.Event()
    running_loop().call_later(60.0, passed.set)
    await passed.wait()
    assert len(store.leases()) == 1
