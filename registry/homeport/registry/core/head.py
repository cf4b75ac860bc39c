"""The state that transactions are checked against: what is durable, plus what is on its way there.

A transaction is decided against `head` the moment it arrives; its writes are remembered here until the store says that
they are durable (`settle`), or forgotten all at once if they never will be (`rollback`). Readers never look here.
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList

from homeport.client.core.errors import InvalidArgument, LeaseGone, LimitExceeded
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.limits import KEY_BYTES_MAX, TXN_DEPTH_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX
from homeport.registry.core.mvcc import Mvcc, select
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
    matches,
)


class Outcome:
    """A decided transaction: what to answer, and what it changes (nothing, if it only read or failed its compares)."""

    __slots__ = ("changes", "result")

    def __init__(self, result: TxnResult, changes: tuple[Change, ...]) -> None:
        self.result = result
        self.changes = changes


class Head:
    """Decides transactions, in order, each seeing those before it.

    A thousand transactions may be on their way at a time, and a registration reads two ranges of what they write. So
    pending keys are kept sorted from the first range that is read among them until none is left; puts of single keys,
    which read no range, never pay for that.
    """

    __slots__ = ("_leased", "_mvcc", "_pending", "_sorted", "revision")

    def __init__(self, mvcc: Mvcc) -> None:
        self._mvcc = mvcc
        self.revision = mvcc.revision
        # Keys written after the durable revision: the newest version of each (None: deleted), and the revision.
        self._pending: dict[bytes, tuple[int, KeyValue | None]] = {}
        self._sorted: SortedList[bytes] | None = None  # the same keys, if a range of them was asked for
        self._leased: dict[int, set[bytes]] = {}  # by lease: pending keys that were attached to it by some revision

    def decide(self, txn: Txn, ops_max: int = TXN_OPS_MAX) -> Outcome:
        """Decide a transaction at head, and count it as head if it changes anything.

        Raises:
            InvalidArgument: an empty key, or a key written twice.
            Compacted, FutureRevision: a range asks for a past revision that is forgotten, or is not durable yet.
            LimitExceeded: a key, a value or the transaction is too large.
            LeaseGone: a put names a lease that does not exist.
        """
        if len(txn.then) == 1 and not txn.compare and type(txn.then[0]) is Put:
            return self._put_alone(txn.then[0])
        attempt = _Attempt(self, ops_max)
        succeeded, responses = attempt.run(txn, 0)
        changes = attempt.changes()
        if changes:
            self.revision += 1
            for change in changes:
                self._remember(change.key, self.revision, change.kv)
        return Outcome(TxnResult(self.revision, succeeded, responses), changes)

    def _put_alone(self, op: Put) -> Outcome:
        """Decide the commonest transaction of all, one unconditional put, without the means that others need."""
        key = op.key
        _check_put(op)
        if op.lease and self.get(keys.lease(op.lease)) is None:
            raise _no_lease(op.lease)
        prev = self.get(key)
        self.revision = revision = self.revision + 1
        kv = _version(op, prev, revision)
        self._remember(key, revision, kv)
        return Outcome(TxnResult(revision, True, (PutResult(prev),)), (Change(key, kv, prev),))

    def _remember(self, key: bytes, revision: int, kv: KeyValue | None) -> None:
        if self._sorted is not None and key not in self._pending:
            self._sorted.add(key)
        if kv is not None and kv.lease:
            self._leased.setdefault(kv.lease, set()).add(key)
        self._pending[key] = (revision, kv)

    def settle(self, revision: int, changes: tuple[Change, ...]) -> None:
        """The writes of that revision are durable and applied."""
        for change in changes:
            key, kv = change.key, change.kv
            pending = self._pending.get(key)
            if pending is not None and pending[0] == revision:
                del self._pending[key]
                if self._sorted is not None:
                    self._sorted.discard(key)
            if kv is not None and kv.lease and kv.lease in self._leased:
                later = self._pending.get(key)
                if later is None or later[1] is None or later[1].lease != kv.lease:
                    self._leased[kv.lease].discard(key)
                    if not self._leased[kv.lease]:
                        del self._leased[kv.lease]
        if not self._pending:
            self._sorted = None

    def rollback(self) -> None:
        """Nothing after the durable revision happened."""
        self._pending.clear()
        self._leased.clear()
        self._sorted = None
        self.revision = self._mvcc.revision

    def get(self, key: bytes) -> KeyValue | None:
        pending = self._pending.get(key)
        return self._mvcc.get(key) if pending is None else pending[1]

    def range(self, start: bytes, end: bytes | None) -> Iterator[KeyValue]:
        """The versions of a range at head, in key order."""
        if end is None:
            kv = self.get(start)
            return iter(() if kv is None else (kv,))
        pending = self._pending
        if not pending:
            found = [self._mvcc.get(key) for key in self._mvcc.keys(start, end)]
        else:
            if self._sorted is None:
                self._sorted = SortedList(pending)
            names = dict.fromkeys(self._mvcc.keys(start, end))
            names.update(dict.fromkeys(self._sorted.irange(start, end or None, inclusive=(True, False))))
            found = [self.get(key) for key in sorted(names)]
        return (kv for kv in found if kv is not None)

    def keys_on(self, lease: int) -> list[bytes]:
        """The keys attached to a lease at head."""
        attached = {key: None for key in self._mvcc.keys_on(lease) if key not in self._pending}
        for key in self._leased.get(lease, ()):
            kv = self._pending[key][1] if key in self._pending else None
            if kv is not None and kv.lease == lease:
                attached[key] = None
        return list(attached)

    def past(self, query: Range) -> RangeResult:
        return self._mvcc.range(query)


class _Attempt:
    """One transaction being decided: its own writes over head."""

    __slots__ = ("_head", "_ops_left", "_ops_max", "_writes")

    def __init__(self, head: Head, ops_max: int) -> None:
        self._head = head
        self._ops_max = ops_max
        self._ops_left = ops_max
        self._writes: dict[bytes, Change] = {}

    def changes(self) -> tuple[Change, ...]:
        """What it changes, in key order: the order in which a journal gives a revision back."""
        return tuple([self._writes[key] for key in sorted(self._writes)])

    def run(self, txn: Txn, depth: int) -> tuple[bool, tuple[RangeResult | PutResult | DeleteResult | TxnResult, ...]]:
        if depth > TXN_DEPTH_MAX:
            raise LimitExceeded(
                f"transactions nest deeper than {TXN_DEPTH_MAX}", limit="TXN_DEPTH_MAX", allowed=TXN_DEPTH_MAX
            )
        self._count(max(len(txn.compare), len(txn.then), len(txn.orelse)))
        succeeded = all(self._holds(compare) for compare in txn.compare)
        return succeeded, tuple([self._do(op, depth) for op in (txn.then if succeeded else txn.orelse)])

    def _count(self, ops: int) -> None:
        self._ops_left -= ops
        if self._ops_left < 0:
            raise LimitExceeded(
                f"a transaction has more than {self._ops_max} operations", limit="TXN_OPS_MAX", allowed=self._ops_max
            )

    def _holds(self, compare: Compare) -> bool:
        if compare.end is None:
            return _compare(compare, self._get(compare.key))
        found = list(self._range(compare.key, compare.end))
        return all(_compare(compare, kv) for kv in found) if found else _compare(compare, None)

    def _do(self, op: Op, depth: int) -> RangeResult | PutResult | DeleteResult | TxnResult:
        match op:
            case Put():
                return self._put(op)
            case Delete():
                for key, change in self._writes.items():
                    if change.kv is not None and matches(key, op.key, op.end):
                        raise _written_twice(key)
                return self._delete([kv.key for kv in self._range(op.key, op.end)])
            case EndLease():
                return self._end_lease(op.lease)
            case Range():
                if op.revision > 0 and not self._is_now(op.revision):
                    return self._head.past(op)
                return select(self._range(op.key, op.end), op)
            case Txn():
                succeeded, responses = self.run(op, depth + 1)
                return TxnResult(0, succeeded, responses)

    def _is_now(self, revision: int) -> bool:
        return revision == self._head.revision and not self._writes

    def _put(self, op: Put) -> PutResult:
        key = op.key
        _check_put(op)
        if key in self._writes:
            raise _written_twice(key)
        if op.lease and self._get(keys.lease(op.lease)) is None:
            raise _no_lease(op.lease)
        prev = self._head.get(key)
        self._writes[key] = Change(key, _version(op, prev, self._head.revision + 1), prev)
        return PutResult(prev)

    def _end_lease(self, lease: int) -> DeleteResult:
        record = keys.lease(lease)
        if self._get(record) is None:
            return DeleteResult(())
        for key, change in self._writes.items():
            if change.kv is not None and (key == record or change.kv.lease == lease):
                raise _written_twice(key)
        attached = [key for key in self._head.keys_on(lease) if key not in self._writes and key != record]
        return self._delete([record, *attached])

    def _delete(self, names: list[bytes]) -> DeleteResult:
        prevs = []
        for key in names:
            prev = self._head.get(key)
            assert prev is not None
            self._writes[key] = Change(key, None, prev)
            prevs.append(prev)
        return DeleteResult(tuple(prevs))

    def _get(self, key: bytes) -> KeyValue | None:
        change = self._writes.get(key)
        return self._head.get(key) if change is None else change.kv

    def _range(self, start: bytes, end: bytes | None) -> Iterator[KeyValue]:
        if end is None:
            kv = self._get(start)
            return iter(() if kv is None else (kv,))
        if not self._writes:
            return self._head.range(start, end)
        found = {kv.key: kv for kv in self._head.range(start, end)}
        for key, change in self._writes.items():
            if matches(key, start, end):
                if change.kv is None:
                    found.pop(key, None)
                else:
                    found[key] = change.kv
        return iter([found[key] for key in sorted(found)])


def _check_put(op: Put) -> None:
    size = len(op.key)
    if not 0 < size <= KEY_BYTES_MAX:
        if not size:
            raise InvalidArgument(f"the key is empty; allowed: 1 to {KEY_BYTES_MAX} bytes", field="key")
        raise LimitExceeded(
            f"the key has {size} bytes; allowed: {KEY_BYTES_MAX}", limit="KEY_BYTES_MAX", allowed=KEY_BYTES_MAX
        )
    if len(op.value) > VALUE_BYTES_MAX:
        raise LimitExceeded(
            f"the value has {len(op.value)} bytes; allowed: {VALUE_BYTES_MAX}",
            limit="VALUE_BYTES_MAX",
            allowed=VALUE_BYTES_MAX,
        )


def _version(op: Put, prev: KeyValue | None, revision: int) -> KeyValue:
    """What a put makes of a key."""
    if prev is None:
        return KeyValue(op.key, op.value, revision, revision, 1, op.lease)
    return KeyValue(op.key, op.value, prev.create_revision, revision, prev.version + 1, op.lease)


def _no_lease(lease: int) -> LeaseGone:
    return LeaseGone(f"lease {lease:016x} does not exist", lease=lease)


def _written_twice(key: bytes) -> InvalidArgument:
    return InvalidArgument(f"key {key.removeprefix(keys.USER)!r} is written twice in one transaction", field="key")


def _compare(compare: Compare, kv: KeyValue | None) -> bool:
    actual: int | bytes
    match compare.target:
        case "version":
            actual = kv.version if kv else 0
        case "create":
            actual = kv.create_revision if kv else 0
        case "mod":
            actual = kv.mod_revision if kv else 0
        case "lease":
            actual = kv.lease if kv else 0
        case "value":
            if kv is None:
                return False
            actual = kv.value
    operand = compare.operand
    if isinstance(actual, bytes) != isinstance(operand, bytes):
        wanted = "bytes" if compare.target == "value" else "a number"
        raise InvalidArgument(f"a compare of {compare.target} needs {wanted}, got {operand!r}", field="compare")
    match compare.op:
        case "=":
            return actual == operand
        case "!=":
            return actual != operand
        case "<":
            return actual < operand  # type: ignore[operator]  # same type, checked above
        case ">":
            return actual > operand  # type: ignore[operator]  # same type, checked above
