"""Deregisters instances that were critical for longer than their checks allow, as `core/reaping.py` finds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from homeport.client.core.errors import HomeportError
from homeport.client.core.messages import Deregister
from homeport.client.core.model import InstanceKey
from homeport.registry.core.entries import Entry
from homeport.registry.core.reaping import SWEEP_S, Reaper
from homeport.registry.core.txn import Change
from homeport.registry.operations import Operations
from homeport.registry.peers import NoOutlet, Peer

_log: Final = logging.getLogger("homeport.registry.health")


class Reaping:
    """Follows the store from `start` on.

    Args:
        in_charge: whether an instance is this registry's to look after, among its replicas.
    """

    def __init__(self, operations: Operations, in_charge: Callable[[Entry], bool], *, now: Callable[[], float]) -> None:
        self._operations = operations
        self._catalogue = operations.catalogue
        self._in_charge = in_charge
        self.now = now
        self._peer = Peer(NoOutlet())
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.reaper = Reaper(self._catalogue)

    def start(self) -> None:
        """Take in what is there; to be called after the catalogue listens, and before anything is awaited."""
        now = self.now()
        for service in self._catalogue.services.values():
            for key in service.entries:
                self.reaper.touched(key, now)
        self._operations.store.listen(self._revision)
        self._arm()

    async def close(self) -> None:
        """Stop; what is under way is finished or not, and nothing more is begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])

    def _revision(self, revision: int, _changes: tuple[Change, ...]) -> None:
        touched = self._catalogue.touched
        if touched.revision == revision:
            now = self.now()
            for key in touched.keys:
                self.reaper.touched(key, now)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        if self.reaper and (self._sweeping is None or self._sweeping.done()):
            due = self.reaper.due(self.now())
            if due:
                self._sweeping = asyncio.get_running_loop().create_task(self._reap(due), name="reap critical instances")
        self._arm()

    async def _reap(self, due: list[InstanceKey]) -> None:
        for node, id_ in due:
            await asyncio.sleep(0)  # others have their turn, however many there are to see to
            entry = self._catalogue.find(node, id_)
            if entry is None or not self._in_charge(entry) or self.reaper.left_s((node, id_), self.now()) >= 0:
                continue  # it went, or recovered meanwhile; or another replica sees to it
            try:
                await self._operations.registrations.deregister(Deregister(id_, node, entry.lease), self._peer)
                _log.info("deregistered %s on %s: critical for longer than it asked to be kept", id_, node)
            except HomeportError as error:
                _log.warning("could not deregister %s on %s, which is critical: %s", id_, node, error)
