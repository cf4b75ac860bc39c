"""The words of the store: compares, operations, transactions and what they answer.

A range is `[key, end)`: `end` None means exactly `key`, b"" means no upper bound. Example, a lock taken once:

    Txn(compare=(Compare(b"k/lock", "version", "=", 0),),
        then=(Put(b"k/lock", b"me", lease=7),),
        orelse=(Range(b"k/lock"),))
"""

from __future__ import annotations

from typing import Literal

import msgspec

from homeport.client.core.model import KeyValue

Target = Literal["version", "create", "mod", "value", "lease"]
Comparison = Literal["=", "!=", "<", ">"]
SortBy = Literal["key", "version", "create", "mod", "value"]


class Compare(msgspec.Struct, frozen=True, gc=False):
    """A condition on a key (or on every key of a range) at head.

    A missing key, or a range without any, has version, create, mod and lease 0; a comparison of its value is false,
    whatever the operator.
    """

    key: bytes
    target: Target
    op: Comparison
    operand: int | bytes
    end: bytes | None = None


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write a key; `lease` 0 detaches it from any lease."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Delete the keys of a range."""

    key: bytes
    end: bytes | None = None


class EndLease(msgspec.Struct, frozen=True, gc=False):
    """Delete a lease and every key on it."""

    lease: int


class Range(msgspec.Struct, frozen=True, gc=False, kw_only=False):
    """Read a range.

    `revision` 0 reads the newest state. `limit` 0 is no limit; it applies after sorting and after the revision
    bounds, all of which are inclusive and 0 where open. The count in the answer ignores `limit`, as etcd's does.
    """

    key: bytes
    end: bytes | None = None
    revision: int = 0
    limit: int = 0
    sort_by: SortBy = "key"
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0
    uncounted: bool = False  # `count` need only be right about whether there is more: what a page needs


class Txn(msgspec.Struct, frozen=True, gc=False):
    """If all compares hold run `then`, else `orelse`; all of it at one revision or not at all."""

    compare: tuple[Compare, ...] = ()
    then: tuple[Op, ...] = ()
    orelse: tuple[Op, ...] = ()


Op = Put | Delete | EndLease | Range | Txn


class RangeResult(msgspec.Struct, frozen=True, gc=False):
    """`entries` in the order asked for; `count` of all that matched; `more` if `limit` cut the list."""

    entries: tuple[KeyValue, ...]
    count: int
    more: bool


class PutResult(msgspec.Struct, frozen=True, gc=False):
    """What the key was before, if it was."""

    prev: KeyValue | None


class DeleteResult(msgspec.Struct, frozen=True, gc=False):
    """What was deleted."""

    prevs: tuple[KeyValue, ...]


class TxnResult(msgspec.Struct, frozen=True, gc=False):
    """`revision` is the store's after the transaction; `responses` one per operation of the branch that ran."""

    revision: int
    succeeded: bool
    responses: tuple[RangeResult | PutResult | DeleteResult | TxnResult, ...]


class Change(msgspec.Struct, frozen=True, gc=False):
    """One key's step at one revision: `kv` None is a deletion, `prev` None a creation."""

    key: bytes
    kv: KeyValue | None
    prev: KeyValue | None


def matches(key: bytes, start: bytes, end: bytes | None) -> bool:
    """Whether `key` lies in the range."""
    if end is None:
        return key == start
    return key >= start and (not end or key < end)
