"""Alternating rounds: A B C, A B C, ..., so that whatever the machine is doing meanwhile meets everyone alike.

All servers of a case are up during all of its rounds (idle ones cost next to nothing), and only one is under load at a
time. The first round warms up caches, pools and branch predictors and is dropped. Who fails, in whatever way, is out,
aloud, and the others go on: a run of half an hour must not be lost to one of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.case import Case, Contender, Measure, Turn
from benchmarks.report import CaseReport, Left, summarise
from benchmarks.servers import MeasurementError
from benchmarks.stage import Stage


def run(case: Case, rounds: int, say: Callable[[str], None], work_dir: Path | None = None) -> CaseReport:
    """Measure a case; its servers have stopped when this returns or raises."""
    skipped = [Left(contender.name, contender.missing) for contender in case.contenders if contender.missing]
    for left in skipped:
        say(f"{case.name}: skipped {left.name}: {left.why}")
    failed: list[Left] = []
    turns: dict[str, list[Turn]] = {}
    measures: list[tuple[Contender, Measure]] = []
    with Stage(case.name, work_dir=work_dir) as stage, ExitStack() as servers:

        def fail(contender: Contender, error: Exception) -> None:
            stage.failed = True
            why = str(error) if isinstance(error, MeasurementError) else f"{type(error).__name__}: {error}"
            failed.append(Left(contender.name, why))
            say(f"{case.name}: {contender.name} failed: {why} (logs: {stage.folder})")
            if not isinstance(error, MeasurementError):  # a defect of ours, then
                say("".join(traceback.format_exception(error)))

        @contextmanager
        def up(contender: Contender) -> Iterator[Measure]:
            running = contender.start(stage)
            measure = running.__enter__()
            try:
                yield measure
            finally:
                try:
                    running.__exit__(None, None, None)
                except Exception as error:  # noqa: BLE001 - the other servers are still to be stopped
                    fail(contender, error)

        for contender in case.contenders:
            if contender.missing:
                continue
            try:
                measures.append((contender, servers.enter_context(up(contender))))
                turns[contender.name] = []
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                fail(contender, error)
        wanted = min(rounds, case.rounds_max)
        for number in range(1 - case.warm_ups, wanted + 1):
            say(f"{case.name}: {f'round {number} of {wanted}' if number > 0 else 'warm-up'}")
            for contender, measure in tuple(measures):
                try:
                    turn = measure()
                except Exception as error:  # noqa: BLE001 - as above
                    measures.remove((contender, measure))
                    del turns[contender.name]
                    fail(contender, error)
                    continue
                if number > 0:
                    turns[contender.name].append(turn)
        shared = stage.cores.shared
    return summarise(case, turns, skipped, failed, one_core=shared)
