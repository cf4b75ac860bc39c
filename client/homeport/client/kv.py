"""The key-value store as a client sees it: reading, writing, transactions, and following what changes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final, TypeVar

from homeport.client.budget import Budget
from homeport.client.core.backoff import Backoff
from homeport.client.core.errors import (
    CasFailed,
    Compacted,
    ConnectionLost,
    InvalidArgument,
    NotFound,
    RegistryError,
    Unavailable,
)
from homeport.client.core.limits import CALL_S, REOPEN_S
from homeport.client.core.messages import Event, KvDelete, KvEvents, KvGet, KvList, KvPage, KvPut
from homeport.client.core.model import KeyValue, KvSnapshot, Lost
from homeport.client.leases import Lease
from homeport.client.names import is_text, key_bytes, lease_id
from homeport.client.transaction import Transaction
from homeport.client.typed import Format, TypedKv

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

T = TypeVar("T")

_QUEUE_MAX: Final = 1024  # revisions a reader may be behind; past that the watch pauses and resumes from history


class Kv:
    """Keys are text or bytes, values bytes; a revision orders everything.

    Every call takes a `timeout_s`, waiting for a registry included. Past it there is `Unavailable`, or, where something
    may have been written all the same, `ConnectionLost`. Pages of one answer share it; by default each of them has 5 s.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, key: str | bytes, *, newest: bool = False, timeout_s: float = CALL_S) -> KeyValue | None:
        """The entry of a key, or None.

        Args:
            newest: see all that any replica has acknowledged to anyone (linearizable), for a round trip to etcd; else
                a replica may be a moment behind others, though never behind what this client has seen.

        Raises:
            ReadOnly: `newest`, and there is no quorum.
        """
        request = KvGet(key=key_bytes(key), newest=newest)
        return (await self._client.call(request, timeout_s=timeout_s)).entry

    async def put(
        self,
        key: str | bytes,
        value: bytes,
        *,
        cas: int | None = None,
        lease: Lease | int = 0,
        timeout_s: float = CALL_S,
    ) -> int:
        """Write a key and return the revision of the write.

        Args:
            cas: write only if the key's mod_revision is exactly this (0: only if it is absent).
            lease: delete the key when this lease ends.

        Raises:
            InvalidArgument: the value is not bytes.
            CasFailed: the key is at another revision.
            LimitExceeded: the key or the value is too long.
            LeaseGone: there is no such lease.
        """
        if is_text(value):
            raise InvalidArgument("value is text; allowed: bytes, so value.encode(), or kv.typed(str)", field="value")
        request = KvPut(key=key_bytes(key), value=value, cas=cas, lease=lease_id(lease))
        return (await self._client.call(request, timeout_s=timeout_s)).revision

    async def cas(
        self, key: str | bytes, value: bytes, revision: int, *, lease: Lease | int = 0, timeout_s: float = CALL_S
    ) -> int | None:
        """Write a key if its mod_revision is exactly `revision` (0: if it is absent).

        Returns:
            The revision of the write, or None if the key was at another one. `put(..., cas=)` raises instead.
        """
        try:
            return await self.put(key, value, cas=revision, lease=lease, timeout_s=timeout_s)
        except CasFailed:
            return None

    async def delete(
        self, key: str | bytes, *, prefix: bool = False, cas: int | None = None, timeout_s: float = CALL_S
    ) -> int:
        """Delete a key, or with `prefix` all that start with it; return how many there were.

        Raises:
            CasFailed: the key is at another revision than `cas`.
        """
        request = KvDelete(key=key_bytes(key), prefix=prefix, cas=cas)
        return (await self._client.call(request, timeout_s=timeout_s)).count

    async def list(
        self, prefix: str | bytes = b"", *, keys_only: bool = False, timeout_s: float | None = None
    ) -> list[KeyValue]:
        """All entries whose keys start with `prefix`, in key order, as of one revision."""
        return [*(await self.snapshot(prefix, keys_only=keys_only, timeout_s=timeout_s)).entries]

    async def snapshot(
        self, prefix: str | bytes = b"", *, keys_only: bool = False, timeout_s: float | None = None
    ) -> KvSnapshot:
        """All entries whose keys start with `prefix`, and the revision they are of: to read, then watch, with no gap.

            known = await client.kv.snapshot("settings/")
            changes = client.kv.watch(
                "settings/", prefix=True, start_revision=known.revision + 1, store_id=known.store_id
            )

        Here `changes` begins where `known` ends.
        """
        start = key_bytes(prefix)
        budget = Budget(timeout_s)
        while True:
            store_id = self._client.store_id
            entries: list[KeyValue] = []
            page = KvPage(0, (), more=True)
            while page.more:
                after = entries[-1].key if entries else None
                request = KvList(prefix=start, after=after, revision=page.revision, keys_only=keys_only)
                page = await self._client.call(request, timeout_s=budget.left_s)
                entries += page.entries
            if store_id == self._client.store_id:  # else the pages may be of two histories, whose revisions differ
                return KvSnapshot(page.revision, tuple(entries), store_id)

    def txn(self) -> Transaction:
        """A transaction, to be filled and committed: all of it happens at one revision, or nothing."""
        return Transaction(self._client)

    def typed(self, kind: type[T], *, format: Format = "json") -> TypedKv[T]:  # noqa: A002 - what everybody calls it
        """The same store for values of one type, anything that msgspec can check.

        Args:
            format: how values are stored; JSON can be read by everyone, msgpack is smaller.
        """
        return TypedKv(self, kind, format)

    async def follow(self, prefix: str | bytes = b"") -> AsyncGenerator[KvSnapshot | KvEvents | Lost, None]:
        """Yield all entries whose keys start with `prefix`, then every change to them, each revision once.

        It goes on over broken connections and waits while there is no registry. When changes are lost, because they
        are forgotten or the registry has another history, a `Lost` says which, and a fresh `KvSnapshot` follows.

            async for step in client.kv.follow("settings/"):
                match step:
                    case KvSnapshot():
                        known = {entry.key: entry.value for entry in step.entries}
                    case KvEvents():
                        known |= {event.key: event.value for event in step.events}

        Raises:
            RequestError: the registry refuses.
            Closed: the client was closed, or not started.
        """
        backoff = Backoff(self._client.rng)
        while True:
            try:
                known = await self.snapshot(prefix)
            except (Unavailable, RegistryError, Compacted):  # gone, busy, or the pages took longer than history is kept
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            yield known
            changes = self.watch(prefix, prefix=True, start_revision=known.revision + 1, store_id=known.store_id)
            try:
                async for change in changes:
                    yield change
                    if isinstance(change, Lost):
                        break
            finally:
                await changes.aclose()

    async def watch(
        self, key: str | bytes, *, prefix: bool = False, start_revision: int = 0, store_id: str = ""
    ) -> AsyncGenerator[KvEvents | Lost, None]:
        """Yield the changes of a key, or of a prefix, from `start_revision` on (0: from now), each revision once.

        It goes on over broken connections without losing anything that the registry still remembers; what it does
        not is told as `Lost`, after which the keys should be read again. By then it watches already: whatever that
        reading does not show comes next. A `Lost` that begins at revision 1 says that this is another history, of
        which nothing was told up to its end.

        Args:
            start_revision: for reading first, one more than the revision of a `snapshot`.
            store_id: the history that it belongs to; default: the one this client is or was last connected to.

        Raises:
            RequestError: the registry refuses the watch.
            Closed: the client was closed, or not started.
        """
        watch = _KeyWatch(self._client, key_bytes(key), prefix, start_revision, store_id)
        try:
            while True:
                yield await watch.next()
        finally:
            watch.close()


