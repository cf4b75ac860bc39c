"""Registries as parties: the real ones, over a disk or an etcd of the simulation, watched by a listener in their store.

A registry that cannot start is started again a second later, as a service manager does.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from homeport.client.core import wire
from homeport.client.core.errors import HomeportError
from homeport.client.core.model import Instance
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.disk import Disk
from homeport.mesh.simulation.etcd import ModelLink
from homeport.mesh.simulation.history import Teller
from homeport.mesh.simulation.power import PowerCut
from homeport.mesh.simulation.requests import ACTED_S
from homeport.mesh.simulation.world import Party, World
from homeport.registry import Registry
from homeport.registry.core import keys
from homeport.registry.core.txn import Change
from homeport.registry.store.contract import LeaseRecord
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd import EtcdStore

NODE: Final = "n"  # replicas are one logical agent
AGAIN_S: Final = 1.0
CHECKPOINT_PAGES: Final = 24  # of a journal's log: several in every run
ETCD_S: Final = 0.001  # one way


class SimulatedRegistry(Registry):
    """The real registry, but for where its store's bytes go."""

    def __init__(self, party: RegistryParty) -> None:
        super().__init__(node=NODE, rng=party.rng())
        self._party = party

    def _make_store(self, now: Callable[[], float], _backup: str | None) -> EmbeddedStore | EtcdStore:
        party = self._party
        store: EmbeddedStore | EtcdStore
        if party.world.scenario.store == "etcd":
            party.link = ModelLink(party.world.etcd, ETCD_S)
            store = EtcdStore(party.link, now=now, rng=self._rng)
        else:
            store = EmbeddedStore(
                now=now,
                rng=self._rng,
                data_dir=str(party.directory) if party.directory is not None else None,
                vfs=party.disk.name if party.disk is not None else None,
                checkpoint_pages=CHECKPOINT_PAGES,
            )
            party.observe_renewals(store)
        store.listen(party.revision)
        start = store.start

        async def observed() -> None:
            promised = party.world.histories.promised()
            await start()
            party.adopt(store, promised)  # nothing was awaited since, so nothing was told

        store.start = observed  # type: ignore[method-assign]
        return store


