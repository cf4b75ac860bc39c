"""Transactions on users' keys, as their clients say them, made into the store's own and back.

A user's key stands under `k/`, and what Consul's API knows of it under `m/`: a delete takes both. So a user's operation
may be two of the store's, and limits count what the user wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from homeport.client.core.errors import InvalidArgument, LimitExceeded
from homeport.client.core.model import KeyValue
from homeport.client.core.txn import Branched, Compare, Delete, Deleted, Get, Got, Nested, Op, Put, Response, Written
from homeport.registry.core import keys, txn
from homeport.registry.core.limits import KEY_BYTES_MAX, PAGE_BYTES, TXN_DEPTH_MAX, TXN_KEYS_MAX, TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc

STORE_OPS_MAX: Final = 2 * TXN_OPS_MAX  # every one of them may be a delete
_ENTRY_BYTES: Final = 64  # what an entry weighs besides its key and value
_ALL: Final = keys.prefix_end(keys.USER)


def compiled(asked: Nested, mvcc: Mvcc) -> txn.Txn:
    """The store's transaction for a user's.

    Raises:
        InvalidArgument: a key is empty, or a limit negative.
        LimitExceeded: a key is too long, or there are too many operations, levels, or keys in its ranges.
    """
    _Size(mvcc).add(asked, 0)
    return _txn(asked)


def answered(asked: Nested, result: txn.TxnResult) -> Branched:
    """What a user's transaction answers; entries that a page has no room for are left out, and that is said."""
    return _Answer().branched(asked, result)


class _Size:
    """Counts what a transaction asks for, and refuses what is too much."""

    def __init__(self, mvcc: Mvcc) -> None:
        self._mvcc = mvcc
        self._ops = 0
        self._keys = 0

    def add(self, asked: Nested, depth: int) -> None:
        if depth > TXN_DEPTH_MAX:
            raise LimitExceeded(
                f"transactions nest deeper than {TXN_DEPTH_MAX}", limit="TXN_DEPTH_MAX", allowed=TXN_DEPTH_MAX
            )
        self._ops += max(len(asked.compare), len(asked.then), len(asked.orelse))
        if self._ops > TXN_OPS_MAX:
            raise LimitExceeded(
                f"a transaction has more than {TXN_OPS_MAX} operations, all branches counted",
                limit="TXN_OPS_MAX",
                allowed=TXN_OPS_MAX,
            )
        for part in chain(asked.compare, asked.then, asked.orelse):
            if isinstance(part, Nested):
                self.add(part, depth + 1)
                continue
            end = None if isinstance(part, Put) else part.end
            _check_key(part.key, may_be_empty=end is not None)
            if end is not None:
                _check_key(end, may_be_empty=True)
                self._keys += max(0, self._mvcc.count(keys.USER + part.key, _end(end)))
            if isinstance(part, Get) and part.limit < 0:
                raise InvalidArgument(f"limit is {part.limit}; allowed: 0 (none) or more", field="limit")
        if self._keys > TXN_KEYS_MAX:
            raise LimitExceeded(
                f"the ranges of a transaction hold {self._keys} keys; allowed: {TXN_KEYS_MAX}; list them in pages",
                limit="TXN_KEYS_MAX",
                allowed=TXN_KEYS_MAX,
            )


def _check_key(key: bytes, *, may_be_empty: bool) -> None:
    allowed = KEY_BYTES_MAX - len(keys.USER)
    if not key and not may_be_empty:
        raise InvalidArgument(f"the key is empty; allowed: 1 to {allowed} bytes", field="key")
    if len(key) > allowed:
        raise LimitExceeded(f"the key has {len(key)} bytes; allowed: {allowed}", limit="KEY_BYTES_MAX", allowed=allowed)


def _end(end: bytes | None) -> bytes | None:
    """The end of a range among all keys: no upper bound is where the users' keys end."""
    return None if end is None else keys.USER + end if end else _ALL


def _txn(asked: Nested) -> txn.Txn:
    return txn.Txn(
        tuple([_compare(each) for each in asked.compare]),
        tuple([op for each in asked.then for op in _ops(each)]),
        tuple([op for each in asked.orelse for op in _ops(each)]),
    )


def _compare(asked: Compare) -> txn.Compare:
    return txn.Compare(keys.USER + asked.key, asked.target, asked.op, asked.operand, _end(asked.end))


def _ops(asked: Op) -> Iterator[txn.Op]:
    match asked:
        case Put():
            yield txn.Put(keys.USER + asked.key, asked.value, asked.lease)
        case Delete():
            yield txn.Delete(keys.USER + asked.key, _end(asked.end))
            yield txn.Delete(keys.USER_DETAILS + asked.key, _details_end(asked.end))
        case Get():
            yield txn.Range(
                keys.USER + asked.key,
                _end(asked.end),
                limit=asked.limit,
                sort_by=asked.sort_by,
                descending=asked.descending,
                keys_only=asked.keys_only,
                count_only=asked.count_only,
                min_mod_revision=asked.min_mod_revision,
                max_mod_revision=asked.max_mod_revision,
                min_create_revision=asked.min_create_revision,
                max_create_revision=asked.max_create_revision,
            )
        case Nested():
            yield _txn(asked)


def _details_end(end: bytes | None) -> bytes | None:
    return None if end is None else keys.USER_DETAILS + end if end else keys.prefix_end(keys.USER_DETAILS)


class _Answer:
    """An answer being made, and the room that is left in it."""

    def __init__(self) -> None:
        self._left = PAGE_BYTES
        self._first = True

    def branched(self, asked: Nested, result: txn.TxnResult) -> Branched:
        found = iter(result.responses)
        responses: list[Response] = []
        for op in asked.then if result.succeeded else asked.orelse:
            responses.append(self._response(op, next(found)))
            if isinstance(op, Delete):
                next(found)  # of what stood beside the keys
        return Branched(result.succeeded, tuple(responses))

    def _response(self, op: Op, result: txn.RangeResult | txn.PutResult | txn.DeleteResult | txn.TxnResult) -> Response:
        match result:
            case txn.PutResult(prev=prev):
                if prev is None or not isinstance(op, Put) or not op.with_prev:
                    return Written()
                fitting = self._fitting((prev,))
                return Written(fitting[0] if fitting else None, not fitting)
            case txn.DeleteResult(prevs=prevs):
                if not isinstance(op, Delete) or not op.with_prev:
                    return Deleted(len(prevs))
                fitting = self._fitting(prevs)
                return Deleted(len(prevs), fitting, len(fitting) < len(prevs))
            case txn.RangeResult(entries=entries, count=count, more=more):
                fitting = self._fitting(entries)
                return Got(fitting, count, more or len(fitting) < len(entries))
            case txn.TxnResult():
                assert isinstance(op, Nested)
                return self.branched(op, result)

    def _fitting(self, entries: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
        """As many of these, from the first on, as there is room for; the very first of an answer always has."""
        fitting: list[KeyValue] = []
        for kv in entries:
            self._left -= len(kv.key) + len(kv.value) + _ENTRY_BYTES
            if self._left < 0 and not self._first:
                break
            self._first = False
            fitting.append(bare(kv))
        return tuple(fitting)


def bare(kv: KeyValue) -> KeyValue:
    """A user's entry without the prefix it is stored under."""
    return KeyValue(kv.key[len(keys.USER) :], kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