class _KeyWatch:
    """One watch over any number of links."""

    def __init__(self, client: Client, key: bytes, prefix: bool, start_revision: int, store_id: str) -> None:
        self._client = client
        self._key = key
        self._prefix = prefix
        self._next = start_revision
        # A revision means nothing in another history.
        self._store_id = (store_id or client.store_id) if start_revision else ""
        self._elsewhere = False  # the history it was following is not to be had any more, and that is still to be told
        self._watch = 0  # its number on the present link, 0 while there is none
        self._events: deque[KvEvents | Lost] = deque()
        self._partial: list[KvEvents] = []
        self._wake = asyncio.Event()

    async def next(self) -> KvEvents | Lost:
        while not self._events:
            if not self._watch:
                await self._open()
                continue
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()

    def close(self) -> None:
        if self._watch:
            self._client.watches.close(self._watch)
            self._watch = 0

    async def _open(self) -> None:
        self._partial.clear()
        try:
            self._watch, watching = await self._client.watches.open_keys(
                self._key, self._prefix, self._next, self._store_id, self
            )
        except ConnectionLost:
            if self._elsewhere:  # what came before the answer cannot be told before the `Lost` that the answer brings
                self._events.clear()
                self._next = 0
            return
        except RegistryError as error:  # busy, say
            _log.warning("the watch of key %r was refused for now: %s", self._key, error)
            await asyncio.sleep(REOPEN_S)
            return
        except NotFound:  # another history, of which to be told everything from now on, before saying so
            self._elsewhere = True
            self._next, self._store_id = 0, ""
            return
        if self._elsewhere:
            self._elsewhere = False
            # First, though the watch may have told something already.
            self._events.appendleft(Lost(from_revision=1, to_revision=watching.revision))
        self._store_id = watching.store_id
        self._next = self._next or watching.revision + 1

    def event(self, event: Event) -> None:
        match event:
            case KvEvents(more=True):
                self._partial.append(event)
            case KvEvents():
                pages = [*self._partial, event]
                self._partial.clear()
                self._next = event.revision + 1
                self._events.append(KvEvents(event.revision, tuple(e for page in pages for e in page.events)))
            case Lost():
                self._next = event.to_revision + 1
                self._events.append(event)
        if len(self._events) >= _QUEUE_MAX:
            self.close()  # `next` opens it again, from `_next`, once the reader has caught up
        self._wake.set()

    def unlinked(self) -> None:
        self._watch = 0
        self._wake.set()
