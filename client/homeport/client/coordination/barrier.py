"""Barriers: a gate that holds everyone up until it is opened; a double one that lets a group in and out together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from homeport.client.coordination.holding import Holding
from homeport.client.coordination.place import Place, deletion, got, insist, left, name_of, prefix_of
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import InvalidArgument
from homeport.client.core.messages import KvEvents, KvTxn
from homeport.client.core.txn import Compare, Delete, Get, Nested, Put, prefix_end
from homeport.client.leases import Lease
from homeport.client.names import key_bytes, lease_id

if TYPE_CHECKING:
    from homeport.client.client import Client

_MARKS: Final = 1 << 64  # enough that no two changes of a gate bear the same one
_MARKS_KEPT: Final = 16  # of earlier changes: more than others make while an answer is lost and asked for again


class Barrier:
    """A gate: while its key stands everyone who waits is held up. Made by `Client.barrier`.

    Each change also writes `<name>/~gate`, and demands that nobody has since it looked. So of a request that was sent
    twice, its answer being lost, one does nothing, however late it comes. That key stays.
    """

    def __init__(self, client: Client, name: str | bytes, rng: Rng) -> None:
        self.key: bytes = key_bytes(name)
        self._turned = prefix_of(name, b"gate")[:-1]
        self._client = client
        self._rng = rng

    async def hold(self, *, lease: Lease | int = 0) -> None:
        """Close the gate; with a lease, until that ends at the latest. Holding what is held changes nothing.

        It waits while there is no registry.

        Raises:
            LeaseGone: the lease has ended.
        """
        await self._turn(Put(self.key, b"", lease_id(lease)))

    async def release(self) -> None:
        """Open the gate for everyone who waits, once there is a registry. Opening an open one changes nothing."""
        await self._turn(Delete(self.key))

    async def _turn(self, change: Put | Delete) -> None:
        """Carry out a change unless there is nothing to change, once, however often it has to be sent."""
        mark = b"%016x" % self._rng.randrange(_MARKS)
        while True:
            looked = KvTxn(then=(Get(self.key, keys_only=True), Get(self._turned)))
            gate, turned = (got(found) for found in (await insist(self._client, looked, self._rng)).responses)
            last = turned.entries[0] if turned.entries else None
            marks = last.value.split() if last is not None else []
            # Its mark may stand although nobody said so: the answer was lost, and others have turned it since.
            if bool(gate.entries) == isinstance(change, Put) or mark in marks:
                return
            still = [Compare(self._turned, "mod", "=", last.mod_revision if last is not None else 0)]
            if last is not None:  # the marks too: in another history the same revision may say others
                still.append(Compare(self._turned, "value", "=", last.value))
            then = (change, Put(self._turned, b" ".join([*marks[-_MARKS_KEPT:], mark])))
            if (await insist(self._client, KvTxn(tuple(still), then), self._rng)).succeeded:
                return

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the gate is open, waiting for it up to `timeout_s` (default: for ever)."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    store_id = self._client.store_id
                    done = await insist(self._client, KvTxn(then=(Get(self.key, keys_only=True),)), self._rng)
                    if store_id != self._client.store_id:
                        continue
                    if not got(done.responses[0]).entries:
                        return True
                    await deletion(self._client, self.key, done.revision, store_id)
        except TimeoutError:
            return False


class DoubleBarrier(Holding):
    """Lets a group in when `count` are there, and out when all have left. Made by `Client.double_barrier`.

        async with client.double_barrier("phase-1", 3):   # waits for three
            await compute()                                # leaving waits for all

    Members stand under `<name>/~barrier/`; `<name>/~barrier.ready` stands from when there are enough of them until the
    last has left, so that nobody who looks late is left behind. Whoever dies has left when its lease has ended. It may
    be entered again at once: whoever still leaves waits for its own group, not for the next.
    """

    def __init__(
        self, client: Client, name: str | bytes, count: int, *, ttl_s: float | None, session: Lease | None, rng: Rng
    ) -> None:
        super().__init__(client, ttl_s=ttl_s, session=session, rng=rng)
        if count < 1:
            raise InvalidArgument(f"count is {count}; allowed: 1 or more", field="count")
        self.count: int = count
        self.prefix: bytes = prefix_of(name, b"barrier")
        self._ready = self.prefix[:-1] + b".ready"
        self._place: Place | None = None
        self._group = 0  # the revision at which that of the last entering was complete: its name

    def __str__(self) -> str:
        return f"barrier {name_of(self.prefix)!r}"

    async def enter(self, *, timeout_s: float | None = None) -> bool:
        """Come in, and return whether the group was complete within `timeout_s`; if not, this one is out again."""
        return await self.acquire(timeout_s=timeout_s)

    async def leave(self, *, timeout_s: float | None = None) -> bool:
        """Leave, and return whether all others had left within `timeout_s`. The same as `release`, but for the wait."""
        await super().release()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty()
        except TimeoutError:
            return False
        return True

    async def release(self) -> None:
        """Leave, and wait until all have left."""
        if self._lease is not None:
            await self.leave()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            await super().release()  # whoever failed does not wait for the others
        await super().__aexit__(kind, error, trace)

    @property
    def _members(self) -> Compare:
        return Compare(self.prefix, "create", "=", 0, end=prefix_end(self.prefix))

    async def _take(self, lease: Lease, wait: bool) -> int | None:
        self._place = place = Place(self._client, lease, self.prefix, b"", self._rng)
        # The first of a new group: what a group before it left behind, all its members having died, is not its own.
        await place.take(Nested((self._members,), (Delete(self._ready),)))
        everyone = Get(self.prefix, prefix_end(self.prefix), count_only=True)
        while True:
            store_id = self._client.store_id
            done = await insist(
                self._client, KvTxn(then=(place.standing(), everyone, Get(self._ready, keys_only=True))), self._rng
            )
            if store_id != self._client.store_id:
                continue
            place.expect(done.responses[0])
            there, ready = got(done.responses[1]), got(done.responses[2])
            if ready.entries:
                self._group = ready.entries[0].create_revision
                return place.revision
            if there.count >= self.count:
                await insist(self._client, KvTxn((place.held(),), (Put(self._ready, b""),)), self._rng)
                continue
            if not wait:
                return None
            await self._change(done.revision, store_id)

    async def _change(self, revision: int, store_id: str) -> None:
        """Return when there are enough members, or that cannot be told any more."""
        watch = self._client.kv.watch(self._ready, start_revision=revision + 1, store_id=store_id)
        try:
            async for change in watch:
                if not isinstance(change, KvEvents) or any(event.value is not None for event in change.events):
                    return
        finally:
            await watch.aclose()

    def _put_back(self, lease: Lease) -> Coroutine[Any, Any, None]:
        place, self._place = self._place, None
        return left(place)

    async def _empty(self) -> None:
        """Return when no member of the group is left, and nothing of it."""
        newest = Get(self.prefix, prefix_end(self.prefix), limit=1, sort_by="create", descending=True, keys_only=True)
        while True:
            store_id = self._client.store_id
            ready = Get(self._ready, keys_only=True)
            done = await insist(
                self._client, KvTxn((self._members,), (Delete(self._ready),), (newest, ready)), self._rng
            )
            if done.succeeded or all(kv.create_revision != self._group for kv in got(done.responses[1]).entries):
                return  # if members stand, they are of another group
            entries = got(done.responses[0]).entries
            if entries and store_id == self._client.store_id:
                await deletion(self._client, entries[0].key, done.revision, store_id)
