"""What an `EtcdStore` asks of an etcd cluster, in plain values: so few calls that a model of them fits on a page.

Revisions here are etcd's own, keys are whole. Every write is a guarded one: it says which keys must not have changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from homeport.client.core.errors import RegistryError


class Unreachable(RegistryError):
    """No member with a quorum behind it answered in time; a write may or may not have happened."""

    code = "etcd_unreachable"


class Refused(RegistryError):
    """etcd answered that it will not do this: no permission, no space left, too large."""

    code = "etcd_refused"


class TooLarge(Refused):
    """The answer is larger than is taken."""


class HistoryGone(RegistryError):
    """The revision to watch from is compacted in etcd."""

    code = "etcd_compacted"


class Stored(NamedTuple):
    """A key as etcd has it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


class Event(NamedTuple):
    """A key's step: put (`stored` present) or deleted."""

    key: bytes
    stored: Stored | None


class Write(NamedTuple):
    """Put a value, on an etcd lease if there is one; None deletes."""

    key: bytes
    value: bytes | None
    lease: int = 0


class TxnAnswer(NamedTuple):
    """`read` is the key that was asked for, in case the guards did not hold."""

    succeeded: bool
    revision: int
    read: Stored | None


class Page(NamedTuple):
    """Part of a range, in key order; `revision` is etcd's when it was read."""

    entries: list[Stored]
    revision: int
    more: bool


class EtcdCluster(Protocol):
    """A cluster, whichever member answers. Every call may raise `Unreachable` or `Refused`."""

    async def txn(self, guards: Sequence[tuple[bytes, int]], writes: Sequence[Write], read: bytes) -> TxnAnswer:
        """If each guarded key has that mod revision (0: absent) do all writes at one revision, else read one key."""
        ...

    async def page(self, key: bytes, end: bytes | None, revision: int, limit: int) -> Page:
        """Read a range, linearizable at the newest revision (0) or at a past one.

        Raises:
            HistoryGone: that revision is compacted.
        """
        ...

    def watch(self, key: bytes, end: bytes, start_revision: int) -> AsyncIterator[tuple[int, list[Event]]]:
        """Yield each revision of a range from `start_revision` on, whole and in order, until it raises.

        Raises:
            HistoryGone: that revision is compacted.
        """
        ...

    async def grant(self, ttl_s: int) -> int:
        """Grant an etcd lease and return its id."""
        ...

    async def keep_alive(self, lease: int) -> bool:
        """Renew an etcd lease; False if it is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """End an etcd lease and delete its keys."""
        ...

    async def close(self) -> None: ...
