"""The search for a seed that breaks a guarantee: on all cores, with what each event's share of the seeds was."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from homeport.mesh.simulation.coverage import EVENTS
from homeport.mesh.simulation.generate import generate
from homeport.mesh.simulation.run import run

CHUNK: Final = 10  # seeds that a worker takes at once
LIFE: Final = 50  # chunks after which a worker is replaced: collecting is off while it runs
FAILURES_MAX: Final = 5  # after so many failing seeds there is enough to look at


@dataclass(frozen=True)
class Outcome:
    """What is left of one run: enough to count, and to run it again."""

    seed: int
    broken: tuple[str, ...]
    events: frozenset[str]
    simulated_s: float
    steps: int


@dataclass
class Search:
    """The outcomes so far."""

    seeds: int = 0
    simulated_s: float = 0.0
    steps: int = 0
    wall_s: float = 0.0
    last: Outcome | None = None
    failures: list[Outcome] = field(default_factory=list)
    occurred: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.last = outcome
        self.simulated_s += outcome.simulated_s
        self.steps += outcome.steps
        self.occurred.update(outcome.events)
        if outcome.broken:
            self.failures.append(outcome)

    def shares(self) -> dict[str, float]:
        """In what share of the seeds each named event occurred."""
        return {event: self.occurred[event] / max(1, self.seeds) for event in EVENTS}


def outcome(seed: int) -> Outcome:
    """Run one seed."""
    result = run(generate(seed))
    return Outcome(
        seed,
        tuple(str(violation) for violation in result.violations),
        frozenset(result.events),
        result.simulated_s,
        result.steps,
    )


def outcomes(seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    """Run seeds, in the order in which they are done."""
    if processes <= 1:
        yield from map(outcome, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=LIFE) as pool:
        yield from pool.imap_unordered(outcome, seeds, chunksize=CHUNK)


def search(
    seeds: Iterable[int],
    *,
    processes: int = 0,
    failures_max: int = FAILURES_MAX,
    told: Callable[[Search], None] = lambda _: None,
) -> Search:
    """Run seeds until all are done, or enough have failed.

    Args:
        processes: how many at once; 0: as many as there are cores.
        told: hears of each outcome.
    """
    found = Search()
    began = time.monotonic()
    for each in outcomes(seeds, processes or os.cpu_count() or 1):
        found.add(each)
        found.wall_s = time.monotonic() - began
        told(found)
        if len(found.failures) >= failures_max:
            break
    return found
