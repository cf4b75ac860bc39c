"""A model of an etcd cluster, shared by any number of stores in one loop: what `EtcdCluster` promises, and faults.

Time is the loop's, so it works in virtual time. `down` makes every call of one client fail; `lose_answers` carries out
writes and then says that nobody answered.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence

from homeport.registry.core.txn import matches
from homeport.registry.store.etcd_cluster import (
    Event,
    HistoryGone,
    Page,
    Stored,
    TxnAnswer,
    Unreachable,
    Write,
)


class ModelEtcd:
    """The cluster itself."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, Stored] = {}
        self.log: list[tuple[int, list[Event]]] = []
        self.replaced: list[tuple[int, dict[bytes, Stored | None]]] = []  # by revision, what its keys were before it
        self.leases: dict[int, tuple[int, asyncio.TimerHandle]] = {}
        self.lease_of: dict[bytes, int] = {}
        self.grown = asyncio.Event()
        self._last_lease = 0

    def apply(self, writes: Sequence[Write]) -> int:
        events: list[Event] = []
        before: dict[bytes, Stored | None] = {}
        assert len({write.key for write in writes}) == len(writes), "etcd refuses to write a key twice"
        for key, value, lease in writes:
            old = before[key] = self.keys.get(key)
            if value is None:
                if old is not None:
                    del self.keys[key]
                    events.append(Event(key, None))
                continue
            created = old.create_revision if old else self.revision + 1
            self.keys[key] = Stored(key, value, created, self.revision + 1, old.version + 1 if old else 1)
            self.lease_of[key] = lease
            events.append(Event(key, self.keys[key]))
        if events:
            self.revision += 1
            self.log.append((self.revision, events))
            self.replaced.append((self.revision, before))
            self.grown.set()
            self.grown = asyncio.Event()
        return self.revision

    def since(self, revision: int) -> list[tuple[int, list[Event]]]:
        """What happened from a revision on; the log has no gaps."""
        return self.log[max(0, revision - self.log[0][0]) :] if self.log else []

    def compact(self) -> None:
        self.compacted = self.revision
        self.log.clear()
        self.replaced.clear()

    def at(self, revision: int) -> dict[bytes, Stored]:
        """All keys as they were at a revision that is not compacted; 0: as they are."""
        if not 0 < revision < self.revision:
            return self.keys
        found: dict[bytes, Stored | None] = dict(self.keys)
        for later, before in reversed(self.replaced):
            if later <= revision:
                break
            found.update(before)
        return {key: stored for key, stored in found.items() if stored is not None}

    def grant(self, ttl_s: int) -> int:
        self._last_lease += 1
        self.leases[self._last_lease] = (ttl_s, self._expire_in(ttl_s, self._last_lease))
        return self._last_lease

    def _expire_in(self, ttl_s: int, lease: int) -> asyncio.TimerHandle:
        # In nobody's context: the cluster's clock goes on when the process that asked stands still, or is dead.
        return asyncio.get_running_loop().call_later(ttl_s, self.end, lease, context=contextvars.Context())

    def keep_alive(self, lease: int) -> bool:
        if lease not in self.leases:
            return False
        ttl_s, timer = self.leases[lease]
        timer.cancel()
        self.leases[lease] = (ttl_s, self._expire_in(ttl_s, lease))
        return True

    def end(self, lease: int) -> None:
        if lease in self.leases:
            self.leases.pop(lease)[1].cancel()
            self.apply([Write(key, None) for key in tuple(self.keys) if self.lease_of.get(key) == lease])


class ModelLink:
    """One client's way to it."""

    def __init__(self, etcd: ModelEtcd, latency_s: float = 0.0) -> None:
        self.etcd = etcd
        self.latency_s = latency_s
        self.down = False
        self.lose_answers = 0
        self.cut = asyncio.Event()
        self.txns = 0

    def fail(self, down: bool) -> None:
        """Cut the client off, or let it in again."""
        self.down = down
        if down:
            self.cut.set()
            self.cut = asyncio.Event()

    async def _travel(self) -> None:
        await asyncio.sleep(self.latency_s)
        if self.down:
            raise Unreachable("the model is down")

    async def txn(self, guards: Sequence[tuple[bytes, int]], writes: Sequence[Write], read: bytes) -> TxnAnswer:
        await self._travel()
        self.txns += 1
        assert len(guards) <= 128, "etcd refuses more compares"
        assert len(writes) <= 128 or len(guards) <= 60, "and parts that together with them are larger"
        found = self.etcd.keys
        if all((found[key].mod_revision if key in found else 0) == revision for key, revision in guards):
            answer = TxnAnswer(True, self.etcd.apply(writes), None)
        else:
            answer = TxnAnswer(False, self.etcd.revision, found.get(read))
        await self._travel()
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unreachable("the answer got lost")
        return answer

    async def page(self, key: bytes, end: bytes | None, revision: int, limit: int) -> Page:
        await self._travel()
        if 0 < revision < self.etcd.compacted:
            raise HistoryGone(f"{revision} is compacted")
        then = self.etcd.at(revision)
        found = [then[name] for name in sorted(then) if matches(name, key, end)]
        page = Page(found[:limit], self.etcd.revision, len(found) > limit)
        await self._travel()
        return page

    async def watch(self, key: bytes, end: bytes, start_revision: int) -> AsyncIterator[tuple[int, list[Event]]]:
        await self._travel()
        cut = self.cut
        following = start_revision
        while True:
            if following <= self.etcd.compacted:
                raise HistoryGone(f"{following} is compacted")
            for revision, events in self.etcd.since(following):
                mine = [event for event in events if matches(event.key, key, end)]
                following = revision + 1
                if mine:
                    yield revision, mine
            waits = [asyncio.ensure_future(self.etcd.grown.wait()), asyncio.ensure_future(cut.wait())]
            if following > self.etcd.revision:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await self._travel()

    async def grant(self, ttl_s: int) -> int:
        await self._travel()
        return self.etcd.grant(ttl_s)

    async def keep_alive(self, lease: int) -> bool:
        await self._travel()
        return self.etcd.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._travel()
        self.etcd.end(lease)

    async def close(self) -> None:
        self.cut.set()
