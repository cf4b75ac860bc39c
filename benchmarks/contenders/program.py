"""A contender that is a program of its own: a new process each turn, on the servers' core, that measures itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import Measure
from benchmarks.load import driver
from benchmarks.stage import Stage

_AROUND_S: Final = 60.0  # beyond what it measures: to start, and to register everything


def program(module: str, *arguments: object, turn_s: float) -> Callable[[Stage], AbstractContextManager[Measure]]:
    """Run `benchmarks.load.MODULE` with these arguments; it measures for a turn, beside what it takes to start."""

    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        command = [sys.executable, "-m", f"benchmarks.load.{module}", *map(str, arguments), str(turn_s)]
        yield lambda: driver.in_process(command, stage.cores, turn_s + _AROUND_S)

    return turns
