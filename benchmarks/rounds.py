"""Alternating rounds: A B C, A B C, ..., so that whatever the machine is doing meanwhile meets everyone alike.

All servers of a case are up during all of its rounds (idle ones cost next to nothing), and only one is under load at a
time. The first round warms up caches, pools and branch predictors and is dropped. Who fails is out, aloud, and the
others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.case import Case, Contender, Measure, Turn
from benchmarks.report import CaseReport, Left, summarise
from benchmarks.servers import MeasurementError, Stage


def run(case: Case, rounds: int, say: Callable[[str], None], work_dir: Path | None = None) -> CaseReport:
    """Measure a case; its servers have stopped when this returns or raises."""
    skipped = [Left(contender.name, contender.missing) for contender in case.contenders if contender.missing]
    for left in skipped:
        say(f"{case.name}: skipped {left.name}: {left.why}")
    failed: list[Left] = []
    turns: dict[str, list[Turn]] = {}
    measures: list[tuple[Contender, Measure]] = []
    with Stage(case.name, work_dir=work_dir) as stage, ExitStack() as servers:

        def fail(contender: Contender, error: MeasurementError) -> None:
            stage.failed = True
            failed.append(Left(contender.name, str(error)))
            say(f"{case.name}: {contender.name} failed: {error} (logs: {stage.folder})")

        for contender in case.contenders:
            if contender.missing:
                continue
            try:
                measures.append((contender, servers.enter_context(contender.start(stage))))
                turns[contender.name] = []
            except MeasurementError as error:
                fail(contender, error)
        wanted = min(rounds, case.rounds_max)
        for number in range(0 if case.warm_up else 1, wanted + 1):
            say(f"{case.name}: {f'round {number} of {wanted}' if number else 'warm-up'}")
            for contender, measure in tuple(measures):
                try:
                    turn = measure()
                except MeasurementError as error:
                    measures.remove((contender, measure))
                    del turns[contender.name]
                    fail(contender, error)
                    continue
                if number:
                    turns[contender.name].append(turn)
        shared = stage.cores.shared
    return summarise(case, turns, skipped, failed, one_core=shared)
