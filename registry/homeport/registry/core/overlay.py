"""One request's view: the store at one revision with its own writes on top, committed as one compare-and-write.

Operations run here in order, each seeing those before it. What they relied on is remembered, and `txn` demands that it
still holds at head: if it does not, nothing is written, and the caller decides anew on a fresh overlay. How much of a
key was relied on is said by how it was read: all of it (`get`, `range`), or only that it is the same key on the same
lease (`shape`), so that writers who do not care for each other's values do not get in each other's way.
"""

from __future__ import annotations

from typing import Final

from homeport.client.core.model import KeyValue
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Compare, Delete, EndLease, Op, Put, Txn, matches

# The revision of what this request writes: none has it yet, so no index that a caller names is equal to it.
PENDING: Final = 1 << 63


class Overlay:
    """See the module's text. Use it without letting the store move on: no await between its making and `txn`."""

    __slots__ = ("_conditions", "_ended", "_mvcc", "_puts", "_whole", "_writes", "revision")

    def __init__(self, mvcc: Mvcc) -> None:
        self._mvcc = mvcc
        self.revision = mvcc.revision
        self._whole: dict[bytes, bool] = {}  # keys relied on: all of each, or only its shape
        self._conditions: list[Compare] = []  # those of ranges
        self._writes: dict[bytes, KeyValue | None] = {}
        self._puts: list[Put] = []  # whose values nobody here looks at
        self._ended: dict[int, None] = {}  # leases

    def get(self, key: bytes) -> KeyValue | None:
        """The key as this request sees it; it relies on all of that."""
        self._whole[key] = True
        return self._seen(key)

    def shape(self, key: bytes) -> KeyValue | None:
        """The same, relying only on its being this very key, from its creation on, on this lease."""
        self._whole.setdefault(key, False)
        return self._seen(key)

    def range(self, start: bytes, end: bytes | None) -> list[KeyValue]:
        """All of a range, relying on all of it."""
        found = {kv.key for kv in map(self._mvcc.get, self._mvcc.keys(start, end)) if kv is not None}
        for key in found:
            self._whole[key] = True
        self._conditions.append(Compare(start, "mod", "<", self.revision + 1, end))
        found.update(key for key in self._writes if matches(key, start, end))
        return [kv for kv in map(self._seen, sorted(found)) if kv is not None]

    def put(self, key: bytes, value: bytes, lease: int = 0) -> KeyValue:
        """Write a key and return it as it will be, at the revision `PENDING`."""
        base = self._mvcc.get(key)
        created = PENDING if base is None else base.create_revision
        kv = self._writes[key] = KeyValue(key, value, created, PENDING, 1 if base is None else base.version + 1, lease)
        return kv

    def delete(self, key: bytes) -> None:
        self._writes[key] = None

    def written(self, start: bytes, end: bytes | None) -> list[KeyValue]:
        """What this request itself wrote in a range."""
        found = sorted(key for key in self._writes if matches(key, start, end))
        return [kv for kv in map(self._writes.__getitem__, found) if kv is not None]

    def end(self, lease: int) -> None:
        """End a lease last of all, and with it what still hangs on it then."""
        self._ended[lease] = None

    def grant(self, put: Put) -> None:
        """Write a lease's record, before anything that hangs on it."""
        self._puts.append(put)

    def discard(self) -> None:
        """Write nothing after all; what was relied on counts no more either."""
        self._writes.clear()
        self._puts.clear()
        self._ended.clear()

    def txn(self) -> Txn:
        """Everything written, on the condition that everything relied on still stands."""
        compares = list(self._conditions)
        for key, whole in self._whole.items():
            kv = self._mvcc.get(key)
            if whole:
                compares.append(Compare(key, "mod", "=", kv.mod_revision if kv else 0))
            else:
                compares.append(Compare(key, "create", "=", kv.create_revision if kv else 0))
                compares.append(Compare(key, "lease", "=", kv.lease if kv else 0))
        ops: list[Op] = list(self._puts)
        for key, kv in self._writes.items():
            ops.append(Delete(key) if kv is None else Put(key, kv.value, kv.lease))
        ops += map(EndLease, self._ended)
        return Txn(tuple(compares), tuple(ops))

    def _seen(self, key: bytes) -> KeyValue | None:
        return self._writes[key] if key in self._writes else self._mvcc.get(key)
