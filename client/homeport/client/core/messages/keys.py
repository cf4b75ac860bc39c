"""Keys, transactions on them, and the leases that they may hang on."""

from __future__ import annotations

from homeport.client.core.messages.base import Answer, Done, Request
from homeport.client.core.model import KeyValue
from homeport.client.core.txn import Compare, Op, Response, writes


class KvFound(Answer, frozen=True, omit_defaults=True):
    """The entry, or None, as of `revision`."""

    revision: int
    entry: KeyValue | None = None


class KvGet(Request[KvFound], frozen=True, omit_defaults=True):
    """`newest`: at least as new as anything that any replica has acknowledged; without a quorum, `ReadOnly`."""

    method = "kv_get"
    key: bytes
    newest: bool = False


class KvWritten(Answer, frozen=True, omit_defaults=True):
    """How many keys changed, and at which revision (the present one if none did)."""

    revision: int
    count: int


class KvPut(Request[KvWritten], frozen=True, omit_defaults=True):
    """Write a key. `cas` demands that its mod_revision be exactly that (0: that it be absent), else `CasFailed`."""

    method = "kv_put"
    key: bytes
    value: bytes
    cas: int | None = None
    lease: int = 0


class KvDelete(Request[KvWritten], frozen=True, omit_defaults=True):
    """Delete a key, or with `prefix` every key that starts with it."""

    method = "kv_delete"
    key: bytes
    prefix: bool = False
    cas: int | None = None


class KvPage(Answer, frozen=True, omit_defaults=True):
    """Entries in key order as of `revision`; `more` says that a request with `after` and that revision goes on."""

    revision: int
    entries: tuple[KeyValue, ...]
    more: bool = False


class KvList(Request[KvPage], frozen=True, omit_defaults=True):
    """Entries whose key starts with `prefix`, after the key `after`, at `revision` (0: now); a page at a time."""

    method = "kv_list"
    prefix: bytes = b""
    after: bytes | None = None
    revision: int = 0
    keys_only: bool = False
    limit: int = 0


class KvTxnDone(Answer, frozen=True, omit_defaults=True):
    """Whether the compares held, and what each operation of the branch that ran answered.

    `revision` is the store's after the transaction: the one of its writes, if it wrote anything.
    """

    revision: int
    succeeded: bool
    responses: tuple[Response, ...] = ()


class KvTxn(Request[KvTxnDone], frozen=True, omit_defaults=True):
    """If all compares hold run `then`, else `orelse`: all of it at one revision, or nothing.

    A key written twice is `InvalidArgument`. One that only reads sees all that was acknowledged to anyone before.
    """

    method = "kv_txn"
    compare: tuple[Compare, ...] = ()
    then: tuple[Op, ...] = ()
    orelse: tuple[Op, ...] = ()

    @property
    def only_reads(self) -> bool:
        """Whether asking twice is as good as asking once."""
        return not writes(self.then + self.orelse)


class Leased(Answer, frozen=True, omit_defaults=True):
    """A lease is granted."""

    lease: int
    ttl_s: float
    revision: int


class LeaseGrant(Request[Leased], frozen=True, omit_defaults=True):
    method = "lease_grant"
    ttl_s: float


class LeaseRevoke(Request[Done], frozen=True, omit_defaults=True):
    """End a lease and delete its keys, in one revision."""

    method = "lease_revoke"
    lease: int
