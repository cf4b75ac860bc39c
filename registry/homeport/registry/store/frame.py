"""What both backends do alike: answer by futures, take in a revision, and let watchers and listeners have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Closed, ReadOnly
from homeport.client.core.model import validate_ttl
from homeport.registry.core import keys
from homeport.registry.core.limits import TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, EndLease, Txn, TxnResult
from homeport.registry.core.watches import Filter, Watcher, WatchHub
from homeport.registry.store.contract import LeaseListener, Listener, Reply, lease_put
from homeport.registry.store.history import AGE_STEP_S, HistoryBounds
from homeport.registry.store.lease_clock import LeaseClock


class Frame:
    """The part of a `Store` that does not depend on where revisions come from.

    Attributes:
        mvcc: the state at the durable revision.
        clock: runs the leases that are this process's to run.
    """

    clock: LeaseClock
    host = ""

    def __init__(self, *, now: Callable[[], float], rng: Rng) -> None:
        self._now = now
        self._rng = rng
        self.read_only: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs
        self._commits = 0
        self._listeners: list[Listener] = []
        self._age_timer: asyncio.TimerHandle | None = None

    def _adopt(self, mvcc: Mvcc) -> None:
        """Begin with this state."""
        self.mvcc = mvcc
        self._hub = WatchHub(mvcc)
        self._bounds = HistoryBounds(self._now, mvcc)

    # --- what a backend adds ------------------------------------------------------------------------------------

    def submit(self, txn: Txn, reply: Reply, *, ops_max: int = TXN_OPS_MAX) -> None:
        raise NotImplementedError

    def new_lease(self) -> int:
        raise NotImplementedError

    def compact(self, revision: int) -> None:
        raise NotImplementedError

    def _lease_changed(self, change: Change) -> None:
        """A lease's record is another one now, or gone."""
        raise NotImplementedError

    # --- writing ------------------------------------------------------------------------------------------------

    def commit(self, txn: Txn, *, ops_max: int = TXN_OPS_MAX) -> asyncio.Future[TxnResult]:
        answer: asyncio.Future[TxnResult] = self._expect_running().create_future()
        self.submit(txn, answer, ops_max=ops_max)
        return answer

    def _expect_running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise Closed("the store is not running")
        return self._loop

    def _expect_writable(self) -> None:
        if self._loop is None:
            raise Closed("the store is not running")
        if self.read_only is not None:
            raise ReadOnly(f"nothing can be written now: {self.read_only}")

    def _advance(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision is durable: everyone may see it now."""
        self._take_in(revision, changes)
        self._hub.publish(revision, changes)
        if old := self._bounds.by_count():
            self.compact(old)

    def _leap(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Many revisions that nobody here has seen come to these changes: views take them in as one.

        Watchers are not shown what is no revision, and may hide versions and whole keys: they are told what they lost.
        """
        before = self.mvcc.revision
        self._take_in(revision, changes, leap=True)
        self._hub.lose(before)

    def _take_in(self, revision: int, changes: tuple[Change, ...], *, leap: bool = False) -> None:
        self.mvcc.apply(revision, changes)
        if leap:  # before a listener lets anyone read it as if nothing had been in between
            self.mvcc.compact(revision)
        self._settled(revision, changes)
        for change in changes:
            if change.key.startswith(keys.LEASES):
                self._lease_changed(change)
        for listener in self._listeners:
            listener(revision, changes)

    def _settled(self, revision: int, changes: tuple[Change, ...]) -> None:
        """The state has taken them in, and nobody else yet."""

    # --- watching -----------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def watch(
        self, key: bytes, end: bytes | None, start_revision: int, wake: Callable[[], None], omit: Filter = ""
    ) -> Watcher:
        return self._hub.watch(key, end, start_revision, wake, omit)

    def _note_age(self) -> None:
        """Compact what is old, from now on again and again."""
        if old := self._bounds.by_age():
            self.compact(old)
        self._age_timer = self._expect_running().call_later(AGE_STEP_S, self._note_age)

    # --- leases -------------------------------------------------------------------------------------------------

    def lease_grant(self, ttl_s: float, lease: int = 0) -> asyncio.Future[TxnResult]:
        validate_ttl("ttl_s", ttl_s)
        return self.commit(Txn(then=(lease_put(lease or self.new_lease(), ttl_s),)))

    def lease_revoke(self, lease: int) -> asyncio.Future[TxnResult]:
        return self.commit(Txn(then=(EndLease(lease),)))

    def bears_instance(self, lease: int) -> bool:
        """Whether an instance stands on a lease."""
        return any(key.startswith(keys.INSTANCES) for key in self.mvcc.keys_on(lease))

    def listen_leases(self, listener: LeaseListener) -> None:
        self.clock.listen(listener)

    def _numbers(self) -> dict[str, int]:
        """What can be counted of any backend."""
        return {
            "revision": self.mvcc.revision,
            "compact_revision": self.mvcc.compact_revision,
            "history_revisions": self.mvcc.history_length(),
            "keys": len(self.mvcc),
            "value_bytes": self.mvcc.value_bytes,
            "watchers": self._hub.watchers,
            "commits": self._commits,
            "renewals": self.clock.renewals,
            "read_only": int(self.read_only is not None),
            "loop_late_max_us": int(self.clock.late_s_max * 1e6),
        }
