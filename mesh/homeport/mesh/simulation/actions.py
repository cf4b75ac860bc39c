"""The work of a run: what parties do beside each other, step by step; faults are `faults.py`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from homeport.mesh.simulation.callers import CallerParty
from homeport.mesh.simulation.faults import FAULTS
from homeport.mesh.simulation.instances import InstanceParty
from homeport.mesh.simulation.keys import WriterParty
from homeport.mesh.simulation.lockers import LockerParty
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import World

DEPLOY_S: Final = 3.0  # between a new instance's start and the end of the old one


async def call(world: World, step: Step) -> None:
    caller = world.parties[step.who]
    assert isinstance(caller, CallerParty)
    await caller.call(step)


async def key(world: World, step: Step) -> None:
    writer = world.parties[step.who]
    assert isinstance(writer, WriterParty)
    await writer.operate(step)


async def glance(world: World, step: Step) -> None:
    writer = world.parties[step.who]
    assert isinstance(writer, WriterParty)
    await writer.glance(step)


async def storm(world: World, step: Step) -> None:
    writer = world.parties[step.who]
    assert isinstance(writer, WriterParty)
    await writer.write_many(step)


async def lock(world: World, step: Step) -> None:
    locker = world.parties[step.who]
    assert isinstance(locker, LockerParty)
    await locker.lock(step)


async def fair(world: World, step: Step) -> None:
    locker = world.parties[step.who]
    assert isinstance(locker, LockerParty)
    await locker.fair(step)


async def session(world: World, step: Step) -> None:
    locker = world.parties[step.who]
    assert isinstance(locker, LockerParty)
    await locker.session(step)


async def start(world: World, step: Step) -> None:
    """An instance comes, for the first time or again."""
    party = world.parties.get(step.who)
    if party is None:
        party = world.parties[step.who] = InstanceParty(world, step.who)
    elif party.lives and not party.runs:
        world.trace.count("instance registered again")
    party.start()


async def stop(world: World, step: Step) -> None:
    """An instance leaves in good order."""
    party = world.parties.get(step.who)
    if isinstance(party, InstanceParty):
        party.stop()


async def deploy(world: World, step: Step) -> None:
    """New instances in the place of all old ones of a service, one after the other."""
    old = [one for one in world.running(InstanceParty) if isinstance(one, InstanceParty) and one.service == step.who]
    for number, party in enumerate(old):
        name = f"{step.who}#{step.what}{number}"
        if name not in world.parties:
            world.parties[name] = InstanceParty(world, name)
        world.parties[name].start()
        await asyncio.sleep(DEPLOY_S)
        if isinstance(party, InstanceParty):
            party.stop()


Action = Callable[[World, Step], Awaitable[None]]
WORK: Final[dict[str, Action]] = {
    "call": call,
    "key": key,
    "glance": glance,
    "storm": storm,
    "lock": lock,
    "fair": fair,
    "session": session,
    "start": start,
    "stop": stop,
    "deploy": deploy,
}
ACTIONS: Final[dict[str, Action]] = {**WORK, **FAULTS}
ON_HOST: Final = (
    "call",
    "key",
    "glance",
    "storm",
    "lock",
    "fair",
    "session",
)  # done by the party itself, with its host's fate
