"""Where an index comes from when the key is gone: the deletions of user keys that are still remembered.

The index of a key is its mod revision, or that of its deletion; that of a prefix is the newest of either within it. The
memory is bounded. What it drops raises `floor`, which every absent name and every prefix answers at least: their
readers may wake once for nothing, and never see an index go backwards.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from sortedcontainers import SortedList

from homeport.registry.core.keys import prefix_end
from homeport.registry.core.limits import DELETIONS_REMEMBERED, PREFIXES_REMEMBERED
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, matches


class Deletions:
    """The newest deletions of the keys under one prefix, none of which stands again.

    Args:
        prefix: the part of the store that is followed.
        floor: the store's revision now; what was deleted before is not known.
        remembered: how many deletions are kept.
    """

    __slots__ = ("_by_age", "_by_key", "_prefix", "_remembered", "floor")

    def __init__(self, prefix: bytes, floor: int, remembered: int = DELETIONS_REMEMBERED) -> None:
        self.floor = floor
        self._prefix = prefix
        self._remembered = remembered
        self._by_age: OrderedDict[bytes, int] = OrderedDict()  # key -> revision of its deletion, ascending
        self._by_key: SortedList[bytes] = SortedList()

    def __len__(self) -> int:
        return len(self._by_age)

    def apply(self, revision: int, changes: Iterable[Change]) -> None:
        """Take in one revision."""
        for change in changes:
            if not change.key.startswith(self._prefix):
                continue
            if change.kv is None:
                self._add(change.key, revision)
            elif change.prev is None and self._by_age.pop(change.key, None) is not None:
                self._by_key.remove(change.key)  # its own revision is newer

    def newest(self, key: bytes, end: bytes | None) -> int:
        """The newest deletion in a range, and at least `floor`."""
        if end is None:
            return max(self._by_age.get(key, 0), self.floor)
        first = self._by_key.bisect_left(key)
        last = self._by_key.bisect_left(end) if end else len(self._by_key)
        count = last - first
        if count <= 0:
            return self.floor
        # Whichever meets an answer sooner: looking at all in the range, or back in time until one lies in it.
        if count * count <= len(self._by_age):
            return max(self.floor, max(self._by_age[self._by_key[at]] for at in range(first, last)))
        return next(revision for found, revision in reversed(self._by_age.items()) if matches(found, key, end))

    def _add(self, key: bytes, revision: int) -> None:
        if self._by_age.pop(key, None) is None:
            self._by_key.add(key)
        self._by_age[key] = revision
        if len(self._by_age) > self._remembered:
            dropped, self.floor = self._by_age.popitem(last=False)
            self._by_key.remove(dropped)


class Indexes:
    """The indexes of all keys under one prefix of the store, and of what starts alike among them, there or not.

    That of a beginning takes a pass over its keys once; then it is kept, and moves with each change, as long as it is
    among the `PREFIXES_REMEMBERED` that were asked for last.
    """

    __slots__ = ("_deletions", "_lengths", "_mvcc", "_newest", "_remembered")

    def __init__(self, mvcc: Mvcc, prefix: bytes, remembered: int = PREFIXES_REMEMBERED) -> None:
        self._mvcc = mvcc
        self._deletions = Deletions(prefix, mvcc.revision)
        self._remembered = remembered
        self._newest: OrderedDict[bytes, int] = OrderedDict()  # by beginning, the least recently asked for first
        self._lengths: Counter[int] = Counter()  # of those

    def apply(self, revision: int, changes: Iterable[Change]) -> None:
        """Take in one revision; the store has."""
        self._deletions.apply(revision, changes)
        if self._newest:
            for change in changes:
                for length in self._lengths:
                    beginning = change.key[:length]
                    if beginning in self._newest:
                        self._newest[beginning] = revision

    def of(self, key: bytes) -> int:
        """The revision of a key's last change; never 0."""
        found = self._mvcc.get(key)
        return found.mod_revision if found else max(self._deletions.newest(key, None), 1)

    def under(self, beginning: bytes) -> int:
        """The revision of the last change of anything that starts so, the beginning itself included; never 0."""
        newest = self._newest.get(beginning)
        if newest is not None:
            self._newest.move_to_end(beginning)
            return max(newest, self._deletions.floor)
        end = prefix_end(beginning)
        newest = max(self._deletions.newest(beginning, end), 1)
        for key in self._mvcc.keys(beginning, end):
            found = self._mvcc.get(key)
            if found is not None and found.mod_revision > newest:
                newest = found.mod_revision
        self._newest[beginning] = newest
        self._lengths[len(beginning)] += 1
        if len(self._newest) > self._remembered:
            dropped, _ = self._newest.popitem(last=False)
            self._lengths[len(dropped)] -= 1
            if not self._lengths[len(dropped)]:
                del self._lengths[len(dropped)]
        return newest
