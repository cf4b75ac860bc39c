"""From verdicts to keys: what the prober found is gathered for a moment and written in one transaction.

Each status is written only if the very registration it was probed for still stands, so a late probe brings nothing
back to life; the others in the same transaction are not touched by that.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import Final

from homeport.client.core import wire
from homeport.client.core.errors import HomeportError, RequestError
from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.health import Verdict
from homeport.registry.core.limits import STATUS_TICK_S
from homeport.registry.core.txn import Compare, Delete, Put, Txn
from homeport.registry.doubts import Doubts
from homeport.registry.store.contract import Store
from homeport.registry.trouble import Trouble

_log = logging.getLogger("homeport.registry.health")

_BATCH: Final = 100  # statuses in one transaction: some 30 KB with usual outputs
_RETRY_S: Final = 1.0  # when a store that could not write is tried again


# By instance and check: the create revision of the registration that was probed, and what was found.
Pending = dict[tuple[InstanceKey, str], tuple[int, Verdict]]


class StatusWriter:
    """Writes verdicts to the store; the newest of a check wins."""

    def __init__(self, store: Store, catalogue: Catalogue, doubts: Doubts) -> None:
        self._store = store
        self._catalogue = catalogue
        self._doubts = doubts
        self._pending: Pending = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._waiting = Trouble(_log, "statuses wait to be written")
        self._most = _BATCH  # statuses of the next transaction

    def report(self, key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        """Write this status soon, at once if the instance refused a connection."""
        if verdict.status == "critical" and self._doubts.forget(key):
            return  # it was kept without its lease, and there is nothing to write to
        self._pending[key, check] = (create_revision, verdict)
        self._schedule(0.0 if verdict.refused else STATUS_TICK_S)

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
            try:
                written = self._store.commit(Txn(then=tuple(self._writes(batch))), ops_max=4 * _BATCH)
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
            written.add_done_callback(lambda done, batch=batch: self._written(done, batch))  # type: ignore[misc]  # mypy cannot infer a lambda's default
            for key, report in batch.items():
                if self._pending.get(key) is report:  # else the very revision brought a newer one, of an alias
                    del self._pending[key]

    def _written(self, done: asyncio.Future[object], batch: Pending) -> None:
        if self._closed:
            return
        error = None if done.cancelled() else done.exception()
        if error is None:
            self._waiting.over()
            for key, check in batch:
                if (key, check) not in self._pending:
                    self._doubts.written(key, check)
            return
        self._waiting.met(error)
        self._pending = batch | self._pending
        self._wait(self._pending)

    def _wait(self, pending: Pending) -> None:
        """Nothing can be written now: what it is about is to be known here all the same."""
        for (key, check), (create_revision, verdict) in pending.items():
            self._doubts.unwritable(key, create_revision, check, verdict)
        self._schedule(_RETRY_S)

    def _writes(self, batch: Pending) -> list[Txn]:
        writes = []
        for (key, check), (create_revision, verdict) in batch.items():
            entry = self._catalogue.find(*key)
            if entry is None or entry.registered.create_revision != create_revision:
                continue
            standing = keys.registered(entry.registered.service, *key)
            same = (
                Compare(standing, "create", "=", create_revision),
                Compare(standing, "lease", "=", entry.lease),
            )
            written = keys.check(*key, check)
            if verdict.status == "passing" and all(check != own.name for own in entry.registered.checks):
                writes.append(Txn(same, (Delete(written),)))  # a verdict of the registry's own, and it is over
            else:
                record = CheckRecord(verdict.status, verdict.output)
                writes.append(Txn(same, (Put(written, wire.encode(record), entry.lease),)))
        return writes
