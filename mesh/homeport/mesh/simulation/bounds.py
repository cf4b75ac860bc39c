"""What may not grow: looked at once a second of virtual time, in every registry and client that runs.

Each bound is the product's own constant, not a copy of its number, so that a change of it is one change.
"""

from __future__ import annotations

from typing import Final

from homeport.client.kv import _QUEUE_MAX, _KeyWatch
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.callers import CallerParty
from homeport.mesh.simulation.keys import WatcherParty
from homeport.mesh.simulation.registries import RegistryParty
from homeport.mesh.simulation.world import World
from homeport.registry.core.limits import (
    CONNECTION_CALLS_MAX,
    CONNECTION_OUT_BYTES_MAX,
    HISTORY_REVISIONS_MAX,
    WATCH_BUFFER_BATCHES,
)
from homeport.sidecar.core.limits import ACTIVE_MAX

TASKS_MAX: Final = 3_000  # of a whole run: some 400 are ordinary; without an end they would be a leak
TASKS_STEPS: Final = 5_000  # callbacks between two counts of them
STREAMS_MAX: Final = 1_000  # ends of connections: some 100 are ordinary
FRAME_BYTES: Final = 2 * 1024 * 1024  # what may come on top of a connection's bound: the frame that reaches it


def look(world: World) -> None:
    """Hold everything that runs to its bounds now."""
    for registry in world.registries:
        if registry.runs and registry.ready.is_set():
            _look_at(world, registry)
    if world.loop.steps - world.tasks_counted_at > TASKS_STEPS:  # counting them is slow
        world.tasks_counted_at = world.loop.steps
        _expect(world, "tasks", len(world.loop.pending_tasks()), TASKS_MAX)
    _expect(world, "ends of connections", len(world.network.streams), STREAMS_MAX)
    for party in world.running(CallerParty):
        assert isinstance(party, CallerParty)
        outbound = party.sidecar.outbound if party.sidecar is not None else None
        for cluster in outbound.clusters.values() if outbound is not None else ():
            for endpoint in cluster.endpoints.values():
                _expect(world, f"{party.name}: requests at one endpoint", endpoint.active, ACTIVE_MAX)
    for party in world.running(WatcherParty):
        assert isinstance(party, WatcherParty)
        for watch in party.client.watches._open.values() if party.client is not None else ():
            assert isinstance(watch, _KeyWatch)  # it watches nothing else
            _expect(world, f"{party.name}: revisions not read yet", len(watch._events), _QUEUE_MAX)


def _look_at(world: World, party: RegistryParty) -> None:
    registry = party.registry
    assert registry is not None
    numbers = registry.store.numbers()
    _expect(world, f"{party.name}: revisions of history", numbers["history_revisions"], HISTORY_REVISIONS_MAX)
    waiting = numbers.get("journal_waiting", 0) + numbers.get("etcd_waiting", 0)
    connections = registry._rpc.connections
    leases = numbers["leases"]
    _expect(world, f"{party.name}: waiting writes", waiting, CONNECTION_CALLS_MAX * len(connections) + leases + 64)
    for connection in connections:
        most = CONNECTION_OUT_BYTES_MAX + FRAME_BYTES
        transport = connection._transport
        unsent = connection._out_bytes + (transport.get_write_buffer_size() if transport is not None else 0)
        _expect(world, f"{party.name}: unsent bytes of a connection", unsent, most)
    for group in registry.store._hub._groups.values():
        for watcher in group.watchers:
            _expect(world, f"{party.name}: buffer of a watch", len(watcher._buffer), WATCH_BUFFER_BATCHES)


def _expect(world: World, what: str, found: int, most: int) -> None:
    if found > most:
        world.trace.broken(guarantees.BOUNDED, f"{what}: {found}, at most {most}")
