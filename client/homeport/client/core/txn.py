"""The words of a transaction on users' keys: what it compares, what it does, and what it answers.

A range is `[key, end)`: `end` None means exactly `key`, b"" all keys from `key` on. Example, a key taken by whoever
comes first:

    KvTxn(compare=(Compare(b"leader", "version", "=", 0),),
          then=(Put(b"leader", b"me", lease=7),),
          orelse=(Get(b"leader"),))

On the wire each operation and each result is a map whose field `op` says what it is: docs/rpc.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from homeport.client.core.model import KeyValue

Target = Literal["version", "create", "mod", "value", "lease"]
Comparison = Literal["=", "!=", "<", ">"]
SortBy = Literal["key", "version", "create", "mod", "value"]


class Compare(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A condition on a key, or with `end` on every key of a range.

    A missing key, or a range without any, has version, create, mod and lease 0; a comparison of its value is false,
    whatever the operator.

    Args:
        target: what is compared: the number of writes since the key was created (`version`), the revision of its
            creation (`create`) or of its last write (`mod`), its `value`, or its `lease`.
        operand: bytes for a value, a number for everything else.
    """

    key: bytes
    target: Target
    op: Comparison
    operand: int | bytes
    end: bytes | None = None


class Put(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="put"):
    """Write a key, on a lease if one is named; `with_prev` answers what it was before."""

    key: bytes
    value: bytes
    lease: int = 0
    with_prev: bool = False


class Delete(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="delete"):
    """Delete a key, or the keys of a range; `with_prev` answers what they were."""

    key: bytes
    end: bytes | None = None
    with_prev: bool = False


class Get(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag_field="op", tag="get"):
    """Read a key, or the keys of a range, as they are after the operations before it.

    The bounds on revisions are inclusive, and 0 where there is none. `limit` (0: none) applies after the bounds and
    after sorting; the count in the answer ignores it.
    """

    key: bytes
    end: bytes | None = None
    limit: int = 0
    sort_by: SortBy = "key"
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


class Nested(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="op", tag="txn"):
    """A transaction within one: if all compares hold `then`, else `orelse`."""

    compare: tuple[Compare, ...] = ()
    then: tuple[Op, ...] = ()
    orelse: tuple[Op, ...] = ()


Op = Put | Delete | Get | Nested


class Written(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="op", tag="put"):
    """A put is done; `prev` is what the key was, if that was asked for. `more`: it was, and did not fit."""

    prev: KeyValue | None = None
    more: bool = False


class Deleted(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="op", tag="delete"):
    """So many keys were deleted; `prevs` if they were asked for. `more`: not all of them fitted."""

    count: int
    prevs: tuple[KeyValue, ...] = ()
    more: bool = False


class Got(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="op", tag="get"):
    """What was read, and the count of all that matched; `more` if `limit`, or the room of an answer, cut the list."""

    entries: tuple[KeyValue, ...] = ()
    count: int = 0
    more: bool = False


class Branched(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="op", tag="txn"):
    """Which branch of a nested transaction ran, and what its operations answered."""

    succeeded: bool
    responses: tuple[Response, ...] = ()


Response = Written | Deleted | Got | Branched


def writes(ops: tuple[Op, ...]) -> bool:
    """Whether any of these operations may change something."""
    return any(writes(op.then + op.orelse) if isinstance(op, Nested) else not isinstance(op, Get) for op in ops)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`; b"" where that is the end of all keys."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b""
