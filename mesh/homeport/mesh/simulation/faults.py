"""What goes wrong: processes that die and stand still, links, disks and etcd. Each fault ends by itself.

A fault is a function of the world and its step; it notes whom it disturbs, since what is promised to whom depends on
that, and returns when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from homeport.mesh.simulation.disk import Call, Fault
from homeport.mesh.simulation.instances import InstanceParty
from homeport.mesh.simulation.keys import WatcherParty
from homeport.mesh.simulation.registries import RegistryParty
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import Party, World
from homeport.mesh.testing.network import LATENCY_S
from homeport.mesh.testing.pairs import ANY

SLOW_DISK_S: Final = (0.01, 0.2)  # of a job's start, and of its end
START_S: Final = 2.0  # that a registry needs at most to be there again after its start


def _party(world: World, name: str) -> Party | None:
    found = world.parties.get(name)
    return found if found is not None and found.runs else None


async def crash(world: World, step: Step) -> None:
    """A process dies, and is started again after a while; an instance stays dead without a time."""
    party = _party(world, step.who)
    if party is None:
        return
    down = world.disturb("down", party.name)
    if step.what == "power" and isinstance(party, RegistryParty):
        party.cut_power()
    else:
        party.crash()
    if isinstance(party, InstanceParty):
        world.trace.count("instance killed")
        if not step.for_s:
            return
    await asyncio.sleep(step.for_s)
    party.start()
    if isinstance(party, RegistryParty):
        await asyncio.wait([asyncio.ensure_future(party.ready.wait())], timeout=START_S)
    down.end = world.now()


async def pause(world: World, step: Step) -> None:
    """A process stands still; what was sent to it waits, and what it was waiting for is late."""
    party = _party(world, step.who)
    if party is None:
        return
    if isinstance(party, RegistryParty):
        world.trace.count("registry stood still")
    host = world.network.host_at(party.address)
    if host.frozen:
        return
    with world.disturbing("pause", party.name):
        world.loop.freeze(host)
        await asyncio.sleep(step.for_s)
        if not host.crashed:
            world.loop.thaw(host)


async def partition(world: World, step: Step) -> None:
    """Nothing gets through between two parties, or from one to the other, or between one and everybody."""
    a = world.parties[step.who]
    b = world.parties[step.whom].address if step.whom else ANY
    with world.disturbing("partition", a.name, *([step.whom] if step.whom else [])):
        world.network.partition(a.address, b, one_way=step.what == "one way")
        await asyncio.sleep(step.for_s)
        world.network.heal(a.address, b)


async def cut(world: World, step: Step) -> None:
    """Connections between two parties are reset, and new ones refused."""
    a, b = world.parties[step.who], world.parties[step.whom]
    with world.disturbing("cut", a.name, b.name):
        world.network.cut(a.address, b.address)
        await asyncio.sleep(step.for_s)
        world.network.heal(a.address, b.address)


async def tear(world: World, step: Step) -> None:
    """The next bytes that a party sends on each of its connections are cut off after so many, by a reset."""
    party = world.parties[step.who]
    with world.disturbing("tear", *world.parties):  # whoever it is connected to
        for stream in [one for one in world.network.streams if one.host.address == party.address]:
            stream.tear_after(step.count)
        await asyncio.sleep(0.0)
    world.trace.count("connection broken in a frame")


async def slow_link(world: World, step: Step) -> None:
    """Everything between two parties takes long."""
    a, b = world.parties[step.who], world.parties[step.whom]
    with world.disturbing("slow link", a.name, b.name):
        links = (world.network.link(a.address, b.address), world.network.link(b.address, a.address))
        for link in links:
            link.latency_s = (0.02, 0.4)
        await asyncio.sleep(step.for_s)
        for link in links:
            link.latency_s = LATENCY_S


async def stall(world: World, step: Step) -> None:
    """The connections of a party hold their bytes: open at both ends, and silent."""
    party = world.parties[step.who]
    with world.disturbing("stall", *world.parties):
        streams = [one for one in world.network.streams if one.host.address == party.address]
        for stream in streams:
            world.network.stall(stream)
        await asyncio.sleep(step.for_s)
        for stream in streams:
            world.network.heal(stream)


async def disk(world: World, step: Step) -> None:
    """A registry's disk fails: full, broken for some calls, or slow."""
    party = world.parties[step.who]
    assert isinstance(party, RegistryParty)
    failing, life = party.disk, party.lives
    if failing is None:
        return
    with world.disturbing("disk", party.name):
        if step.what == "slow":
            host = world.network.host_at(party.address)
            host.job_delay_s = SLOW_DISK_S
            await asyncio.sleep(step.for_s)
            host.job_delay_s = None
            return
        calls: frozenset[Call] = frozenset(("write", "truncate") if step.what == "full" else (_CALLS[step.what],))
        error = "full" if step.what == "full" else "io"
        failing.fault = fault = Fault(calls, error=error, short=step.count % 2 == 1, skip=step.count)  # type: ignore[arg-type]
        await asyncio.sleep(step.for_s)
        if fault.hits and step.what == "full":
            world.trace.count("disk full")
        if failing.fault is fault:
            failing.fault = None
    if fault.hits and party.lives == life:
        world.trace.count("rollback")


_CALLS: Final[dict[str, Call]] = {"write": "write", "sync": "sync", "read": "read"}


async def etcd(world: World, step: Step) -> None:
    """A replica does not reach etcd, or gets no answers, or etcd forgets its history."""
    party = world.parties[step.who]
    assert isinstance(party, RegistryParty)
    link = party.link
    if link is None:
        return
    if step.what == "compact":
        world.etcd.compact()
        return
    with world.disturbing("etcd", party.name):
        if step.what == "lose":
            link.lose_answers = step.count
            world.trace.count("answer of etcd lost")
            await asyncio.sleep(step.for_s)
            link.lose_answers = 0
            return
        world.trace.count("replica lost etcd")
        link.fail(True)
        await asyncio.sleep(step.for_s)
        link.fail(False)


async def compact(world: World, step: Step) -> None:
    """A registry forgets all history but the last revisions, as it does by itself when there is much."""
    party = _party(world, step.who)
    if not isinstance(party, RegistryParty) or not party.ready.is_set() or party.registry is None:
        return
    store = party.registry.store
    revision = store.mvcc.revision - step.count
    if store.read_only is None and revision > store.mvcc.compact_revision:
        store.compact(revision)
        history = world.histories.get(store.store_id)
        history.compacted = max(history.compacted, revision)
        world.trace.note(f"{party.name} forgot what was before {revision}")


async def deafen(world: World, step: Step) -> None:
    """A watcher is away while much is written, and its registry forgets that meanwhile."""
    watcher = world.parties[step.who]
    assert isinstance(watcher, WatcherParty)
    with world.disturbing("partition", watcher.name):
        world.network.cut(watcher.address)
        await asyncio.sleep(step.for_s)
        for registry in world.registries:
            await compact(world, Step(step.at, "compact", registry.name, count=1))
        world.network.heal(watcher.address)


FAULTS: Final[dict[str, Callable[[World, Step], Awaitable[None]]]] = {
    "crash": crash,
    "pause": pause,
    "partition": partition,
    "cut": cut,
    "tear": tear,
    "slow link": slow_link,
    "stall": stall,
    "disk": disk,
    "etcd": etcd,
    "compact": compact,
    "deafen": deafen,
}
