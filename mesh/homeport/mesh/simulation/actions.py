"""The work of a run: what parties do beside each other, step by step; faults are `faults.py`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from homeport.mesh.simulation.callers import CallerParty
from homeport.mesh.simulation.faults import FAULTS
from homeport.mesh.simulation.instances import InstanceParty
from homeport.mesh.simulation.keys import WriterParty
from homeport.mesh.simulation.lockers import LockerParty
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import Party, World

DEPLOY_S: Final = 3.0  # between a new instance's start and the end of the old one


Action = Callable[[World, Step], Awaitable[None]]
P = TypeVar("P", bound=Party)


def _by(kind: type[P], act: Callable[[P, Step], Awaitable[None]]) -> Action:
    """What a party of a kind does itself."""

    async def action(world: World, step: Step) -> None:
        party = world.parties[step.who]
        assert isinstance(party, kind)
        await act(party, step)

    return action


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


ON_HOST: Final[dict[str, Action]] = {  # done by the party itself, with its host's fate
    "call": _by(CallerParty, CallerParty.call),
    "key": _by(WriterParty, WriterParty.operate),
    "glance": _by(WriterParty, WriterParty.glance),
    "storm": _by(WriterParty, WriterParty.write_many),
    "lock": _by(LockerParty, LockerParty.lock),
    "fair": _by(LockerParty, LockerParty.fair),
    "elect": _by(LockerParty, LockerParty.elect),
    "session": _by(LockerParty, LockerParty.session),
}
ACTIONS: Final[dict[str, Action]] = {**ON_HOST, "start": start, "stop": stop, "deploy": deploy, **FAULTS}
