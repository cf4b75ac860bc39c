"""What this registry shows although no revision says it: the overlay of a read-only store, and stale instances.

Decided in `core/unwritten.py` and `core/mass_expiry.py`; here the store's leases and the checks' verdicts are brought
to them, and what they say to the catalogue and its followers, over any store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from homeport.client.core.model import InstanceKey, ServiceEvent
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Entry
from homeport.registry.core.health import Verdict
from homeport.registry.core.leases import TICK_S
from homeport.registry.core.mass_expiry import MassExpiry
from homeport.registry.core.txn import Change
from homeport.registry.core.unwritten import Unwritten
from homeport.registry.store.contract import Store

_log = logging.getLogger("homeport.registry")


class Doubts:
    """Listens to the store's leases; told of verdicts by who writes them.

    Args:
        publish: takes the events of what looks different.
        guard: whether to keep instances whose leases end all together.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        publish: Callable[[list[ServiceEvent]], None],
        *,
        now: Callable[[], float],
        guard: bool,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._publish = publish
        self._now = now
        self._unwritten = Unwritten()
        self._guard = MassExpiry() if guard else None
        self._timer: asyncio.TimerHandle | None = None
        self._kept: list[Entry] = []  # those that are kept, or will be when their keys go
        self._closed = False

    def start(self) -> None:
        """Listen to the store; to its revisions after the catalogue does."""
        self._store.listen_leases(self)
        self._store.listen(self._revision)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- leases -------------------------------------------------------------------------------------------------

    def ending(self, leases: Sequence[int], more: int, at: float, since: float, /) -> None:
        if self._guard is None:
            return
        now = self._now()
        happened = self._guard.happened
        kept = self._guard.ending(at, since, self._entries_on(leases), more, self._catalogue.leased)
        if not kept:
            return
        if self._guard.happened > happened:  # else more of the same
            _log.error("the leases of %d instances and more end at once: kept as stale for one more TTL", len(kept))
        gone = [one.registered.key for one in kept if self._catalogue.keep(one, now + one.registered.ttl_s)]
        self._tell(self._catalogue.look_again(gone))
        self._kept += [one for one in kept if one.kept_until]
        self._wait()

    def overdue(self, leases: Sequence[int], /) -> None:
        concerned: list[InstanceKey] = []
        for lease in leases:
            concerned += self._unwritten.lapse(lease, self._store.mvcc.keys_on(lease))
        self._lay(concerned)

    def renewed(self, lease: int, /) -> None:
        self._lay(self._unwritten.settle(lease))

    def _revision(self, _revision: int, changes: tuple[Change, ...]) -> None:
        """What the overlay said of a lease is dropped when the store says it."""
        if self._unwritten.lapsed:
            for change in changes:
                if change.kv is None and change.key.startswith(keys.LEASES):
                    self._lay(self._unwritten.settle(keys.lease_number(change.key)))

    def _entries_on(self, leases: Iterable[int]) -> list[Entry]:
        found = []
        for lease in leases:
            for key in self._store.mvcc.keys_on(lease):
                if key.startswith(keys.INSTANCES):
                    _, node, id_ = keys.split(key)
                    entry = self._catalogue.find(node, id_)
                    if entry is not None and entry.lease == lease:
                        found.append(entry)
        return found

    # --- verdicts -----------------------------------------------------------------------------------------------

    def unwritable(self, key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        """A verdict cannot be written now; it will be tried again."""
        if self._unwritten.verdict(key, create_revision, check, verdict):
            self._lay([key])

    def written(self, key: InstanceKey, check: str) -> None:
        """A verdict is written, or concerns nobody any more."""
        if self._unwritten.forget(key, check):
            self._lay([key])

    # --- stale instances ----------------------------------------------------------------------------------------

    def forget(self, key: InstanceKey) -> bool:
        """Let go of an instance that was only kept, here and at all replicas; return whether it was."""
        if key not in self._catalogue.stale:
            return False
        self.let_go(*key)
        self._store.let_go(*key)
        return True

    def let_go(self, node: str, id: str, /) -> None:  # noqa: A002 - the field's name everywhere else
        self._tell(self._catalogue.drop_stale(((node, id),)))

    def _wait(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        catalogue = self._catalogue
        found = ((key, catalogue.find(*key)) for key in catalogue.stale)
        over = [key for key, entry in found if entry is not None and now >= entry.kept_until]
        if over:
            self._tell(catalogue.drop_stale(over))
        for one in self._kept:
            if now >= one.kept_until:
                one.kept_until = 0.0  # if it stands its end was not written, and the next is an end like any other
        self._kept = [one for one in self._kept if one.kept_until]
        if self._kept or catalogue.stale:
            self._wait()

    # --- what follows from it -----------------------------------------------------------------------------------

    def _lay(self, concerned: list[InstanceKey]) -> None:
        if not concerned:
            return
        for key in concerned:
            entry = self._catalogue.find(*key)
            if entry is not None:
                self._catalogue.checks.lay_over(key, self._unwritten.records(key, entry.registered.create_revision))
        self._tell(self._catalogue.look_again(concerned))

    def _tell(self, events: list[ServiceEvent]) -> None:
        if events:
            self._publish(events)

    def numbers(self) -> dict[str, int]:
        return {
            "instances_unwritten": len(self._unwritten),
            "instances_stale": len(self._catalogue.stale),
            "mass_expiries": self._guard.happened if self._guard is not None else 0,
        }
