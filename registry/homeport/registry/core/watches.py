"""Watches: who is told what, without anyone waiting for anyone.

A live watcher has a bounded buffer of batches, one per revision that touched its range. All watchers of the same range
form a group: a revision is filtered once per group, its batch shared by all of them, and whatever encoding a front
hangs on the batch is shared too. Groups are found by key: exact keys by a dict, prefixes by one dict per prefix
length, other ranges by a tree of intervals.

A watcher that resumes from the past, or whose buffer is full, reads from the store's history instead until it has
caught up; only what history has forgotten by then is lost, and it is told exactly which revisions (`Lost`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from homeport.client.core.errors import FutureRevision, InvalidArgument
from homeport.client.core.model import Lost
from homeport.registry.core.intervals import Intervals
from homeport.registry.core.keys import prefix_end
from homeport.registry.core.limits import WATCH_BUFFER_BATCHES, WATCH_PAGE_REVISIONS
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, matches

Filter = Literal["", "put", "delete"]  # leave out puts, or deletions
GroupKey = tuple[bytes, bytes | None, Filter]


class Batch:
    """One revision's changes within one range; `shared` is for its senders, to fill once for all readers."""

    __slots__ = ("changes", "revision", "shared")

    def __init__(self, revision: int, changes: tuple[Change, ...]) -> None:
        self.revision = revision
        self.changes = changes
        self.shared: object = None


class Watcher:
    """One reader of a range. `wake` is called when `take` has something, at most once between two calls of `take`.

    A reader that is usually ready may set `push`: while nothing waits, a live batch is handed to it at once, and only
    if it returns False (not now) is it kept for `take`. Neither may commit, nor raise.
    """

    __slots__ = (
        "_awake",
        "_buffer",
        "_closed",
        "_group",
        "_hub",
        "_live",
        "_looked_to",
        "next_revision",
        "push",
        "wake",
    )

    def __init__(self, hub: WatchHub, group: _Group, next_revision: int, wake: Callable[[], None]) -> None:
        self._hub = hub
        self._group = group
        self._buffer: deque[Batch] = deque()
        self._live = False
        self._awake = False
        self._closed = False
        self._looked_to = 0  # before it, history holds nothing but what is in the buffer
        self.next_revision = next_revision  # the first revision not yet handed over
        self.wake = wake
        self.push: Callable[[Batch], bool] | None = None

    @property
    def pending(self) -> bool:
        """Whether `take` would return something or has history left to look through."""
        return bool(self._buffer) or not self._live

    def take(self) -> Batch | Lost | None:
        """Hand over the next batch, or None for now; call again while `pending`, and from `wake` at the latest.

        While catching up, one call looks through a bounded piece of history, and may return None with more `pending`.
        """
        self._awake = False
        if not self._buffer and not self._live:
            lost = self._catch_up()
            if lost is not None:
                return lost
        if not self._buffer:
            return None
        batch = self._buffer.popleft()
        self.next_revision = batch.revision + 1
        self._skip_to(self._looked_to)
        return batch

    def progress(self) -> int | None:
        """The revision up to which everything was handed over, or None while something waits."""
        return None if self.pending else self._hub.revision

    def close(self) -> None:
        """Stop: nothing is pending any more, and `wake` is not called again. Idempotent."""
        if not self._closed:
            self._closed = self._live = True
            self._buffer.clear()
            self._hub.remove(self, self._group)

    def offer(self, batch: Batch) -> None:
        """Take in a live batch, or fall back to reading history if the reader is too far behind."""
        if self._closed or batch.revision < (self._buffer[-1].revision + 1 if self._buffer else self.next_revision):
            return  # it was closed, or read this very revision from history, while others were being woken for it
        if len(self._buffer) >= WATCH_BUFFER_BATCHES:
            self._live = False
            self._looked_to = batch.revision
            self._group.watchers.pop(self, None)
            return
        if self.push is not None and not self._buffer and self.push(batch):
            self.next_revision = batch.revision + 1
            return
        self._buffer.append(batch)
        self.notify()

    def lose(self, before: int) -> None:
        """What came after revision `before` is not known: say so, after what waits in the buffer."""
        self._live = False
        self._looked_to = before + 1
        self._group.watchers.pop(self, None)
        self._skip_to(before + 1)
        self.notify()

    def notify(self) -> None:
        if not self._awake:
            self._awake = True
            self.wake()

    def _catch_up(self) -> Lost | None:
        """Fill the empty buffer from history, or become live where history ends."""
        mvcc = self._hub.mvcc
        if self.next_revision <= mvcc.compact_revision:
            lost = Lost(from_revision=self.next_revision, to_revision=mvcc.compact_revision)
            self.next_revision = mvcc.compact_revision + 1
            return lost
        for seen, (revision, changes) in enumerate(mvcc.changes_from(self.next_revision)):
            mine = self._group.select(changes)
            if mine:
                self._buffer.append(Batch(revision, mine))
            else:
                self._skip_to(revision + 1)
            if seen >= WATCH_PAGE_REVISIONS or len(self._buffer) >= WATCH_BUFFER_BATCHES:
                self._looked_to = revision + 1
                return None
        self._live = True
        self._group.watchers[self] = None
        self._skip_to(mvcc.revision + 1)
        return None

    def _skip_to(self, revision: int) -> None:
        """Note that nothing of interest stands before `revision`, unless something waits in the buffer."""
        if not self._buffer and revision > self.next_revision:
            self.next_revision = revision


