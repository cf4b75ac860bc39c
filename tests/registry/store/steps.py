"""The steps that tests of the store's contract are told in."""

from __future__ import annotations

import asyncio

from homeport.client.core.model import Lost
from homeport.mesh.testing import running_loop
from homeport.registry.core.txn import Put, Txn
from homeport.registry.core.watches import Batch, Watcher
from homeport.registry.store.contract import Store


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
