"""The store over an etcd cluster that any number of replicas share.

Each replica keeps a mirror (`store/etcd_mirror.py`), and everything is read from it. Transactions are decided on the
mirror by the same code as in the embedded store, and sent to etcd as what they change, guarded by what they looked
at (`core/optimistic.py`). If another replica was faster, the guard fails, the mirror catches up, and they are decided
anew. A caller is answered when the mirror shows its write. One batch is under way at a time, as many transactions as
arrived meanwhile, so their order is that of the calls.

Under the prefix (`store/etcd_batches.py`), `i/id` names the store, and its creation is revision 1. `i/last` is put by
every batch, so that a linearizable read of it tells how far a mirror must have come, and its value which batch it was:
an answer that got lost is found in the mirror. `i/m/<replica>` says who lives. Leases are ours, run by one replica each
(`store/etcd_ownership.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import (
    Closed,
    HomeportError,
    OutcomeUnknown,
    ReadOnly,
)
from homeport.client.core.model import KeyValue
from homeport.registry.core.head import Head
from homeport.registry.core.limits import TXN_OPS_MAX
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Range, Txn, TxnResult
from homeport.registry.store.answers import fail, succeed
from homeport.registry.store.backups import write_backup
from homeport.registry.store.barriers import Shared
from homeport.registry.store.contract import Reply
from homeport.registry.store.etcd_batches import (
    TRIES_MAX,
    WRITES_OF_ONE_MAX,
    Batch,
    Batches,
    Layout,
    Waiting,
    answered,
)
from homeport.registry.store.etcd_cluster import EtcdCluster, Refused, Stored, Unreachable, Write
from homeport.registry.store.etcd_mirror import Mirror
from homeport.registry.store.etcd_ownership import Ownership
from homeport.registry.store.frame import Frame
from homeport.registry.store.undecided import Undecided

_log = logging.getLogger("homeport.registry.store")

_UNKNOWN_S: Final = 5.0  # how long an answer is looked for before its callers are told that nobody knows
_START_S: Final = 10.0  # how long a start looks for a member that answers
_RETRY_S: Final = 0.2  # between attempts on a cluster that does not answer


class EtcdStore(Frame):
    """A `Store` shared through etcd. `start` it on the loop that will use it.

    Args:
        cluster: how to reach etcd; closed with the store.
        now: seconds of any clock that never goes back.
        prefix: of all keys in etcd, so that others may live beside it.
        host: the machine's name, that no other machine has; empty: all replicas are taken to be on one.
    """

    def __init__(
        self,
        cluster: EtcdCluster,
        *,
        now: Callable[[], float],
        rng: Rng,
        prefix: bytes = b"/homeport/",
        host: str = "",
    ) -> None:
        super().__init__(now=now, rng=rng)
        self.host = host
        self._cluster = cluster
        self._layout = Layout(prefix)
        self._name = f"{rng.randrange(1 << 64):016x}"
        self.store_id = ""
        self.ownership = Ownership(
            self, cluster, self._layout, name=self._name, host=host, now=now, rng=rng, lost=self._fail
        )
        self.clock = self.ownership.clock
        self._mirror = Mirror(
            cluster,
            self._layout,
            self.ownership,
            name=self._name,
            mvcc=lambda: self.mvcc,
            advance=self._advance,
            leap=self._leap,
            lost=self._history_lost,
        )
        self._waiting = Batches(self._layout, self._name, lambda: self.ownership.replica, host, self.ownership.ending)
        self._wanted = asyncio.Event()
        self._conflicts = 0
        self._barrier = Shared(self._ask_etcd)
        self._undecided = Undecided()
        self._telling: dict[asyncio.Task[None], None] = {}  # as many as instances that are kept
        self._cut_off: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._adopt(Mvcc())

    # --- starting and stopping ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill the mirror, join the replicas, and start the leases' clock.

        Raises:
            Unreachable: no member of the cluster answers.
            Refused: etcd does not let us.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _START_S
        try:
            while True:
                try:
                    return await self._begin()
                except Unreachable:
                    if loop.time() >= until:
                        raise
                    await asyncio.sleep(_RETRY_S)  # the next member may do
        except BaseException:
            await self._cluster.close()
            raise

    async def _begin(self) -> None:
        identity = await self._identity()
        self.store_id = self._layout.named(identity)
        if (await self._cluster.page(self._layout.migrating, None, 0, 1)).entries:
            raise Refused(f"a migration to {self._layout.prefix.decode()!r} is under way, or was cut off: run it again")
        mvcc, found = await self._mirror.read()
        self._adopt(mvcc)
        await self.ownership.join()
        self._loop = loop = asyncio.get_running_loop()
        self.ownership.start(found.members, found.revision)
        jobs = ((self._mirror.follow, "mirror"), (self._write, "writer"), (self.ownership.stay, "membership"))
        for job, name in jobs:
            task = loop.create_task(job(), name=f"homeport etcd {name}")
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)
        self._note_age()

    async def _identity(self) -> Stored:
        for _ in range(TRIES_MAX):
            found = (await self._cluster.page(self._layout.id, None, 0, 1)).entries
            if found:
                return found[0]
            minted = f"{self._rng.randrange(1 << 64):016x}".encode()
            await self._cluster.txn([(self._layout.id, 0)], [Write(self._layout.id, minted)], self._layout.id)
        raise Refused(f"{self._layout.id!r} cannot be read back")

    async def close(self) -> None:
        """Write what is queued, leave the replicas, and refuse what comes later. Idempotent."""
        if self._loop is None:
            return
        if self._waiting.queue and self.read_only is None:
            with suppress(HomeportError):
                await self.commit(Txn())  # when it is answered, all before it are
        self._loop = None
        self.ownership.stop()
        if self._age_timer is not None:
            self._age_timer.cancel()
        for task in self._tasks:
            task.cancel()
        for telling in self._telling:
            telling.cancel()
        await asyncio.gather(*self._tasks, *self._telling, return_exceptions=True)
        for waiting in self._waiting.queue:
            fail(waiting.reply, Closed("the store was closed; nothing was written"))
        await self.ownership.leave()
        await self._cluster.close()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.read_only = f"{task.get_name()} failed by a defect; the log says more"
            _log.critical("%s failed", task.get_name(), exc_info=task.exception())

    def _lease_changed(self, change: Change) -> None:
        self.ownership.changed(change)

    @property
    def reached(self) -> int:
        return self._mirror.reached

    def expect_history(self, revision: int, reached: int) -> None:
        self._mirror.expect_history(revision, reached)

    # --- writing ------------------------------------------------------------------------------------------------

    def submit(self, txn: Txn, reply: Reply, *, ops_max: int = TXN_OPS_MAX) -> None:
        self._expect_writable()
        outcome = Head(self.mvcc).decide(txn, ops_max)  # for the mistakes that can be told at once
        written = [change.key for change in outcome.changes]
        self._enqueue(Waiting(txn, self._undecided.track(written, reply) if written else reply, ops_max))

    def _enqueue(self, waiting: Waiting) -> None:
        self._commits += 1
        self._waiting.queue.append(waiting)
        self._wanted.set()

    def end_due(self, lease: int, txn: Txn) -> asyncio.Future[TxnResult]:
        """Commit the end of a lease whose time is up; all replicas hear that it was that."""
        self._expect_writable()
        answer: asyncio.Future[TxnResult] = self._expect_running().create_future()
        self._enqueue(Waiting(txn, answer, WRITES_OF_ONE_MAX, lease))
        return answer

    async def _write(self) -> None:
        """Send what gathers, for ever."""
        while True:
            if self.read_only is not None:
                await self._recover()
            if not self._waiting.queue:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            batch = self._waiting.next(self.mvcc, self._mirror.last_mod, self._mirror.fence_mod)
            if batch is None:
                continue
            try:
                revision = await self._send(batch)
            except Refused as error:
                self._give_up(batch, ReadOnly(f"nothing was written: {error.message}"))
                continue
            except OutcomeUnknown as error:
                self._fail(error.message)
                self._give_up(batch, error)
                continue
            if revision is None:
                continue  # another replica was faster: they are decided anew
            for _ in batch.waiting:
                self._waiting.queue.popleft()
            for at, waiting in enumerate(batch.waiting):
                succeed(waiting.reply, answered(batch, batch.outcomes[at], revision))

    def _give_up(self, batch: Batch, error: HomeportError) -> None:
        for waiting in batch.waiting:
            self._waiting.queue.popleft()
            fail(waiting.reply, error)

    async def _send(self, batch: Batch) -> int | None:
        """Have etcd carry out a batch; return its revision once the mirror shows it, None if its guards failed.

        Raises:
            OutcomeUnknown: no answer, and no trace of it in the mirror.
            Refused: etcd will not do it, and has not.
        """
        if not batch.guards and not batch.writes:
            return batch.revision
        loop = asyncio.get_running_loop()
        until = loop.time() + _UNKNOWN_S
        leaps = self._mirror.leaps
        error: HomeportError | None = None  # of an attempt that may have been carried out
        while error is None or loop.time() < until:
            try:
                async with asyncio.timeout_at(until):
                    reached = self._mirror.reached
                    answer = await self._cluster.txn(batch.guards, batch.writes, self._layout.last)
                    try:
                        self._mirror.expect_history(answer.revision, reached)
                    except Refused as refused:  # and what it did to that one is of no use to anybody here
                        raise OutcomeUnknown(refused.message) from None
                    if answer.succeeded:
                        if not batch.writes:
                            return batch.revision
                        await self._mirror.reach(answer.revision)
                        self._mirror.taken(batch.name)
                        self._waiting.fence_wanted = False  # if it was, this was one
                        return answer.revision - self._layout.base
                    if answer.read is not None:
                        await self._mirror.reach(answer.read.mod_revision)
                # An earlier attempt whose answer was lost may be what broke the guards.
                mine = self._mirror.taken(batch.name)
                if mine is not None:
                    return mine - self._layout.base
                if error is not None and self._mirror.leaps != leaps:
                    break  # the mirror has leapt over where that would have been seen
                self._conflicts += 1
                if error is not None:
                    self._waiting.fence_wanted = True  # it may be carried out yet
                return None
            except Unreachable as failed:
                error = failed
                await asyncio.sleep(_RETRY_S)
            except Refused as refused:
                if error is None:
                    raise
                error = refused  # which says nothing of the attempt before
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                error = error or Unreachable("the mirror does not get what etcd has written")
        mine = self._mirror.taken(batch.name)
        if mine is not None:
            return mine - self._layout.base
        raise OutcomeUnknown(f"the write may or may not have happened: {error.message}")

    def when_cut_off(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever etcd's quorum is lost: who renews leases here had better do so elsewhere."""
        self._cut_off = tell

    def _fail(self, reason: str) -> None:
        if self.read_only is None:
            _log.error("nothing can be written: %s", reason)
            self.read_only = reason
            self._wanted.set()
            self._cut_off()

    def _history_lost(self, reason: str) -> None:
        """For good: writing goes on after a restart only."""
        _log.critical("%s", reason)
        self._fail(reason)
        self.read_only = reason

    async def _recover(self) -> None:
        """Refuse writes until etcd answers with a quorum, and the mirror shows all that was written."""
        while self._waiting.queue:
            fail(self._waiting.queue.popleft().reply, ReadOnly(f"nothing was written: {self.read_only}"))
        while True:
            try:
                async with asyncio.timeout(_UNKNOWN_S):
                    await self._mirror.catch_up()
                if self.ownership.promising:
                    break
            except (Unreachable, Refused, TimeoutError):
                pass
            await asyncio.sleep(_RETRY_S)
        self._mirror.forget_batches()
        self.clock.resume_all()
        self.read_only = None
        _log.warning("writing goes on")

    async def barrier(self) -> None:
        await self._barrier.answered()

    async def _ask_etcd(self) -> None:
        try:
            async with asyncio.timeout(_UNKNOWN_S):
                await self._mirror.catch_up()
        except (Unreachable, Refused, TimeoutError) as error:
            raise ReadOnly(f"there is no quorum to ask: {str(error) or 'timeout'}") from None

    # --- reading and watching -----------------------------------------------------------------------------------

    def at_head(self, key: bytes, end: bytes | None = None) -> list[KeyValue]:
        return list(Head(self.mvcc).range(key, end))

    def undecided(self, key: bytes) -> asyncio.Future[None] | None:
        return self._undecided.until_decided(key)

    def compact(self, revision: int) -> None:
        self.mvcc.compact(revision)  # the mirror's history; etcd's is not ours to compact

    async def backup(self, path: str) -> None:
        await self.barrier()
        everything = self.mvcc.range(Range(b"", b"")).entries
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, write_backup, path, self.store_id, everything, self.mvcc.revision)

    # --- leases -------------------------------------------------------------------------------------------------

    def new_lease(self) -> int:
        return self.ownership.new_lease()

    def lease_renew(self, lease: int) -> float | asyncio.Future[float]:
        self._expect_running()
        return self.ownership.renew(lease)

    def lease_remaining_s(self, lease: int) -> float | None:
        return self.ownership.remaining_s(lease)

    def leases(self) -> list[int]:
        return self.ownership.leases()

    def let_go(self, node: str, id: str) -> None:  # noqa: A002 - the field's name everywhere else
        task = self._expect_running().create_task(self._tell_let_go(node, id), name="homeport let go")
        self._telling[task] = None
        task.add_done_callback(lambda told: self._telling.pop(told, None))

    async def _tell_let_go(self, node: str, id: str) -> None:  # noqa: A002
        write = Write(self._layout.let_go, wire.encode((node, id)))
        try:
            await self._cluster.txn([], [write], self._layout.let_go)
        except (Unreachable, Refused) as error:
            _log.warning("other replicas keep %s on %s for the rest of its time: %s", id, node, error)

    def in_charge(self, name: bytes, lease: int, local: bool, host: str) -> bool:
        return self.ownership.in_charge(name, lease, local, host)

    def listen_charges(self, listener: Callable[[], None]) -> None:
        self.ownership.listen_charges(listener)

    def numbers(self) -> dict[str, int]:
        return {
            **self._numbers(),
            "head_revision": self.mvcc.revision,
            **self.ownership.numbers(),
            "etcd_batches": self._waiting.made,
            "etcd_conflicts": self._conflicts,
            "etcd_resyncs": self._mirror.leaps,
            "etcd_waiting": len(self._waiting.queue),
        }
