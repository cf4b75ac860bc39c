"""The mirror: a store's state in this process, fed by one watch of etcd; and what is known by how far it has come.

It takes in every revision, in order and whole. When etcd has compacted what it has not seen, it reads everything anew
and takes in the difference as one leap. Whoever has written waits here until the mirror shows it; and since every batch
puts its name under `i/last`, the mirror tells of one whose answer got lost whether it was carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.mvcc import FIRST_REVISION, Mvcc
from homeport.registry.core.txn import Change
from homeport.registry.store.etcd_batches import Ended, Layout, read_let_go, read_stamp
from homeport.registry.store.etcd_cluster import EtcdCluster, Event, HistoryGone, Refused, Stored, Unreachable
from homeport.registry.store.etcd_ownership import Ownership
from homeport.registry.store.etcd_reading import Everything, read_all
from homeport.registry.trouble import Trouble

_log = logging.getLogger("homeport.registry.store")

_RETRY_S: Final = 0.2  # between attempts on a cluster that does not answer

TakeIn = Callable[[int, tuple[Change, ...]], None]  # a revision of the store's and what it changes


class Mirror:
    """What a store shows of etcd; all revisions are etcd's, but for those that are handed on.

    Args:
        name: of this process, by which its batches are told from others'.
        mvcc: the state as it is.
        advance: takes in a revision.
        leap: takes in what many revisions come to that nobody here has seen.
        lost: told when etcd can be mirrored no more, and why.

    Attributes:
        reached: the revision that is shown.
        last_mod: that of the last batch that is shown.
        fence_mod: that of this replica's fence, which some others may share.
        leaps: how often history was skipped.
    """

    def __init__(
        self,
        cluster: EtcdCluster,
        layout: Layout,
        ownership: Ownership,
        *,
        name: str,
        mvcc: Callable[[], Mvcc],
        advance: TakeIn,
        leap: TakeIn,
        lost: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._layout = layout
        self._ownership = ownership
        self._name = name.encode()
        self._mvcc = mvcc
        self._advance = advance
        self._leap = leap
        self._lost = lost
        self.reached = 0
        self.last_mod = 0
        self._fence = layout.fence(name)
        self.fence_mod = 0
        self.leaps = 0
        self._mine: dict[bytes, int] = {}  # batches of ours that it has shown, by name; emptied by the writer
        self._reaching: list[tuple[int, asyncio.Future[None]]] = []
        self._other_history = ""  # why etcd can be mirrored no more, if so
        self._following = Trouble(_log, "the mirror waits")

    async def read(self) -> tuple[Mvcc, Everything]:
        """Begin with all that etcd holds.

        Raises:
            Unreachable, Refused: as the cluster.
        """
        found = await read_all(self._cluster, self._layout)
        self.last_mod = found.last_mod
        self.fence_mod = found.fences.get(self._fence, 0)
        self.reached = found.revision
        mvcc = Mvcc()
        newest = self._newest(found.entries)
        if newest > FIRST_REVISION:
            mvcc.load(found.entries, newest, newest)
        return mvcc, found

    def _newest(self, entries: Iterable[KeyValue]) -> int:
        """The newest revision of the store's that wrote anything: each batch puts `i/last`, deletions too."""
        newest = max((kv.mod_revision for kv in entries), default=FIRST_REVISION)
        return max(newest, self.last_mod - self._layout.base)

    async def follow(self) -> None:
        """Take in every revision, for ever, or until etcd holds another history."""
        end = keys.prefix_end(self._layout.prefix)
        while not self._other_history:
            try:
                async for revision, events in self._cluster.watch(self._layout.prefix, end, self.reached + 1):
                    self._take(revision, events)
            except HistoryGone:
                await self._resync()
            except (Unreachable, Refused) as error:
                self._following.met(error)
                await asyncio.sleep(_RETRY_S)

    def _take(self, revision: int, events: list[Event]) -> None:
        self._following.over()
        if revision <= self.reached or self._other_history:
            return  # a member that lags behind the one before it
        mvcc = self._mvcc()
        changes: list[Change] = []
        moved = False
        for key, stored in events:
            if key.startswith(self._layout.keys):
                name = key.removeprefix(self._layout.keys)
                prev = mvcc.get(name)
                if stored is not None or prev is not None:
                    changes.append(Change(name, None if stored is None else self._layout.decoded(stored), prev))
            elif key == self._layout.last and stored is not None:
                self.last_mod = stored.mod_revision
                name, ended = self._note_batch(stored)
                if ended is not None:
                    self._ownership.ended(name.partition(b"/")[0], ended, revision)  # what they held is there still
            elif key == self._fence and stored is not None:
                self.fence_mod = stored.mod_revision
            elif key == self._layout.let_go and stored is not None:
                let_go = read_let_go(stored.value)
                if let_go is not None:
                    self._ownership.clock.tell_let_go(*let_go)
            elif key.startswith(self._layout.members):
                member = key.removeprefix(self._layout.members).decode()
                moved = self._ownership.member_seen(member, stored.value.decode() if stored else None) or moved
        self.reached = revision
        if changes:
            changes.sort(key=lambda change: change.key)
            self._advance(revision - self._layout.base, tuple(changes))
        self._tell_reached()
        if moved:
            self._ownership.members_changed()

    def _note_batch(self, last: Stored) -> tuple[bytes, Ended | None]:
        """A batch was written, maybe one of ours."""
        name, ended = read_stamp(last.value)
        if name.startswith(self._name):
            self._mine[name] = last.mod_revision
        return name, ended

    def expect_history(self, revision: int, reached: int) -> None:
        """Etcd said that it is at `revision` when asked at a moment at which the mirror had `reached` another.

        Raises:
            Refused: that was more, so etcd's data were lost, or put back to what they were; it can be mirrored no more.
        """
        if revision < reached and not self._other_history:
            self._other_history = (
                "etcd holds another history than this replica has seen: it lost its data, or was restored; restart the "
                "replicas"
            )
            self._lost(self._other_history)
        if self._other_history:
            raise Refused(self._other_history)

    async def _resync(self) -> None:
        """History that the mirror had not seen is gone: read everything, and take in the difference as one step."""
        try:
            found = await read_all(self._cluster, self._layout)
            self.expect_history(found.revision if self._layout.names(found.identity) else 0, self.reached)
        except (Unreachable, Refused):
            await asyncio.sleep(_RETRY_S)
            return
        self.leaps += 1
        revision, self.last_mod = found.revision, found.last_mod
        self.fence_mod = found.fences.get(self._fence, 0)
        _log.warning("etcd compacted what the mirror had not seen; it is read anew at %d", revision - self._layout.base)
        if found.last is not None:
            self._note_batch(found.last)
        mvcc = self._mvcc()
        now = {kv.key: kv for kv in found.entries}
        gone = [key for key in mvcc.keys(b"", b"") if key not in now]
        changes = [Change(key, None, mvcc.get(key)) for key in gone]
        changes += [Change(key, kv, prev) for key, kv in now.items() if (prev := mvcc.get(key)) != kv]
        changes.sort(key=lambda change: change.key)
        self.reached = revision
        newest = self._newest(found.entries)
        if newest > mvcc.revision:  # not that of the reading, or the other replicas would seem to be behind
            self._leap(newest, tuple(changes))
        self._tell_reached()
        self._ownership.read_anew(found.members, revision)

    def _tell_reached(self) -> None:
        if self._reaching:
            for revision, reached in self._reaching:
                if revision <= self.reached and not reached.done():
                    reached.set_result(None)
            self._reaching = [one for one in self._reaching if one[0] > self.reached]

    async def reach(self, revision: int) -> None:
        """Return when the mirror shows etcd's revision, which wrote something under the prefix."""
        if revision > self.reached:
            reached = asyncio.get_running_loop().create_future()
            self._reaching.append((revision, reached))
            await reached

    async def catch_up(self) -> None:
        """Return when it shows all that is acknowledged to anyone now.

        Raises:
            Unreachable, Refused: as the cluster.
        """
        reached = self.reached
        page = await self._cluster.page(self._layout.last, None, 0, 1)
        self.expect_history(page.revision, reached)
        if page.entries:
            await self.reach(page.entries[0].mod_revision)

    def taken(self, batch: bytes) -> int | None:
        """The revision of a batch of ours, if it is shown, and was not asked for before."""
        return self._mine.pop(batch, None)

    def forget_batches(self) -> None:
        """Nobody asks for those of before any more."""
        self._mine.clear()
