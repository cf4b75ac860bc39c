"""One run: a scenario is set up, played, calmed, and held to every guarantee.

    result = run(generate(7))
    assert not result.violations, result.trace

The course: everyone starts; the steps are played, each a task of its own; all faults are ended and the dead started
again; the run goes on until every cache has converged, or has had its time. What is checked all along is checked by
who sees it (see `guarantees.py`), the rest at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeport.mesh.simulation import bounds, guarantees
from homeport.mesh.simulation.actions import ACTIONS, ON_HOST
from homeport.mesh.simulation.callers import CallerParty
from homeport.mesh.simulation.convergence import CALM_S_MAX, differences
from homeport.mesh.simulation.coverage import UNDECIDED
from homeport.mesh.simulation.instances import FleetParty, InstanceParty
from homeport.mesh.simulation.keys import WatcherParty, WriterParty
from homeport.mesh.simulation.linearizability import Undecided, check
from homeport.mesh.simulation.lockers import LockerParty
from homeport.mesh.simulation.registries import RegistryParty
from homeport.mesh.simulation.scenario import Scenario, Step
from homeport.mesh.simulation.trace import LINES_MAX, OutOfHand, Trace, Violation
from homeport.mesh.simulation.world import Party, World
from homeport.mesh.testing.errors import DeadlockError, LeftBehindError, StepLimitError
from homeport.mesh.testing.running import run_virtual
from homeport.mesh.testing.virtual import running_loop

START_S: Final = 2.0  # for everyone to be there before the first step
LOOK_S: Final = 1.0  # between two looks at what is bounded, and at what has converged
CALM_S: Final = 4.0  # before the first look whether all has converged: leases end, clients come back
ENDS_S: Final = 60.0  # for calls under way when faults end: more than any of their timeouts
WORKS_S_MAX: Final = 30.0  # until everybody can do again what it is there for
STEPS_MAX: Final = 2_000_000  # callbacks: a hundred times an ordinary run
SEARCH_MAX: Final = 300_000  # steps of the search for one key's order; an undecided history is no failure
MEMORY: Final = Path("/dev/shm")  # where there is such a thing, disks of the simulation need no real one


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    scenario: Scenario
    hash: str
    violations: tuple[Violation, ...]
    events: Counter[str]
    simulated_s: float
    steps: int
    trace: tuple[str, ...]


def run(scenario: Scenario) -> Result:
    """Play a scenario in a directory of its own, which is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="homeport-simulation-", dir=MEMORY if MEMORY.is_dir() else None))
    collecting = gc.isenabled()
    gc.disable()  # or finalizers would run at moments that no seed decides
    game = _Game(scenario, directory)
    try:
        with _defects_heard(game):
            run_virtual(game.play(), seed=scenario.seed, steps_max=STEPS_MAX)
    except (LeftBehindError, StepLimitError, DeadlockError, OutOfHand) as error:
        game.ended_badly(error)
    finally:
        game.bury()
        shutil.rmtree(directory, ignore_errors=True)
        if collecting:
            gc.enable()
    trace = game.trace
    return Result(
        scenario,
        trace.hash(),
        tuple(trace.violations),
        trace.events,
        game.simulated_s,
        game.steps,
        tuple(trace.lines),
    )


class _Heard(logging.Handler):
    """What the product logs with an error that it did not expect."""

    def __init__(self, game: _Game) -> None:
        super().__init__(logging.WARNING)
        self._game = game

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            said = self.formatter or logging.Formatter()
            self._game.broken(guarantees.SOUND, f"{record.getMessage()}: {said.formatException(record.exc_info)}")


@contextlib.contextmanager
def _defects_heard(game: _Game) -> Iterator[None]:
    log = logging.getLogger("homeport")
    handler, propagate, level = _Heard(game), log.propagate, log.level
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
        log.setLevel(level)