class _Group:
    """The live watchers of one range."""

    __slots__ = ("end", "key", "members", "omit", "watchers")

    def __init__(self, key: bytes, end: bytes | None, omit: Filter) -> None:
        self.key = key
        self.end = end
        self.omit = omit
        self.members = 0  # live or catching up
        self.watchers: dict[Watcher, None] = {}  # live ones, in order of arrival

    def select(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        return tuple(
            [
                change
                for change in changes
                if matches(change.key, self.key, self.end)
                and not (self.omit and self.omit == ("delete" if change.kv is None else "put"))
            ]
        )


class WatchHub:
    """All watches of one store."""

    __slots__ = ("_exact", "_groups", "_prefixes", "_ranges", "mvcc", "watchers")

    def __init__(self, mvcc: Mvcc) -> None:
        self.mvcc = mvcc
        self.watchers = 0
        self._groups: dict[GroupKey, _Group] = {}
        self._exact: dict[bytes, list[_Group]] = {}
        self._prefixes: dict[int, dict[bytes, list[_Group]]] = {}
        self._ranges: Intervals[_Group] = Intervals()

    @property
    def revision(self) -> int:
        return self.mvcc.revision

    def watch(
        self, key: bytes, end: bytes | None, start_revision: int, wake: Callable[[], None], omit: Filter = ""
    ) -> Watcher:
        """Watch a range from `start_revision`, inclusive (0: from the next revision on).

        Raises:
            FutureRevision: the store has not come to `start_revision - 1`.
            InvalidArgument: `start_revision` is negative.
        """
        if start_revision < 0:
            raise InvalidArgument(f"start_revision is {start_revision}; allowed: 0 or more", field="start_revision")
        if start_revision > self.revision + 1:
            raise FutureRevision(
                f"revision {start_revision} is not reached; the store is at {self.revision}", revision=self.revision
            )
        group = self._groups.get((key, end, omit))
        if group is None:
            group = self._groups[key, end, omit] = _Group(key, end, omit)
            self._index(group)
        group.members += 1
        self.watchers += 1
        watcher = Watcher(self, group, start_revision or self.revision + 1, wake)
        if watcher.next_revision > self.revision:
            watcher._catch_up()  # nothing to catch up with: it becomes live at once
        else:
            watcher.notify()
        return watcher

    def publish(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Offer one revision to every watcher it concerns; the store has applied it already."""
        if not self._groups:
            return
        touched: dict[GroupKey, _Group] = {}
        for change in changes:
            for group in self._find(change.key):
                touched[group.key, group.end, group.omit] = group
        for group in touched.values():
            mine = group.select(changes) if group.watchers else ()
            if mine:
                batch = Batch(revision, mine)
                for watcher in tuple(group.watchers):
                    watcher.offer(batch)

    def lose(self, before: int) -> None:
        """The store leapt from revision `before` to where it is, and has forgotten the way: everyone lost it."""
        for group in self._groups.values():
            for watcher in tuple(group.watchers):
                watcher.lose(before)

    def remove(self, watcher: Watcher, group: _Group) -> None:
        group.watchers.pop(watcher, None)
        group.members -= 1
        self.watchers -= 1
        if group.members == 0:
            del self._groups[group.key, group.end, group.omit]
            self._unindex(group)

    def _index(self, group: _Group) -> None:
        if group.end is None:
            self._exact.setdefault(group.key, []).append(group)
        elif prefix_end(group.key) == group.end:
            self._prefixes.setdefault(len(group.key), {}).setdefault(group.key, []).append(group)
        else:
            self._ranges.add(group.key, group.end, group)

    def _unindex(self, group: _Group) -> None:
        if group.end is None:
            found = self._exact[group.key]
            found.remove(group)
            if not found:
                del self._exact[group.key]
        elif prefix_end(group.key) == group.end:
            lengths = self._prefixes[len(group.key)]
            found = lengths[group.key]
            found.remove(group)
            if not found:
                del lengths[group.key]
                if not lengths:
                    del self._prefixes[len(group.key)]
        else:
            self._ranges.remove(group.key, group)

    def _find(self, key: bytes) -> list[_Group]:
        found = list(self._exact.get(key, ()))
        for length, prefixes in self._prefixes.items():
            if length <= len(key):
                found += prefixes.get(key[:length], ())
        if self._ranges:
            found += self._ranges.containing(key)
        return found
