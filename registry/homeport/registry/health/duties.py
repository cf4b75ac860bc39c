"""Which checks run here: those of what this registry is in charge of, among its replicas, as both come and go.

Told of what was touched, of leases that have another owner, of replicas that came or went and of connections that
broke, this has the scheduler follow an instance or let go of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Entry
from homeport.registry.core.locality import host_of, is_local
from homeport.registry.health.aliases import Aliases
from homeport.registry.health.scheduler import Scheduler
from homeport.registry.peers import Peer
from homeport.registry.statuses import StatusWriter
from homeport.registry.store.contract import Store
from homeport.registry.turns import InTurns

_SHARED_OUT_AT_ONCE: Final = 500  # instances and nodes in one turn of the loop: some 5 ms with five replicas
_LOST_S: Final = 5.0  # how long the replica whose connection to an instance broke looks at it beside the one in charge


class Duties:
    """Keeps the scheduler at what is this registry's to look at."""

    def __init__(self, store: Store, catalogue: Catalogue, scheduler: Scheduler, statuses: StatusWriter) -> None:
        self._store = store
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._statuses = statuses
        self._aliases = Aliases(catalogue, self.in_charge, statuses.report)
        self._sharing_out = InTurns(self._hand_over_one, _SHARED_OUT_AT_ONCE)

    def start(self) -> None:
        """Hear from now on when replicas come or go."""
        self._store.listen_charges(self._share_out)

    def stop(self) -> None:
        """Share nothing out any more."""
        self._sharing_out.stop()

    def look_again(self, concerned: Iterable[InstanceKey]) -> None:
        """What no revision says made these look different: their aliases are to hear of that."""
        for key in concerned:
            if self._catalogue.find(*key) is None:  # it was kept for a while, and is no more
                self._scheduler.remove(key)
        self._aliases.touched(concerned)

    def look_after(self) -> None:
        """Have the checks of what a revision touched run, instances and nodes, even if none looks different now.

        Who runs a check is to know what is written of it, by whomever: another replica whose connection to an
        instance broke writes of it too, and a registration takes back what was written before.
        """
        for key in self._catalogue.touched.keys:
            self._look_at(key)
        self._aliases.touched(self._catalogue.touched.keys)

    def _look_at(self, key: InstanceKey) -> None:
        """Run the checks of an instance or a node here, if that is this replica's to do."""
        entry = self._catalogue.find(*key)
        if entry is not None and entry.stale and is_local(entry.registered):
            return  # its lease is gone, and with it who owned it: whoever has looked at it so far goes on
        if entry is not None and self.in_charge(entry):
            self._scheduler.put(entry.seen if key[1] else entry.registered, self._catalogue.checks.verdicts(key))
            return
        self._scheduler.remove(key)
        if entry is not None:
            for check in entry.registered.checks:
                self._statuses.forget(key, check.name)

    def in_charge(self, entry: Entry) -> bool:
        name = keys.checks_of(*entry.registered.key)
        return self._store.in_charge(name, entry.lease, is_local(entry.registered), host_of(entry.registered))

    def _share_out(self) -> None:
        """Replicas came or went: the checks are shared out anew, however many there are, without holding up the loop.

        What comes or changes meanwhile is looked at when it does, by the same rule.
        """
        self._sharing_out.begin(self._everything())

    def _everything(self) -> Iterator[InstanceKey]:
        for name in tuple(self._catalogue.services):
            service = self._catalogue.services.get(name)
            if service is not None:
                yield from tuple(service.entries)
        for node in tuple(self._catalogue.nodes):
            yield (node, "")

    def moved(self, lease: int) -> None:
        """A lease may have another owner now, who looks after what is local to it."""
        standing = [key for key in self._store.mvcc.keys_on(lease) if key.startswith(keys.INSTANCES)]
        self._hand_over([(node, id_) for _, node, id_ in map(keys.split, standing)])

    def _hand_over(self, concerned: list[InstanceKey]) -> None:
        for key in concerned:
            self._look_at(key)
        self._aliases.touched(concerned)

    def _hand_over_one(self, key: InstanceKey) -> None:
        self._hand_over([key])

    def peer_lost(self, peer: Peer) -> None:
        """The connection that registered instances broke: find out at once how they are."""
        for key, lease in peer.registered.items():
            entry = self._catalogue.find(*key)
            if entry is not None and entry.lease == lease and not self.is_elsewhere(entry):
                self._scheduler.put(entry.seen, self._catalogue.checks.verdicts(key))  # whoever else is in charge of it
                self._scheduler.probe_now(key)
                if not self.in_charge(entry):
                    asyncio.get_running_loop().call_later(_LOST_S, self._look_at, key)

    def is_elsewhere(self, entry: Entry) -> bool:
        """Whether only those on another machine can look at it."""
        return host_of(entry.registered) not in ("", self._store.host)
