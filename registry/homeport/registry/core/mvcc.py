"""The multi-version state: every key at every revision since the last compaction.

One writer feeds it whole revisions in order (`apply`); everyone else reads. The newest state is a dict, in shares by
the hash of the key, and a sorted list of its keys, so reading it costs little more than a dict. The past is kept beside
it: `_old` holds, per key, the superseded versions with the revision that ended each, and `_log` the changes of each
revision, from which watches resume and which tells compaction exactly what to forget.

    rev 2: put a=1        _live {a: 2@4}   _old {a: [(4, 1@2)], b: [(5, 9@3)]}
    rev 3: put b=9        _log  [2: a] [3: b] [4: a] [5: b gone]
    rev 4: put a=2        a at revision 3: first entry ended after 3 -> (4, 1@2), created by 3 -> 1
    rev 5: delete b       b at revision 5: none ended after 5, not live -> absent
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final

from sortedcontainers import SortedList

from homeport.client.core.errors import Compacted, FutureRevision, InvalidArgument
from homeport.client.core.model import KeyValue
from homeport.registry.core.txn import Change, Range, RangeResult, SortBy

FIRST_REVISION: Final = 1  # an empty store's, as in etcd
_SHARDS: Final = 64  # a dict that grows is copied: 30 ms for 700,000 keys at once, half a millisecond for a share
_TRIM: Final = 4096  # forgotten log entries are cut off this many at a time: amortised O(1), bounded slack

_SORT_KEYS: Final[dict[SortBy, Callable[[KeyValue], Any]]] = {
    "key": lambda kv: kv.key,
    "version": lambda kv: (kv.version, kv.key),
    "create": lambda kv: (kv.create_revision, kv.key),
    "mod": lambda kv: (kv.mod_revision, kv.key),
    "value": lambda kv: (kv.value, kv.key),
}


class Mvcc:
    """All keys, now and since the last compaction; see the module's text for the shape."""

    __slots__ = (
        "_by_lease",
        "_ghosts",
        "_keys",
        "_live",
        "_log",
        "_log_revisions",
        "_log_start",
        "_old",
        "compact_revision",
        "revision",
        "value_bytes",
    )

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self.compact_revision = 0
        self.value_bytes = 0  # of the live keys' values
        self._live: tuple[dict[bytes, KeyValue], ...] = tuple([{} for _ in range(_SHARDS)])
        self._keys: SortedList[bytes] = SortedList()  # of _live
        self._old: dict[bytes, list[tuple[int, KeyValue]]] = {}  # (revision that ended it, version), oldest first
        self._ghosts: SortedList[bytes] = SortedList()  # keys of _old that are not live
        self._log: list[tuple[Change, ...]] = []
        self._log_revisions: list[int] = []  # of _log, ascending
        self._log_start = 0  # entries before it are compacted and wait to be cut off
        self._by_lease: dict[int, dict[bytes, None]] = {}  # a dict as an ordered set

    # --- writing ------------------------------------------------------------------------------------------------

    def load(self, entries: Iterable[KeyValue], revision: int, compact_revision: int) -> None:
        """Start from a state read elsewhere: the live keys at `revision`; older history follows by no other way."""
        assert not self._keys
        assert self.revision == FIRST_REVISION
        names: list[bytes] = []
        for kv in entries:
            names.append(kv.key)
            self._live[hash(kv.key) % _SHARDS][kv.key] = kv
            self.value_bytes += len(kv.value)
            if kv.lease:
                self._by_lease.setdefault(kv.lease, {})[kv.key] = None
        self._keys.update(names)
        self.revision = revision
        self.compact_revision = compact_revision

    def apply(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Take in one revision; each key at most once, `prev` being what this state holds."""
        assert revision > self.revision
        for change in changes:
            key, kv, prev = change.key, change.kv, change.prev
            live = self._live[hash(key) % _SHARDS]
            if prev is not None:
                self.value_bytes -= len(prev.value)
                old = self._old.get(key)
                if old is None:
                    self._old[key] = [(revision, prev)]
                else:
                    old.append((revision, prev))
                if prev.lease:
                    self._detach(prev.lease, key)
            if kv is None:
                del live[key]
                self._keys.remove(key)
                self._ghosts.add(key)
            else:
                live[key] = kv
                self.value_bytes += len(kv.value)
                if kv.lease:
                    self._by_lease.setdefault(kv.lease, {})[key] = None
                if prev is None:
                    self._keys.add(key)
                    if key in self._old:
                        self._ghosts.remove(key)
        self._log.append(changes)
        self._log_revisions.append(revision)
        self.revision = revision

    def _detach(self, lease: int, key: bytes) -> None:
        keys = self._by_lease[lease]
        del keys[key]
        if not keys:
            del self._by_lease[lease]

    def compact(self, revision: int, changes_max: int | None = None) -> bool:
        """Forget what no read at `revision` or later can see; False if `changes_max` ended the work early.

        Raises:
            Compacted: that was done already.
            FutureRevision: the store has not come so far.
        """
        if revision <= self.compact_revision:
            raise Compacted(f"revision {revision} is compacted already", compact_revision=self.compact_revision)
        if revision > self.revision:
            raise FutureRevision(f"cannot compact {revision}, the store is at {self.revision}", revision=self.revision)
        work = 0
        while self._log_start < len(self._log) and self._log_revisions[self._log_start] <= revision:
            changes = self._log[self._log_start]
            if changes_max is not None and work + len(changes) > changes_max and work:
                break
            work += len(changes)
            self.compact_revision = self._log_revisions[self._log_start]
            self._log[self._log_start] = ()  # its values are let go at once, the slot when many can be
            self._log_start += 1
            for change in changes:
                if change.prev is not None:
                    self._forget_oldest(change.key)
        else:
            self.compact_revision = revision
        if self._log_start >= _TRIM or self._log_start == len(self._log):
            del self._log[: self._log_start]
            del self._log_revisions[: self._log_start]
            self._log_start = 0
        return self.compact_revision == revision

    def _forget_oldest(self, key: bytes) -> None:
        old = self._old[key]
        if len(old) > 1:
            del old[0]
            return
        del self._old[key]
        if self.get(key) is None:
            self._ghosts.remove(key)

    # --- reading ------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> KeyValue | None:
        """The newest version of a key."""
        return self._live[hash(key) % _SHARDS].get(key)

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """The live keys of a range in order; do not apply while iterating."""
        if end is None:
            return iter(() if self.get(start) is None else (start,))
        return self._keys.irange(start, end or None, inclusive=(True, False))

    def count(self, start: bytes, end: bytes | None) -> int:
        """How many live keys a range holds, in logarithmic time."""
        if end is None:
            return int(self.get(start) is not None)
        stop = self._keys.bisect_left(end) if end else len(self._keys)
        return max(0, stop - self._keys.bisect_left(start))

    def keys_on(self, lease: int) -> tuple[bytes, ...]:
        """The keys attached to a lease, in the order they were attached."""
        return tuple(self._by_lease.get(lease, ()))

    def range(self, query: Range) -> RangeResult:
        """Read a range at the newest or at a past revision.

        Raises:
            InvalidArgument: a negative revision or limit.
            Compacted: that revision is forgotten.
            FutureRevision: the store has not come so far.
        """
        revision = query.revision
        if revision < 0 or query.limit < 0:
            raise InvalidArgument(f"revision {revision}, limit {query.limit}; allowed: 0 or more", field="revision")
        if revision > self.revision:
            raise FutureRevision(
                f"revision {revision} is not reached; the store is at {self.revision}", revision=self.revision
            )
        if 0 < revision < self.compact_revision:
            raise Compacted(
                f"revision {revision} is compacted; the oldest readable is {self.compact_revision}",
                compact_revision=self.compact_revision,
            )
        if 0 < revision < self.revision:
            if query.uncounted and query.limit and is_plain(query):
                page = list(islice(self._at_in_order(query.key, query.end, revision), query.limit + 1))
                return RangeResult(_shown(page[: query.limit], query), len(page), len(page) > query.limit)
            return select(self._at(query.key, query.end, revision), query)
        if is_plain(query):
            count = self.count(query.key, query.end)
            if query.count_only:
                return RangeResult((), count, False)
            live = self._live
            found = self.keys(query.key, query.end)
            some = islice(found, query.limit) if query.limit else found
            entries = _shown([live[hash(key) % _SHARDS][key] for key in some], query)
            return RangeResult(entries, count, len(entries) < count)
        live = self._live
        return select((live[hash(key) % _SHARDS][key] for key in self.keys(query.key, query.end)), query)

    def _at(self, start: bytes, end: bytes | None, revision: int) -> Iterator[KeyValue]:
        """The versions that a past revision saw, in no particular order."""
        keys: Iterable[bytes] = self.keys(start, end)
        for key in keys:
            kv = self.get(key)
            if kv is not None and kv.mod_revision > revision:
                kv = self._version_at(key, revision)
            if kv is not None:
                yield kv
        if end is None:
            ghosts: Iterable[bytes] = (start,) if start in self._old and self.get(start) is None else ()
        else:
            ghosts = self._ghosts.irange(start, end or None, inclusive=(True, False))
        for key in ghosts:
            kv = self._version_at(key, revision)
            if kv is not None:
                yield kv

    def _at_in_order(self, start: bytes, end: bytes | None, revision: int) -> Iterator[KeyValue]:
        """The same in key order, looking no further than it is asked to."""
        if end is None:
            yield from self._at(start, end, revision)
            return
        for key in merge(self.keys(start, end), self._ghosts.irange(start, end or None, inclusive=(True, False))):
            kv = self.get(key)
            if kv is None or kv.mod_revision > revision:
                kv = self._version_at(key, revision)
            if kv is not None:
                yield kv

    def _version_at(self, key: bytes, revision: int) -> KeyValue | None:
        old = self._old.get(key, ())
        at = bisect_right(old, revision, key=lambda entry: entry[0])
        if at < len(old) and old[at][1].mod_revision <= revision:
            return old[at][1]
        return None

    def changes_from(self, revision: int) -> Iterator[tuple[int, tuple[Change, ...]]]:
        """The log from `revision` on, inclusive, oldest first; do not apply or compact while iterating.

        Raises:
            Compacted: part of it is forgotten.
        """
        if revision <= self.compact_revision:
            raise Compacted(
                f"revision {revision} is compacted; changes are known after {self.compact_revision}",
                compact_revision=self.compact_revision,
            )
        start = bisect_right(self._log_revisions, revision - 1, lo=self._log_start)
        return zip(islice(self._log_revisions, start, None), islice(self._log, start, None), strict=True)

    def hash(self, revision: int = 0) -> str:
        """A digest of the whole state at a revision (0: the newest), equal wherever that state is equal."""
        digest = hashlib.blake2b(digest_size=16)
        for kv in self.range(Range(b"", b"", revision=revision)).entries:
            for field in (kv.key, kv.value):
                digest.update(len(field).to_bytes(8, "big") + field)
            for number in (kv.create_revision, kv.mod_revision, kv.version, kv.lease):
                digest.update(number.to_bytes(8, "big"))
        return digest.hexdigest()

    def revision_of_age(self, revisions: int) -> int:
        """The revision that so many others have followed; there must have been more."""
        return self._log_revisions[-revisions - 1]

    def history_length(self) -> int:
        """How many revisions can still be watched from."""
        return len(self._log) - self._log_start


def is_plain(query: Range) -> bool:
    """Whether the natural order with a limit answers this query: no other sorting, no bounds to filter by."""
    return (
        query.sort_by == "key"
        and not query.descending
        and not query.min_mod_revision
        and not query.max_mod_revision
        and not query.min_create_revision
        and not query.max_create_revision
    )


def select(versions: Iterable[KeyValue], query: Range) -> RangeResult:
    """Filter, sort and cut versions as a query asks."""
    found = [
        kv
        for kv in versions
        if kv.mod_revision >= query.min_mod_revision
        and (not query.max_mod_revision or kv.mod_revision <= query.max_mod_revision)
        and kv.create_revision >= query.min_create_revision
        and (not query.max_create_revision or kv.create_revision <= query.max_create_revision)
    ]
    count = len(found)
    if query.count_only:
        return RangeResult((), count, False)
    found.sort(key=_SORT_KEYS[query.sort_by], reverse=query.descending)
    if query.limit:
        del found[query.limit :]
    return RangeResult(_shown(found, query), count, len(found) < count)


def _shown(found: list[KeyValue], query: Range) -> tuple[KeyValue, ...]:
    """The versions as the query wants to see them."""
    if query.keys_only:
        return tuple([KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in found])
    return tuple(found)
