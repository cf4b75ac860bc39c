"""The embedded store: the state in this process's memory, durable in a journal if it has one.

`commit` decides at head and queues the revision. One writer task takes whatever has gathered (group commit), has the
worker thread write it, and then lets `mvcc`, the listeners and the watchers have each revision, in that order, before
its callers are answered. Without a journal a revision is durable the moment it is decided.

When a write fails, nobody knows what reached the disk: its callers are told so (`OutcomeUnknown`), what waited behind
it is refused, head falls back to what is durable, and the store is read-only until the journal could be opened anew,
read and written; whatever the failed batch left there is then part of history.

Leases are a view over the keys under `l/`: putting one starts its clock, deleting one stops it, so a transaction can
grant a lease and use it at the same revision.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Closed, LimitExceeded, OutcomeUnknown, ReadOnly
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.head import Head
from homeport.registry.core.limits import LEASES_MAX, TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Compare, EndLease, Range, Txn, TxnResult
from homeport.registry.store.answers import fail, succeed
from homeport.registry.store.backups import Backup, read_backup, write_backup
from homeport.registry.store.contract import LeaseRecord, Reply
from homeport.registry.store.directory import make_directory
from homeport.registry.store.frame import Frame
from homeport.registry.store.journal import CHECKPOINT_PAGES, FILE_NAME, Journal, JournalError, Revision, Synchronous
from homeport.registry.store.lease_clock import LeaseClock

_log = logging.getLogger("homeport.registry.store")

T = TypeVar("T")

_BATCH_REVISIONS: Final = 2048  # of one write: 40 ms of work for the loop when it is done,
_SHOWN_AT_ONCE: Final = 256  # which it does some 5 ms at a time
_UPKEEP_BATCHES: Final = 16  # how many batches the journal's upkeep may wait while writers never pause
_RECOVER_S: Final = 1.0  # between two looks whether a failed disk can be written again


class _Waiting:
    """A caller whose transaction is decided and not yet durable; `changes` is empty if it only waits for others."""

    __slots__ = ("changes", "reply", "result", "revision")

    def __init__(self, revision: int, changes: tuple[Change, ...], result: TxnResult, reply: Reply) -> None:
        self.revision = revision
        self.changes = changes
        self.result = result
        self.reply = reply


class EmbeddedStore(Frame):
    """A `Store` of this process. `start` it on the loop that will use it.

    Args:
        now: seconds of any clock that never goes back.
        data_dir: a directory for the journal; None keeps everything in memory.
        vfs: the SQLite VFS to use, for tests on disks that fail.
        synchronous: for tests that show what anything but FULL loses.
        checkpoint_pages: how far the journal's log grows before it is copied back; tests choose few.
        backup: without `data_dir`, a file of a backup to start from, as a history of its own.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        rng: Rng,
        data_dir: str | None = None,
        vfs: str | None = None,
        synchronous: Synchronous = "FULL",
        checkpoint_pages: int = CHECKPOINT_PAGES,
        backup: str | None = None,
    ) -> None:
        super().__init__(now=now, rng=rng)
        self._path = None if data_dir is None else os.path.join(data_dir, FILE_NAME)
        self._vfs = vfs
        self._synchronous: Synchronous = synchronous
        self._checkpoint_pages = checkpoint_pages
        self._backup = backup
        self.store_id = f"{rng.randrange(1 << 64):016x}"
        self._journal: Journal | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._queue: deque[_Waiting] = deque()  # bounded by those who wait for an answer, and by the leases
        self._compact_to = 0
        self.clock = LeaseClock(
            now=now,
            standing=self._standing_lease,
            end=self._end_lease,
            bears=self.bears_instance,
            writable=lambda: self.read_only is None,
        )
        self._batches = 0
        self._adopt(Mvcc())

    def _adopt(self, mvcc: Mvcc) -> None:
        super()._adopt(mvcc)
        self._head = Head(mvcc)
        self.clock.clear()
        for key in mvcc.keys(keys.LEASES, keys.prefix_end(keys.LEASES)):
            record = mvcc.get(key)
            assert record is not None
            self.clock.granted(keys.lease_number(key), wire.decode(LeaseRecord, record.value).ttl_s)

    async def start(self) -> None:
        """Load the journal, if there is one, and start the leases' clock; every surviving lease has its full TTL.

        Raises:
            JournalError: the journal cannot be used; the message says why and what to do.
        """
        loop = asyncio.get_running_loop()
        if self._path is not None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="homeport-journal")
            try:
                journal, mvcc = await self._in_worker(self._open)
            except BaseException:
                self._worker.shutdown(wait=False)
                raise
            self._journal = journal
            self.store_id = journal.store_id
            self._adopt(mvcc)
            self._writer = loop.create_task(self._write(journal), name="homeport journal writer")
            self._writer.add_done_callback(self._writer_ended)
        elif self._backup is not None:
            self._adopt(await loop.run_in_executor(None, read_backup, self._backup))
        self._loop = loop
        self.clock.start()
        self._note_age()

    def _open(self) -> tuple[Journal, Mvcc]:
        assert self._path is not None
        make_directory(os.path.dirname(self._path))
        journal = Journal(self._path, self.store_id, vfs=self._vfs, synchronous=self._synchronous)
        try:
            return journal, journal.load()
        except BaseException:
            journal.close()
            raise

    async def close(self) -> None:
        """Write what is queued, stop the clock and refuse what comes later. Idempotent."""
        if self._loop is None:
            return
        self._loop = None
        self.clock.stop()
        if self._age_timer is not None:
            self._age_timer.cancel()
        if self._writer is not None:
            if self.read_only is None:
                await self._drained()
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            for waiting in self._queue:
                fail(waiting.reply, Closed("the store was closed; nothing was written"))
        if self._journal is not None and self._worker is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._journal.close)
            self._worker.shutdown(wait=False)

    async def _drained(self) -> None:
        while self._queue or not self._idle.is_set():
            if self.read_only is not None:
                return
            with suppress(TimeoutError):  # a failed write never becomes idle: look whether it failed
                async with asyncio.timeout(_RECOVER_S):
                    await self._idle.wait()

    # --- writing ------------------------------------------------------------------------------------------------

    def submit(self, txn: Txn, reply: Reply, *, ops_max: int = TXN_OPS_MAX) -> None:
        self._expect_writable()
        outcome = self._head.decide(txn, ops_max)
        self._commits += 1
        revision = self._head.revision
        if self._journal is None:
            if outcome.changes:
                self._advance(revision, outcome.changes)
            reply.set_result(outcome.result)
        elif revision == self.mvcc.revision:
            reply.set_result(outcome.result)  # it changed nothing, and saw nothing that is not durable
        else:
            self._queue.append(_Waiting(revision, outcome.changes, outcome.result, reply))
            if not self._wanted.is_set():
                self._wanted.set()

    def _settled(self, revision: int, changes: tuple[Change, ...]) -> None:
        self._head.settle(revision, changes)

    async def barrier(self) -> None:
        """Wait until what is decided is durable; without a journal it is so at once."""
        if self._queue or self._head.revision > self.mvcc.revision:
            await self.commit(Txn())

    # --- the journal's writer -----------------------------------------------------------------------------------

    async def _in_worker(self, job: Callable[..., T], *args: object) -> T:
        assert self._worker is not None
        return await asyncio.get_running_loop().run_in_executor(self._worker, job, *args)

    async def _write(self, journal: Journal) -> None:
        """Write what gathers, for ever."""
        since_upkeep = 0
        while True:
            if not self._queue:
                self._idle.set()
                await self._wanted.wait()
                self._wanted.clear()
                self._idle.clear()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_REVISIONS))]
            revisions = [(waiting.revision, waiting.changes) for waiting in batch if waiting.changes]
            try:
                if revisions:
                    await self._in_worker(journal.write, revisions)
                    self._batches += 1
                for at, waiting in enumerate(batch):
                    if at and at % _SHOWN_AT_ONCE == 0:
                        await asyncio.sleep(0)  # others have their turn
                    if waiting.changes:
                        self._advance(waiting.revision, waiting.changes)
                    succeed(waiting.reply, waiting.result)
                batch = []
                since_upkeep += 1
                if not self._queue or since_upkeep >= _UPKEEP_BATCHES:
                    since_upkeep = 0
                    await self._upkeep(journal)
            except JournalError as error:
                journal = self._journal = await self._recover(journal, error, batch)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and writer.exception() is not None:
            self.read_only = "the journal's writer failed by a defect; the log says more"
            _log.critical("the journal's writer failed", exc_info=writer.exception())

    async def _upkeep(self, journal: Journal) -> None:
        if self._compact_to > journal.compact_revision:
            await self._in_worker(journal.compact, self._compact_to)
        if journal.log_pages >= self._checkpoint_pages:
            await self._in_worker(journal.checkpoint)

    async def _recover(self, journal: Journal, error: JournalError, batch: list[_Waiting]) -> Journal:
        """Refuse writes until the journal can be opened anew, then take in what the failed batch left there."""
        self.read_only = error.message
        _log.error("nothing can be written: %s", error)
        self._head.rollback()
        for waiting in batch:
            fail(
                waiting.reply,
                OutcomeUnknown(f"the write may or may not have happened: {error.message}")
                if waiting.changes
                else ReadOnly(f"what this saw could not be written: {error.message}"),
            )
        while self._queue:
            fail(self._queue.popleft().reply, ReadOnly(f"nothing was written: {error.message}"))
        await self._in_worker(journal.close)
        while True:
            await asyncio.sleep(_RECOVER_S)
            try:
                journal, tail = await self._in_worker(self._reopen)
            except JournalError as again:
                self.read_only = again.message
                continue
            for revision, changes in tail:
                # What came before is known only now: an earlier revision of the tail may have written the same key.
                self._advance(revision, tuple([Change(c.key, c.kv, self.mvcc.get(c.key)) for c in changes]))
            self._head.rollback()
            self.clock.resume_all()
            self.read_only = None
            _log.warning("writing goes on; %d revisions of the failed batch had reached the disk", len(tail))
            return journal

    def _reopen(self) -> tuple[Journal, list[Revision]]:
        assert self._path is not None
        if not os.path.exists(self._path):
            raise JournalError(f"{self._path} is gone: put it back, or restart to begin anew")
        journal = Journal(self._path, self.store_id, vfs=self._vfs, synchronous=self._synchronous)
        try:
            if journal.store_id != self.store_id:
                raise JournalError(f"{self._path} holds another registry's history now; restart to use that")
            return journal, journal.revisions_after(self.mvcc)
        except BaseException:
            journal.close()
            raise

    async def backup(self, path: str) -> None:
        """Copy the whole store to a new file, consistent at one revision, while it goes on.

        Raises:
            JournalError: the file cannot be written.
        """
        journal = self._journal
        if journal is None:
            everything = self.mvcc.range(Range(b"", b"")).entries
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, write_backup, path, self.store_id, everything, self.mvcc.revision)
            return
        await self.barrier()
        backup = await self._in_worker(Backup, journal, path)
        while not await self._in_worker(backup.step):
            pass  # batches are written in between

    # --- reading -----------------------------------------------------------------------------------------------

    def at_head(self, key: bytes, end: bytes | None = None) -> list[KeyValue]:
        return list(self._head.range(key, end))

    def undecided(self, key: bytes) -> None:
        """Transactions are decided when they come."""

    def in_charge(self, name: bytes, lease: int, local: bool, host: str) -> bool:
        return True

    def let_go(self, node: str, id: str) -> None:  # noqa: A002 - the field's name everywhere else
        """Nobody else keeps it."""

    def listen_charges(self, listener: Callable[[], None]) -> None:
        """There are no other replicas, and never will be."""

    def compact(self, revision: int) -> None:
        self.mvcc.compact(revision)
        self._compact_to = revision
        self._wanted.set()

    # --- leases -------------------------------------------------------------------------------------------------

    def new_lease(self) -> int:
        if len(self.clock) >= LEASES_MAX:
            raise LimitExceeded(f"there are {LEASES_MAX} leases already", limit="LEASES_MAX", allowed=LEASES_MAX)
        while True:
            lease = self._rng.randrange((1 << 63) - 1) + 1
            if self._head.get(keys.lease(lease)) is None:
                return lease

    def lease_renew(self, lease: int) -> float:
        return self.clock.renew(lease)

    def lease_remaining_s(self, lease: int) -> float | None:
        return self.clock.remaining_s(lease)

    def leases(self) -> list[int]:
        return self.clock.ids()

    def _lease_changed(self, change: Change) -> None:
        lease = keys.lease_number(change.key)
        if change.kv is None:
            self.clock.ended(lease)
        else:
            self.clock.granted(lease, wire.decode(LeaseRecord, change.kv.value).ttl_s)

    def _standing_lease(self, lease: int) -> KeyValue | None:
        record = self.mvcc.get(keys.lease(lease))
        return record if record is not None and record == self._head.get(record.key) else None

    def _end_lease(self, lease: int, record: KeyValue) -> None:
        self.commit(Txn((Compare(record.key, "mod", "=", record.mod_revision),), (EndLease(lease),)))

    def numbers(self) -> dict[str, int]:
        return {
            **self._numbers(),
            "head_revision": self._head.revision,
            "leases": len(self.clock),
            "journal_batches": self._batches,
            "journal_waiting": len(self._queue),
            "journal_commit_us": int(self._journal.commit_s * 1e6) if self._journal is not None else 0,
        }
