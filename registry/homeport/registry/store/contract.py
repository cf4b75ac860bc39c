"""The store's contract: what every backend promises and every view relies on.

Reads are synchronous, on `mvcc`, which is the state at the *durable* revision. Writes are decided at *head* in the
order in which they are committed, and answered when durable. A view that must never be behind registers a `Listener`:
it is called with each revision after `mvcc` has taken it in, before any watcher hears of it and before its writers are
answered.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import HomeportError
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.limits import TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Put, Txn, TxnResult
from homeport.registry.core.watches import Filter, Watcher

# Called with a revision and its changes; must not raise, block or commit.
Listener = Callable[[int, tuple[Change, ...]], None]


class Reply(Protocol):
    """What hears of a transaction's outcome, once; a future is one. Must not raise, block or commit."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, result: TxnResult, /) -> None: ...
    def set_exception(self, error: HomeportError, /) -> None: ...


class LeaseListener(Protocol):
    """What hears of leases that have outlived their TTL; must not raise, block or commit."""

    def ending(self, leases: Sequence[int], more: int, at: float, since: float, /) -> None:
        """Their ends are written next, unless they are renewed at the last moment; and soon those of more.

        Args:
            more: of so many instances.
            at: the place of these ends in the order of all that are told.
            since: those told later than this place were told within the last second, to whoever ends these.
        """
        ...

    def let_go(self, node: str, id: str, /) -> None:  # noqa: A002 - the field's name everywhere else
        """Another replica has let go of an instance that was only kept, because it fails or was deregistered."""
        ...

    def overdue(self, leases: Sequence[int], /) -> None:
        """Their ends cannot be written now, because the store is read-only."""
        ...

    def renewed(self, lease: int, /) -> None:
        """One that was overdue has been renewed after all, or lives on by another replica's clock."""
        ...


class LeaseRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `l/<lease>`: the lease exists exactly as long as this key does."""

    ttl_s: float
    owner: str = ""  # the replica that runs its clock; empty in a registry of one
    attached: int = 0  # counts keys put on it, in a shared store: an end that knows nothing of one must fail


class Store(Protocol):
    """One history of revisions, named by `store_id`."""

    @property
    def store_id(self) -> str:
        """Minted at creation, restore and migration: equal ids mean the same history, whatever restarted meanwhile."""
        ...

    @property
    def host(self) -> str:
        """The machine that this replica is on, by a name that others of the same store can compare; else empty."""
        ...

    @property
    def mvcc(self) -> Mvcc:
        """The state at the durable revision, for reading only."""
        ...

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written now, or None."""
        ...

    def commit(self, txn: Txn, *, ops_max: int = TXN_OPS_MAX) -> Future[TxnResult]:
        """Decide a transaction now and answer it when everything it saw is durable.

        A transaction that changes something takes exactly one revision (in a shared etcd, revisions may have gaps);
        one that changes nothing takes none, and its answer still waits for what it saw. Transactions are decided in
        the order of these calls. Cancelling the future forgets the answer, not the effect.

        Raises:
            RequestError: at once; nothing changed. `LeaseGone` if a put names a lease that does not exist.
            ReadOnly: at once; nothing can be written now.
            OutcomeUnknown: from the future: the write failed on its way to disk. Read before writing again.
        """
        ...

    def submit(self, txn: Txn, reply: Reply, *, ops_max: int = TXN_OPS_MAX) -> None:
        """The same as `commit`, for callers with a lighter way to hear of the outcome than a future."""
        ...

    def at_head(self, key: bytes, end: bytes | None = None) -> list[KeyValue]:
        """The newest decided versions of a range, in key order, durable or not.

        For deciding a transaction that compares what it saw; never for an answer: it may still be taken back.
        """
        ...

    def undecided(self, key: bytes) -> Future[None] | None:
        """Whether a transaction is under way that writes a key and is not decided, so that `at_head` does not show it.

        Returns:
            What ends when it is decided; then ask again. None: there is none, as always in a store of one.
        """
        ...

    async def barrier(self) -> None:
        """Return when `mvcc` shows every write that was acknowledged to anyone before this call.

        Raises:
            ReadOnly: a shared backend has no quorum to ask.
        """
        ...

    def watch(
        self, key: bytes, end: bytes | None, start_revision: int, wake: Callable[[], None], omit: Filter = ""
    ) -> Watcher:
        """Watch a range from `start_revision`, inclusive (0: from the next revision).

        Everything from there on is delivered in order, a revision never split, or named as lost (`Lost`): never
        silently skipped, never buffered without bound. Previous values come with each change. `wake` is called when
        there is something to take, once until it is taken; it must not block.

        Raises:
            FutureRevision: the store has not come so far.
        """
        ...

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every revision from now on, in order."""
        ...

    def listen_leases(self, listener: LeaseListener) -> None:
        """Tell `listener` of every lease that outlives its TTL from now on."""
        ...

    def lease_grant(self, ttl_s: float, lease: int = 0) -> Future[TxnResult]:
        """Grant a lease: a transaction that writes `l/<lease>`; 0 draws a free id. See `lease_put` for a larger one."""
        ...

    def new_lease(self) -> int:
        """Draw a lease id that is not in use, to be written by the caller's own transaction."""
        ...

    def lease_renew(self, lease: int) -> float | Future[float]:
        """Start the lease's TTL anew and return it in seconds, 0.0 if it is gone. Writes nothing, O(1).

        Over a shared backend the first renewal that a replica hears of another's lease is a write, and its answer a
        future; so is a refusal. `answers.ttl_s` waits for either.

        A lease never ends before its TTL after the last renewal received, and no later than its TTL plus one tick
        (250 ms) of a live process; a stalled process extends all leases by the stall. After a restart every
        surviving lease has its full TTL again.

        Raises:
            ReadOnly: from the future: this replica cannot say for how long the lease lives; another may.
            OutcomeUnknown: from the future: nobody knows whether the lease lives longer now.
        """
        ...

    def lease_revoke(self, lease: int) -> Future[TxnResult]:
        """End a lease and delete its keys, in one revision; a lease that is gone already changes nothing."""
        ...

    def lease_remaining_s(self, lease: int) -> float | None:
        """Seconds until the lease ends unless renewed, None if it is gone."""
        ...

    def leases(self) -> list[int]:
        """The leases that stand."""
        ...

    def in_charge(self, name: bytes, lease: int, local: bool, host: str) -> bool:
        """Whether this replica looks after something, so that one replica does; a registry of one always does.

        Args:
            name: by which what is not local is shared out among the replicas that live.
            lease: what it stands on, 0 if on none.
            local: who hears its renewals looks at it, as long as that lives.
            host: only replicas on this machine can look at it, and nobody does while there is none; empty: any can.
        """
        ...

    def let_go(self, node: str, id: str) -> None:  # noqa: A002 - the field's name everywhere else
        """Tell the other replicas, if they can be reached, that an instance which is only kept is gone for good."""
        ...

    def listen_charges(self, listener: Callable[[], None]) -> None:
        """Call `listener` when replicas come or go: who is in charge may be another for anything."""
        ...

    def compact(self, revision: int) -> None:
        """Forget history that no read at `revision` or later can see.

        Raises:
            Compacted: that was done already.
            FutureRevision: the store has not come so far.
        """
        ...

    async def backup(self, path: str) -> None:
        """Copy the whole store to a new file, consistent at one revision, while it goes on.

        Raises:
            JournalError: the file cannot be written.
        """
        ...

    def numbers(self) -> dict[str, int]:
        """Counts for people and metrics, by name."""
        ...


def lease_put(lease: int, ttl_s: float, owner: str = "") -> Put:
    """The operation that grants a lease within a transaction; its clock starts when that is durable."""
    return Put(keys.lease(lease), wire.encode(LeaseRecord(ttl_s, owner)))