class _Game:
    """One scenario being played."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self._directory = directory
        self._world: World | None = None
        self.simulated_s = 0.0
        self.steps = 0
        self.trace = Trace(lambda: self._world.now() if self._world is not None else 0.0)

    def broken(self, guarantee: str, what: str) -> None:
        self.trace.broken(guarantee, what)

    def ended_badly(self, error: Exception) -> None:
        """The loop itself says that something is wrong, maybe only when all is over."""
        self.trace.over = False
        self.trace.lines = self.trace.lines[-LINES_MAX // 2 :]
        self.broken(guarantees.SOUND, f"{type(error).__name__}: {error}")

    def bury(self) -> None:
        if self._world is not None:
            for registry in self._world.registries:
                registry.bury()

    async def play(self) -> None:
        loop = running_loop()
        world = self._world = World(self.scenario, loop, self._directory, self.trace)
        _gather(world)
        for party in list(world.parties.values()):
            party.start()
        await asyncio.sleep(START_S)
        looking = loop.create_task(_look(world), name="bounds")
        await _steps(world)
        await _calm(world)
        if not self.trace.violations:
            await _converge(world)
        looking.cancel()
        _final(world)
        self.trace.note(f"the end, after {loop.steps} callbacks, {loop.rng.random()}")
        self.simulated_s, self.steps = world.now(), loop.steps
        self.trace.over = True
        for party in world.parties.values():
            party.crash()


def _gather(world: World) -> None:
    """Everybody who is there from the beginning."""
    scenario = world.scenario
    for number in range(scenario.registries):
        registry = RegistryParty(world, f"r{number + 1}")
        world.registries.append(registry)
        world.parties[registry.name] = registry
    for service, count in scenario.instances.items():
        for number in range(count):
            name = f"{service}#{number + 1}"
            world.parties[name] = InstanceParty(world, name)
    kinds: tuple[tuple[str, int, Callable[[World, str], Party]], ...] = (
        ("caller", scenario.callers, CallerParty),
        ("writer", scenario.writers, WriterParty),
        ("watcher", scenario.watchers, WatcherParty),
        ("locker", scenario.lockers, LockerParty),
    )
    for kind, count, make in kinds:
        for number in range(count):
            name = f"{kind}{number + 1}"
            world.parties[name] = make(world, name)
    if scenario.fleet:
        world.parties["fleet"] = FleetParty(world, scenario.fleet)


async def _look(world: World) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        bounds.look(world)
        world.leases.look(world.now())
        _look_at_guards(world)


def _look_at_guards(world: World) -> None:
    """Whether a guard keeps instances that are gone, which is no fault, and changes what may be expected."""
    for registry in world.registries:
        if registry.keeps_stale():
            world.trace.count("mass-expiry guard")
            world.disturb("guard", registry.name, for_s=LOOK_S)
    for caller in world.running(CallerParty):
        if isinstance(caller, CallerParty) and caller.holds_back():
            world.trace.count("snapshot held back")
            world.disturb("guard", caller.name, for_s=LOOK_S)


async def _steps(world: World) -> None:
    """Play the steps, each at its time and each a task, until the last has begun and the time is over."""
    began = world.now()
    faults: list[asyncio.Task[None]] = []
    for step in world.scenario.steps:
        await asyncio.sleep(max(0.0, began + step.at - world.now()))
        if world.trace.violations:
            break
        if step.who not in world.parties and step.kind not in ("start", "deploy"):
            continue  # it was to come by a step that is left out
        world.trace.note(f"-- {step}")
        if step.kind in ON_HOST:
            party = world.parties[step.who]
            if party.runs:
                party.spawn(_work(world, step), step.kind)
        else:
            faults.append(world.loop.create_task(_work(world, step), name=f"{step.kind} {step.who}"))
    await asyncio.sleep(max(0.0, began + world.scenario.length_s - world.now()))
    if faults:
        await asyncio.wait(faults, timeout=ENDS_S)
    for fault in faults:
        fault.cancel() if not fault.done() else fault.result()


async def _work(world: World, step: Step) -> None:
    await ACTIONS[step.kind](world, step)


async def _calm(world: World) -> None:
    """End all faults, start everyone who died and is to live, and let what is under way end."""
    world.trace.note("-- calm")
    world.network.heal()
    for registry in world.registries:
        if registry.disk is not None:
            registry.disk.fault = None
        if registry.link is not None:
            registry.link.fail(False)
            registry.link.lose_answers = 0
        registry.start()
    works = [task for task, party in world.under_way.items() if not task.done() and party.runs]
    if works:
        await asyncio.wait(works, timeout=ENDS_S)
    for task, party in world.under_way.items():
        if not task.done():
            if party.runs:
                world.trace.broken(guarantees.ANSWERED, f"{task.get_name()} does not end")
        elif (error := task.exception()) is not None:
            named = guarantees.ANSWERED if isinstance(error, TimeoutError) else guarantees.SOUND
            world.trace.broken(named, f"{task.get_name()}: {error!r}")


async def _converge(world: World) -> None:
    """Let time pass until nothing differs any more."""
    await asyncio.sleep(CALM_S)
    until = world.now() + CALM_S_MAX
    while (found := differences(world)) and not world.trace.violations:
        if world.now() >= until:
            for difference in found:
                world.trace.broken(guarantees.CONVERGED, difference)
            return
        await asyncio.sleep(LOOK_S)
    await asyncio.gather(*(_work_again(world, party) for party in list(world.parties.values()) if party.runs))


async def _work_again(world: World, party: Party) -> None:
    """What a party is there for works, at once or after a few more tries: what was ejected may not be back yet."""
    until = world.now() + WORKS_S_MAX
    while wrong := await party.spawn(party.works(), "works"):
        if world.now() >= until:
            world.trace.broken(guarantees.CONVERGED, f"{party.name} {wrong}")
            return
        await asyncio.sleep(LOOK_S)


def _final(world: World) -> None:
    """What can be said only of the whole run."""
    for party in world.parties.values():
        if isinstance(party, CallerParty):
            party.count_retries()
        elif isinstance(party, RegistryParty):
            party.expect_sound()
        client = getattr(party, "client", None)
        if world.scenario.store == "etcd" and client is not None and client.link_epoch > 1:
            world.trace.count("client moved to another replica")
    if not world.forgets:
        try:
            violation = check(world.operations, SEARCH_MAX)
        except Undecided:
            world.trace.count(UNDECIDED)
        else:
            if violation is not None:
                world.trace.broken(guarantees.LINEARIZABLE, str(violation))
    for task, error in world.loop.unheard():
        world.trace.broken(guarantees.SOUND, f"{task.get_name()}: {error!r}")
