"""A store that cannot be wrong: a list of whole dictionaries, one for each revision.

It keeps every revision for ever, knows nothing of indexes, and decides a transaction on a copy of the newest
dictionary; what changed is found by comparing the two. Slow and obvious, so that the real one has something to be
measured against.
"""

from __future__ import annotations

import operator
from typing import Any, Final

from homeport.client.core.errors import Compacted, FutureRevision, HomeportError, InvalidArgument, LeaseGone
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.txn import (
    Change,
    Compare,
    Delete,
    DeleteResult,
    EndLease,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)

State = dict[bytes, KeyValue]

_OPERATORS: Final[dict[str, Any]] = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
_FIELDS: Final = {"version": "version", "create": "create_revision", "mod": "mod_revision", "lease": "lease"}


def in_range(key: bytes, start: bytes, end: bytes | None) -> bool:
    """Whether a key lies in `[start, end)`, `end` None being `start` alone and b"" no bound."""
    if end is None:
        return key == start
    return start <= key and (end == b"" or key < end)


class StoreModel:
    """Every revision's whole state; `durable` is what readers may see, `compacted` what they may not any more."""

    def __init__(self) -> None:
        self.states: list[State] = [{}, {}]  # by revision; an empty store is at 1
        self.durable = 1
        self.compacted = 0
        self._changes: dict[int, dict[bytes, Change]] = {}  # what `changes` answered, since it is asked often

    @property
    def head(self) -> int:
        return len(self.states) - 1

    def rollback(self) -> None:
        for revision in range(self.durable + 1, self.head + 1):
            self._changes.pop(revision, None)
        del self.states[self.durable + 1 :]

    def changes(self, revision: int) -> dict[bytes, Change]:
        """What one revision did, by key."""
        found = self._changes.get(revision)
        if found is None:
            before, after = self.states[revision - 1], self.states[revision]
            found = self._changes[revision] = {
                key: Change(key, after.get(key), before.get(key))
                for key in sorted({*before, *after})
                if before.get(key) != after.get(key)
            }
        return found

    # --- reading ------------------------------------------------------------------------------------------------

    def range(self, query: Range) -> RangeResult | type[HomeportError]:
        """The answer at the durable revision, or the error."""
        if query.revision > self.durable:
            return FutureRevision
        if 0 < query.revision < self.compacted:
            return Compacted
        return pick(self.states[query.revision or self.durable], query)

    # --- deciding -----------------------------------------------------------------------------------------------

    def decide(self, txn: Txn) -> TxnResult | type[HomeportError]:
        """Decide a transaction at head; a new revision if it changed anything."""
        attempt = _Attempt(self)
        try:
            succeeded, responses = attempt.run(txn)
        except HomeportError as error:
            return type(error)
        if attempt.state != self.states[-1]:
            self.states.append(attempt.state)
        return TxnResult(self.head, succeeded, responses)


class _Attempt:
    def __init__(self, model: StoreModel) -> None:
        self.model = model
        self.state = dict(model.states[-1])
        self.put: set[bytes] = set()
        self.deleted: set[bytes] = set()

    def run(self, txn: Txn) -> tuple[bool, tuple[Any, ...]]:
        succeeded = all(self.holds(compare) for compare in txn.compare)
        return succeeded, tuple([self.do(op) for op in (txn.then if succeeded else txn.orelse)])

    def holds(self, compare: Compare) -> bool:
        names = [key for key in self.state if in_range(key, compare.key, compare.end)]
        if not names:  # a missing key, or a range without any, compares as zeros
            return self.compare(compare, None)
        return all(self.compare(compare, self.state[name]) for name in names)

    def compare(self, compare: Compare, kv: KeyValue | None) -> bool:
        test = _OPERATORS[compare.op]
        if compare.target == "value":
            return kv is not None and bool(test(kv.value, compare.operand))
        return bool(test(getattr(kv, _FIELDS[compare.target]) if kv else 0, compare.operand))

    def do(self, op: Op) -> Any:
        match op:
            case Put():
                if not op.key or op.key in self.put | self.deleted:
                    raise InvalidArgument("empty, or written twice")
                if op.lease and keys.lease(op.lease) not in self.state:
                    raise LeaseGone("no such lease")
                prev = self.state.get(op.key)
                now = self.model.head + 1
                self.state[op.key] = KeyValue(
                    key=op.key,
                    value=op.value,
                    create_revision=prev.create_revision if prev else now,
                    mod_revision=now,
                    version=prev.version + 1 if prev else 1,
                    lease=op.lease,
                )
                self.put.add(op.key)
                return PutResult(prev)
            case Delete():
                return self.delete([key for key in sorted(self.state) if in_range(key, op.key, op.end)])
            case EndLease():
                record = keys.lease(op.lease)
                if record not in self.state:
                    return DeleteResult(())
                return self.delete([key for key, kv in self.state.items() if kv.lease == op.lease or key == record])
            case Range():
                if op.revision == 0 or (op.revision == self.model.head and not self.put | self.deleted):
                    return pick(self.state, op)
                found = self.model.range(op)
                if not isinstance(found, RangeResult):
                    raise found("not readable")
                return found
            case Txn():
                succeeded, responses = self.run(op)
                return TxnResult(0, succeeded, responses)

    def delete(self, names: list[bytes]) -> DeleteResult:
        if self.put & set(names):
            raise InvalidArgument("written twice")
        self.deleted.update(names)
        return DeleteResult(tuple([self.state.pop(name) for name in names]))


def pick(state: State, query: Range) -> RangeResult:
    """What a query sees of a whole state."""
    most = 1 << 62
    found = [
        kv
        for kv in state.values()
        if in_range(kv.key, query.key, query.end)
        and query.min_mod_revision <= kv.mod_revision <= (query.max_mod_revision or most)
        and query.min_create_revision <= kv.create_revision <= (query.max_create_revision or most)
    ]
    count = len(found)
    if query.count_only:
        return RangeResult((), count, False)
    by = {"key": "key", "value": "value"} | _FIELDS
    found.sort(key=lambda kv: (getattr(kv, by[query.sort_by]), kv.key), reverse=query.descending)
    if query.limit:
        found = found[: query.limit]
    if query.keys_only:
        found = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in found]
    return RangeResult(tuple(found), count, len(found) < count)
