"""The embedded store: the state in this process's memory.

`commit` decides at head, makes the revision durable (in memory it is so at once), lets `mvcc`, the listeners and the
watchers have it, in that order, and answers. Leases are a view over the keys under `l/`: putting one starts its clock,
deleting one stops it, so a transaction can grant a lease and use it at the same revision. One timer runs their table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Closed, LimitExceeded
from homeport.client.core.model import validate_ttl
from homeport.registry.core import keys
from homeport.registry.core.head import Head
from homeport.registry.core.leases import BUCKET_S, LeaseTable
from homeport.registry.core.limits import HISTORY_AGE_S_MAX, HISTORY_REVISIONS_MAX, LEASES_MAX, TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Compare, EndLease, Put, Txn, TxnResult
from homeport.registry.core.watches import Filter, Watcher, WatchHub
from homeport.registry.store.contract import LeaseRecord, Listener

_COMPACT_STRIDE: Final = 1000  # revisions that history may overrun its bound by, so that compaction works in strides
_AGE_STEP_S: Final = HISTORY_AGE_S_MAX / 10  # how finely the age of revisions is noted


class EmbeddedStore:
    """A `Store` that lives and dies with its process. `start` it on the loop that will use it."""

    def __init__(self, *, now: Callable[[], float], rng: Rng) -> None:
        self._now = now
        self._rng = rng
        self.store_id = f"{rng.randrange(1 << 64):016x}"
        self.mvcc = Mvcc()
        self.read_only: str | None = None
        self._head = Head(self.mvcc)
        self._hub = WatchHub(self.mvcc)
        self._leases = LeaseTable(now())
        self._listeners: list[Listener] = []
        self._ages: list[tuple[float, int]] = [(now(), self.mvcc.revision)]  # when the store stood at which revision
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commits = 0

    async def start(self) -> None:
        """Start the leases' clock."""
        self._loop = asyncio.get_running_loop()
        self._tick()

    async def close(self) -> None:
        """Stop the clock and refuse what comes later. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None

    # --- writing ------------------------------------------------------------------------------------------------

    def commit(self, txn: Txn, *, ops_max: int = TXN_OPS_MAX) -> asyncio.Future[TxnResult]:
        if self._loop is None:
            raise Closed("the store is not running")
        outcome = self._head.decide(txn, ops_max)
        self._commits += 1
        if outcome.changes:
            self._advance(self._head.revision, outcome.changes)
        answer: asyncio.Future[TxnResult] = self._loop.create_future()
        answer.set_result(outcome.result)
        return answer

    def _advance(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision is durable: everyone may see it now."""
        self.mvcc.apply(revision, changes)
        self._head.settle(revision, changes)
        for change in changes:
            if change.key.startswith(keys.LEASES):
                self._lease_changed(change)
        for listener in self._listeners:
            listener(revision, changes)
        self._hub.publish(revision, changes)
        if self.mvcc.history_length() >= HISTORY_REVISIONS_MAX + _COMPACT_STRIDE:
            self.compact(revision - HISTORY_REVISIONS_MAX)

    async def barrier(self) -> None:
        """Nothing to wait for: what was acknowledged is in `mvcc` already."""

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def watch(
        self, key: bytes, end: bytes | None, start_revision: int, wake: Callable[[], None], omit: Filter = ""
    ) -> Watcher:
        return self._hub.watch(key, end, start_revision, wake, omit)

    def compact(self, revision: int) -> None:
        self.mvcc.compact(revision)

    # --- leases -------------------------------------------------------------------------------------------------

    def new_lease(self) -> int:
        if len(self._leases) >= LEASES_MAX:
            raise LimitExceeded(f"there are {LEASES_MAX} leases already", limit="LEASES_MAX", allowed=LEASES_MAX)
        while True:
            lease = self._rng.randrange((1 << 63) - 1) + 1
            if self._head.get(keys.lease(lease)) is None:
                return lease

    def lease_grant(self, ttl_s: float, lease: int = 0) -> asyncio.Future[TxnResult]:
        validate_ttl("ttl_s", ttl_s)
        return self.commit(Txn(then=(lease_put(lease or self.new_lease(), ttl_s),)))

    def lease_renew(self, lease: int) -> float:
        return self._leases.renew(self._now(), lease)

    def lease_revoke(self, lease: int) -> asyncio.Future[TxnResult]:
        return self.commit(Txn(then=(EndLease(lease),)))

    def lease_remaining_s(self, lease: int) -> float | None:
        return self._leases.remaining_s(self._now(), lease)

    def leases(self) -> list[int]:
        return self._leases.ids()

    def _lease_changed(self, change: Change) -> None:
        lease = keys.lease_number(change.key)
        if change.kv is None:
            self._leases.end(lease)
        else:
            self._leases.grant(self._now(), lease, wire.decode(LeaseRecord, change.kv.value).ttl_s)

    def _tick(self) -> None:
        assert self._loop is not None
        now = self._now()
        for lease in self._leases.advance(now):
            record = self.mvcc.get(keys.lease(lease))
            if record is not None:
                unchanged = Compare(record.key, "mod", "=", record.mod_revision)
                self.commit(Txn((unchanged,), (EndLease(lease),)))
        self._note_age(now)
        self._timer = self._loop.call_later(BUCKET_S, self._tick)

    def _note_age(self, now: float) -> None:
        if now - self._ages[-1][0] < _AGE_STEP_S:
            return
        self._ages.append((now, self.mvcc.revision))
        old = [revision for when, revision in self._ages if now - when >= HISTORY_AGE_S_MAX]
        if old:
            self._ages = self._ages[len(old) :]
            if old[-1] > self.mvcc.compact_revision:
                self.compact(old[-1])

    def numbers(self) -> dict[str, int]:
        return {
            "revision": self.mvcc.revision,
            "compact_revision": self.mvcc.compact_revision,
            "history_revisions": self.mvcc.history_length(),
            "keys": len(self.mvcc),
            "leases": len(self._leases),
            "watchers": self._hub.watchers,
            "commits": self._commits,
        }


def lease_put(lease: int, ttl_s: float, owner: str = "") -> Put:
    """The operation that grants a lease within a transaction; its clock starts when that is durable."""
    return Put(keys.lease(lease), wire.encode(LeaseRecord(ttl_s, owner)))
