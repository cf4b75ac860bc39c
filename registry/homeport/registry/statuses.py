"""From verdicts to keys: what the prober found is gathered for a moment and written in one transaction.

Each status is written only if the very registration it was probed for still stands, so a late probe brings nothing
back to life; the others in the same transaction are not touched by that. One that is registered anew meanwhile, with
the same check, has its status still: whoever looks at it goes on from there, and would not say it again. One that
another replica is in charge of by now is that one's to judge, from what it has found since.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from homeport.client.core import wire
from homeport.client.core.errors import HomeportError, RequestError
from homeport.client.core.model import Check, InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord, Entry
from homeport.registry.core.health import Verdict
from homeport.registry.core.limits import STATUS_TICK_S
from homeport.registry.core.txn import Compare, Delete, Put, Txn, TxnResult
from homeport.registry.doubts import Doubts
from homeport.registry.store.contract import Store
from homeport.registry.trouble import Trouble

_log = logging.getLogger("homeport.registry.health")

_BATCH: Final = 100  # statuses in one transaction: some 30 KB with usual outputs
_RETRY_S: Final = 1.0  # when a store that could not write is tried again


class Reported(NamedTuple):
    """What was found of a registration."""

    create_revision: int  # that of the registration
    looked_at: Check | tuple[str, int]  # the check as defined; of one that the registry made up, the address
    verdict: Verdict


Name = tuple[InstanceKey, str]  # of a check
Pending = dict[Name, Reported]


class StatusWriter:
    """Writes verdicts to the store; the newest of a check wins."""

    def __init__(self, store: Store, catalogue: Catalogue, doubts: Doubts) -> None:
        self._store = store
        self._catalogue = catalogue
        self._doubts = doubts
        self._pending: Pending = {}
        self._sent: Pending = {}  # what was sent last of each check, and is not yet known to be written
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._waiting = Trouble(_log, "statuses wait to be written")
        self._most = _BATCH  # statuses of the next transaction

    def report(self, key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        """Write this status soon, at once if the instance refused a connection."""
        if verdict.status == "critical" and self._doubts.forget(key):
            return  # it was kept without its lease, and there is nothing to write to
        entry = self._catalogue.find(*key)
        if entry is None:
            return
        self._pending[key, check] = Reported(create_revision, _looked_at(entry, check), verdict)
        self._schedule(0.0 if verdict.refused else STATUS_TICK_S)

    def forget(self, key: InstanceKey, check: str) -> None:
        """What was found of it counts no more, if it is not written yet: another replica looks now."""
        found = self._pending.pop((key, check), None)
        if self._sent.pop((key, check), found) is not None:
            self._doubts.written(key, check)

    def close(self) -> None:
        """Forget what is not written."""
        self._closed = True
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, delay_s: float) -> None:
        if self._timer is not None:
            if delay_s > 0:
                return
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._write)

    def _write(self) -> None:
        self._timer = None
        self._most = _BATCH
        while self._pending:
            batch = dict(islice(self._pending.items(), self._most))
            writes = self._writes(batch)
            try:
                written = self._store.commit(Txn(then=tuple(writes.values())), ops_max=4 * _BATCH)
            except RequestError as error:
                # One of them cannot be written; alone, it is dropped, so that it holds up nobody else's.
                if len(batch) > 1:
                    self._most = 1
                    continue
                _log.error("the status of %s cannot be written: %s", next(iter(batch)), error)
                self._pending.pop(next(iter(batch)))
                continue
            except HomeportError as error:
                self._waiting.met(error)
                self._wait(self._pending)
                return
            self._sent |= batch
            written.add_done_callback(partial(self._written, batch, list(writes)))
            for key, report in batch.items():
                if self._pending.get(key) is report:  # else the very revision brought a newer one, of an alias
                    del self._pending[key]

    def _written(self, batch: Pending, tried: list[Name], done: asyncio.Future[TxnResult]) -> None:
        if self._closed or done.cancelled():
            return
        still = {one: report for one, report in batch.items() if self._sent.get(one) is report}  # none newer was sent
        for one in still:
            del self._sent[one]
        error = done.exception()
        if error is not None:
            self._waiting.met(error)
            self._pending = still | self._pending
            self._wait(self._pending)
            return
        self._waiting.over()
        answers = dict(zip(tried, done.result().responses, strict=True))
        again = {
            one: report for one, report in still.items() if _failed(answers.get(one)) and self._stands(one, report)
        }
        if again:
            self._pending = again | self._pending
            self._schedule(STATUS_TICK_S)
        for key, check in batch:
            if (key, check) not in self._pending:
                self._doubts.written(key, check)

    def _wait(self, pending: Pending) -> None:
        """Nothing can be written now: what it is about is to be known here all the same."""
        for (key, check), report in pending.items():
            self._doubts.unwritable(key, report.create_revision, check, report.verdict)
        self._schedule(_RETRY_S)

    def _stands(self, one: Name, report: Reported) -> bool:
        """Whether what was found is still of what is registered."""
        key, check = one
        entry = self._catalogue.find(*key)
        return (
            entry is not None
            and not entry.stale
            and entry.registered.create_revision == report.create_revision
            and _looked_at(entry, check) == report.looked_at
        )

    def _writes(self, batch: Pending) -> dict[Name, Txn]:
        writes: dict[Name, Txn] = {}
        for (key, check), report in batch.items():
            entry = self._catalogue.find(*key)
            if entry is None or not self._stands((key, check), report):
                continue
            verdict = report.verdict
            standing = keys.registered(entry.registered.service, *key)
            same = (
                Compare(standing, "create", "=", report.create_revision),
                Compare(standing, "lease", "=", entry.lease),
            )
            written = keys.check(*key, check)
            if verdict.status == "passing" and not isinstance(report.looked_at, Check):
                writes[key, check] = Txn(same, (Delete(written),))  # a verdict of the registry's own, and it is over
            else:
                record = CheckRecord(verdict.status, verdict.output)
                writes[key, check] = Txn(same, (Put(written, wire.encode(record), entry.lease),))
        return writes


def _looked_at(entry: Entry, check: str) -> Check | tuple[str, int]:
    one = entry.registered
    return next((own for own in one.checks if own.name == check), (one.address, one.port))


def _failed(answer: object) -> bool:
    return isinstance(answer, TxnResult) and not answer.succeeded
