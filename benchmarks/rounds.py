"""Alternating rounds: A B C, A B C, ..., so that whatever the machine is doing meanwhile meets everyone alike.

All servers of a case are up during all of its rounds (idle ones cost next to nothing), and only one is under load at a
time, except where a case measures waiting: there the turns of a round are taken together. The first round warms up
caches, pools and branch predictors and is dropped. Who fails, in whatever way, is out, aloud, and the others go on: a
run of so many minutes must not be lost to one of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.case import Case, Contender, Measure, Turn, Unfinished
from benchmarks.report import CaseReport, Left, summarise
from benchmarks.servers import MeasurementError
from benchmarks.stage import Gate, Stage

# What came of a turn, or why nothing did.
Outcome = Turn | Unfinished | Exception


def run(case: Case, rounds: int, say: Callable[[str], None], work_dir: Path | None = None) -> CaseReport:
    """Measure a case; its servers have stopped when this returns or raises."""
    skipped = [Left(contender.name, contender.missing) for contender in case.contenders if contender.missing]
    for left in skipped:
        say(f"{case.name}: skipped {left.name}: {left.why}")
    with Stage(case.name, work_dir=work_dir) as stage:
        play = _Play(case, stage, say)
        with play.servers:
            play.start()
            play.take_rounds(rounds)
        shared = stage.cores.shared
    return summarise(case, play.turns, skipped, play.failed, one_core=shared)


class _Play:
    """A case under way: who takes part, what they did, and who is out."""

    def __init__(self, case: Case, stage: Stage, say: Callable[[str], None]) -> None:
        self.servers = ExitStack()
        self.turns: dict[str, list[Turn]] = {}  # that count, by contender
        self.failed: list[Left] = []
        self._case = case
        self._stage = stage
        self._say = say
        self._measures: dict[str, Measure] = {}
        self._unfinished: dict[str, tuple[Unfinished, bool]] = {}  # the last of each, and whether it counts

    def start(self) -> None:
        """Start everybody's servers, at the same time: much of that is waiting, and nothing is measured yet."""
        ups = {each.name: self._up(each) for each in self._case.contenders if not each.missing}
        starting: dict[str, Future[Measure]] = {}
        try:
            with _threads(self._stage, len(ups)) as threads:
                for name, up in ups.items():
                    starting[name] = threads.submit(up.__enter__)
                wait(starting.values())
        finally:  # also when somebody stops the run
            for name, started in starting.items():
                if not started.exception():
                    self.servers.push(ups[name])
        for name, started in starting.items():
            if error := started.exception():
                self._out(name, error)
            else:
                self._measures[name] = started.result()
                self.turns[name] = []

    @contextmanager
    def _up(self, contender: Contender) -> Iterator[Measure]:
        running = contender.start(self._stage)
        measure = running.__enter__()
        try:
            yield measure
        finally:
            try:
                running.__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - the other servers are still to be stopped
                self._told(contender.name, error)

    def take_rounds(self, rounds: int) -> None:
        """All of them: those that warm up, and then so many that count."""
        case = self._case
        for contender in case.contenders:
            if contender.warm_ups and contender.name in self._measures:
                self._say(f"{case.name}: warm-up of {contender.name}")
                self._take([contender.name] * contender.warm_ups, counts=False)
        wanted = min(rounds * case.rounds_factor, case.rounds_max)
        for number in range(1 - case.warm_ups, wanted + 1):
            self._say(f"{case.name}: {f'round {number} of {wanted}' if number > 0 else 'warm-up'}")
            self._take(tuple(self._measures), counts=number > 0)
        for name in tuple(self._unfinished):
            self._finish(name)

    def _take(self, names: Sequence[str], *, counts: bool) -> None:
        """A turn of each of those who are still there."""
        if self._case.together:
            there = [name for name in names if name in self._measures]
            outcomes = _at_once(self._stage, [self._measures[name] for name in there])
            for name, outcome in zip(there, outcomes, strict=True):
                self._came(name, outcome, counts=counts)
            return
        for name in names:
            if name in self._unfinished:
                self._finish(name)
            if name in self._measures:
                self._came(name, _outcome(self._measures[name]), counts=counts)
            for other in [each for each, (unfinished, _) in self._unfinished.items() if unfinished.done()]:
                self._finish(other)

    def _came(self, name: str, outcome: Outcome, *, counts: bool) -> None:
        if isinstance(outcome, Exception):
            self._out(name, outcome)
        elif isinstance(outcome, Unfinished):
            assert name not in self._unfinished, "turns that are taken together are finished when they are over"
            self._unfinished[name] = (outcome, counts)
            self.servers.callback(outcome.held.close)  # also when somebody stops the run
        elif counts:
            self.turns[name].append(outcome)

    def _finish(self, name: str) -> None:
        unfinished, counts = self._unfinished.pop(name)

        def finish() -> Turn:
            with unfinished.held:
                return unfinished.finish()

        self._came(name, _outcome(finish), counts=counts)

    def _out(self, name: str, error: BaseException) -> None:
        self._measures.pop(name, None)
        self.turns.pop(name, None)
        self._told(name, error)

    def _told(self, name: str, error: BaseException) -> None:
        self._stage.failed = True
        why = str(error) if isinstance(error, MeasurementError) else f"{type(error).__name__}: {error}"
        self.failed.append(Left(name, why))
        self._say(f"{self._case.name}: {name} failed: {why} (logs: {self._stage.folder})")
        if not isinstance(error, MeasurementError):  # a defect of ours, then
            self._say("".join(traceback.format_exception(error)))


def _outcome(measure: Measure) -> Outcome:
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
        return error


def _at_once(stage: Stage, measures: Sequence[Measure]) -> list[Outcome]:
    """What comes of them at the same time, each in a thread of its own."""
    if not measures:
        return []
    gate = stage.gate = Gate(len(measures))

    def outcome(measure: Measure) -> Outcome:
        try:
            return _outcome(measure)
        finally:
            gate.leave()

    with _threads(stage, len(measures)) as threads:
        return list(threads.map(outcome, measures))


@contextmanager
def _threads(stage: Stage, count: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max(count, 1)) as threads:
        try:
            yield threads
        except BaseException:  # somebody stops the run: no need to wait for what would be measured
            stage.generators.close()
            raise