class RegistryParty(Party):
    """One registry, or replica.

    Attributes:
        disk: of this life, if it has one.
        link: its way to etcd, if it has one.
    """

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.disk: Disk | None = None
        self.directory: Path | None = None
        self.link: ModelLink | None = None
        self.registry: SimulatedRegistry | None = None
        self.teller = Teller(name)
        self.ready = asyncio.Event()
        self._old_disks: list[tuple[Disk, SimulatedRegistry | None]] = []
        self._kept: dict[str, bytes] = {}
        self._shown_at = 0  # the disk's position when a revision was last shown to anyone

    async def live(self) -> None:
        world = self.world
        self._lay_out()
        while True:
            self.teller = Teller(self.name)
            registry = self.registry = SimulatedRegistry(self)
            try:
                await registry.start()
                await registry.serve(rpc=f"{self.address}:8300", http=f"{self.address}:8500")
            except HomeportError as error:
                world.trace.note(f"{self.name} cannot start: {type(error).__name__}")
                await registry.close()
                await asyncio.sleep(AGAIN_S)
                continue
            self._has_started()
            return

    def _lay_out(self) -> None:
        """Put what the last life left on a disk of this life's own: a crashed process may still hold the old one."""
        if self.world.scenario.store != "journal":
            return
        self.directory = self.world.directory / f"{self.name}-{self.lives}"
        self.directory.mkdir()
        for path, content in self._kept.items():
            (self.directory / Path(path).name).write_bytes(content)
        self.disk = Disk()
        self.disk.adopt(str(self.directory))
        self._shown_at = self.disk.position  # what earlier lives left is there, however soon the power goes

    def _has_started(self) -> None:
        world, registry = self.world, self.registry
        assert registry is not None
        now = world.now()
        store = registry.store
        world.trace.note(f"{self.name} has started at revision {store.mvcc.revision}")
        if world.scenario.store == "memory" and self.lives > 1:
            world.forgets = True
            world.leases.forget()
            world.locks.forget()
            world.trace.count("registry restarted without memory")
        elif world.scenario.store == "journal" and self.lives > 1:
            world.trace.count("registry restarted from its disk")
        for key in store.mvcc.keys(keys.LEASES, keys.prefix_end(keys.LEASES)):
            record = store.mvcc.get(key)
            assert record is not None
            ttl_s = wire.decode(LeaseRecord, record.value).ttl_s
            if world.scenario.store == "journal":
                world.leases.restarted(keys.lease_number(key), ttl_s, now)
        self.ready.set()

    # --- what its store does ------------------------------------------------------------------------------------

    def adopt(self, store: EmbeddedStore | EtcdStore, promised: dict[str, int]) -> None:
        """It has loaded what it holds."""
        self.world.histories.started(self.teller, store.store_id, store.mvcc, promised, self.world.now())
        self._shown_at = self.disk.position if self.disk is not None else 0

    def observe_renewals(self, store: EmbeddedStore) -> None:
        renew = store.lease_renew

        def observed(lease: int) -> float:
            ttl_s = renew(lease)
            if ttl_s:
                self.world.leases.received(lease, self.world.now())
            return ttl_s

        store.lease_renew = observed  # type: ignore[method-assign]

    def revision(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision has become durable in this store: called before its views, watchers and writers hear of it."""
        world, now = self.world, self.world.now()
        assert self.registry is not None
        if self.disk is not None:
            self._shown_at = self.disk.position
        resyncs = self.registry.store.numbers().get("etcd_resyncs", 0) if world.scenario.store == "etcd" else 0
        if resyncs != self.teller.resyncs:
            world.trace.count("replica read anew")
        if not world.histories.told(self.teller, revision, changes, resyncs, now):
            return
        for change in changes:
            if change.key.startswith(keys.LEASES):
                if change.kv is None and any(other.kv is not None for other in changes):
                    world.leases.given_up(keys.lease_number(change.key))  # an end writes nothing: this is a replacement
                self._lease(change, now)
            elif change.key.startswith(keys.INSTANCES):
                self._instance(change, now)
            elif change.key.startswith(keys.SESSIONS) and change.kv is None:
                world.trace.note(f"a session has ended at revision {revision}")
                world.locks.session_ended(keys.split(change.key)[0], now)

    def _lease(self, change: Change, now: float) -> None:
        lease = keys.lease_number(change.key)
        if change.kv is not None:
            record = wire.decode(LeaseRecord, change.kv.value)
            self.world.leases.granted(lease, record.ttl_s, now)
            if change.prev is not None and self.world.scenario.store == "etcd":
                before = wire.decode(LeaseRecord, change.prev.value).owner
                if before != record.owner:
                    self._moved(before)
        elif self.world.leases.gone(lease, now) == "expired":
            self.world.trace.note(f"lease {lease:016x} has expired")
            self.world.trace.count("lease expired")

    def _moved(self, before: str) -> None:
        assert self.registry is not None
        store = self.registry.store
        assert isinstance(store, EtcdStore)
        lives = before in store.ownership._members
        self.world.trace.count("takeover of a lease" if lives else "adoption of leases")

    def _instance(self, change: Change, now: float) -> None:
        _, _, id_ = keys.split(change.key)
        requests = self.world.requests
        if change.kv is None:
            self.world.trace.note(f"{id_} is registered no more")
            requests.leaving(id_, now, now + ACTED_S, "removed")
        elif wire.decode(Instance, change.kv.value).state == "up":
            requests.returned(id_)

    # --- its ends -----------------------------------------------------------------------------------------------

    def crash(self) -> None:
        if self.runs:
            super().crash()
            self.ready.clear()
            self._leave_disk(None)

    def cut_power(self) -> None:
        """Its machine loses power: of what was written and not synced, anything may be left."""
        if self.runs:
            super().crash()
            self.ready.clear()
            self._leave_disk(PowerCut(self.disk.log, self.world.rng) if self.disk is not None else None)

    def _leave_disk(self, power: PowerCut | None) -> None:
        if self.disk is None or self.directory is None:
            return
        now = {str(path): path.read_bytes() for path in sorted(self.directory.iterdir())}
        if power is None:
            self._kept = now
        else:
            # A job runs in one moment of virtual time; the power may go in the middle of what it does, which nobody
            # has been told of yet.
            power.advance(self.world.rng.randint(self._shown_at, self.disk.position))
            self._kept = power.draw()
            self.world.trace.count("power cut")
            if self._kept != now:
                self.world.trace.count("power cut that lost writes")
        self._old_disks.append((self.disk, self.registry))
        self.disk = None

    def bury(self) -> None:
        """The run is over: close files, whose processes may have been dead for long."""
        if self.disk is not None:
            self._old_disks.append((self.disk, self.registry))
        for disk, registry in self._old_disks:
            store = getattr(registry, "store", None)
            journal = getattr(store, "_journal", None)
            if journal is not None:
                disk.fault = None
                journal.close()
            disk.unregister()
        if self.directory is not None:
            for life in self.world.directory.glob(f"{self.name}-*"):
                shutil.rmtree(life, ignore_errors=True)

    def keeps_stale(self) -> bool:
        """Whether its catalogue keeps instances whose leases ended with most others'."""
        return self.runs and self.ready.is_set() and self.registry is not None and bool(self.registry.catalogue.stale)

    def expect_sound(self) -> None:
        """Nothing in it has failed by a defect."""
        store = self.registry.store if self.registry is not None else None
        if store is not None and store.read_only is not None and "defect" in store.read_only:
            self.world.trace.broken(guarantees.SOUND, f"{self.name}: {store.read_only}")
