"""Whether everything has come right: said once faults have stopped and time has passed, by what still differs.

The registry's store is the truth of services: every replica's catalogue is what a fresh one makes of it, every
follower knows what the catalogue says, and everyone who lives and means to be there is.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.client.core.model import Instance, InstanceKey
from homeport.client.core.resolver import HOLD_S
from homeport.mesh.simulation.callers import CallerParty
from homeport.mesh.simulation.keys import WatcherParty
from homeport.mesh.simulation.registries import RegistryParty
from homeport.mesh.simulation.world import World
from homeport.registry.core.catalogue import Catalogue

CALM_S_MAX: Final = HOLD_S + 60.0  # a set that is held back is let go after HOLD_S


def differences(world: World) -> list[str]:
    """What still differs, in words; empty if everything has come right."""
    found: list[str] = []
    for party in world.registries:
        found += _of_registry(party)
    if found:
        return found
    found += _of_replicas(world)
    registry = world.registries[0].registry
    assert registry is not None
    catalogue = registry.catalogue
    for service, wanted in world.wanted().items():
        truth = _instances(catalogue, service)
        there = {id_ for (_, id_), instance in truth.items() if instance.available}
        if there != wanted:
            found.append(f"{service}: {sorted(there)} are available, {sorted(wanted)} should be")
        for follower in world.running(CallerParty):
            assert isinstance(follower, CallerParty)
            found += _of_follower(follower, service, truth)
    for watcher in world.parties.values():
        if isinstance(watcher, WatcherParty) and (missing := watcher.following.missing()):
            found.append(f"{watcher.name} has not got {missing[:5]}")
    return found


def _of_registry(party: RegistryParty) -> list[str]:
    registry = party.registry
    if not party.runs or registry is None or not party.ready.is_set():
        return [f"{party.name} does not run"]
    store = registry.store
    if store.read_only is not None:
        return [f"{party.name} is read-only: {store.read_only}"]
    fresh = Catalogue()
    fresh.load(store.mvcc)
    found = []
    for name in sorted({*registry.catalogue.services, *fresh.services}):
        mine, other = _instances(registry.catalogue, name), _instances(fresh, name)
        if mine != other and not any(one.mark for one in mine.values()):
            found.append(f"{party.name}: its catalogue of {name} is {_brief(mine)}, its store says {_brief(other)}")
        if any(one.mark for one in mine.values()):
            found.append(f"{party.name}: {name} is still marked: {_brief(mine)}")
    return found


def _of_replicas(world: World) -> list[str]:
    hashes = set()
    for party in world.registries:
        assert party.registry is not None
        mvcc = party.registry.store.mvcc
        hashes.add((mvcc.revision, mvcc.hash()))
    return [f"replicas differ: {sorted(hashes)}"] if len(hashes) > 1 else []


def _of_follower(follower: CallerParty, service: str, truth: dict[InstanceKey, Instance]) -> list[str]:
    following = follower.followings().get(service)
    if following is None:
        return []
    known = {key: _told(instance) for key, instance in following.instances.items()}
    found = []
    if known != truth:
        found.append(f"{follower.name} knows {_brief(known)} of {service}, and there are {_brief(truth)}")
    outbound = follower.sidecar.outbound if follower.sidecar is not None else None
    cluster = outbound.clusters.get(service) if outbound is not None else None
    if cluster is not None and set(cluster.endpoints) != set(known):
        found.append(f"{follower.name} sends to {sorted(cluster.endpoints)}, and knows {sorted(known)}")
    return found


def _instances(catalogue: Catalogue, service: str) -> dict[InstanceKey, Instance]:
    one = catalogue.services.get(service)
    return {each.key: _told(each) for each in one.instances(passing=False)} if one is not None else {}


def _told(instance: Instance) -> Instance:
    """An instance but for the revision of its last change, of which nobody is told when nothing can be seen of it."""
    return msgspec.structs.replace(instance, mod_revision=0)


def _brief(instances: dict[InstanceKey, Instance]) -> list[str]:
    return [f"{one.id} {one.status} {one.state} {one.mark}".strip() for one in instances.values()]
