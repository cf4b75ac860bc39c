"""Who takes turns, who is skipped, who is out; with contenders that need no server."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.case import RATE, Case, Contender, Measure, Turn, Unfinished
from benchmarks.rounds import run
from benchmarks.servers import MeasurementError, affinity, divide, free_port
from benchmarks.stage import Stage

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")


AT_THE_END = -1


class Play:
    """What happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.said: list[str] = []

    def contender(
        self, name: str, *, fails_at: int = 0, missing: str = "", error: BaseException | None = None
    ) -> Contender:
        error = error or MeasurementError("it broke")
        return Contender(name, f"about {name}", self._start(name, fails_at, error), missing)

    def _start(
        self, name: str, fails_at: int, error: BaseException
    ) -> Callable[[Stage], AbstractContextManager[Measure]]:
        @contextmanager
        def start(_stage: Stage) -> Iterator[Measure]:
            turns = 0

            def measure() -> Turn:
                nonlocal turns
                turns += 1
                self.events.append(name)
                if turns == fails_at:
                    raise error
                return Turn({"rate": float(turns)})

            self.events.append(f"{name} up")
            yield measure
            self.events.append(f"{name} down")
            if fails_at == AT_THE_END:
                raise error

        return start


def _case(*contenders: Contender) -> Case:
    return Case("case", "who?", "none", contenders[0].name, contenders, (RATE,))


def test_contenders_alternate_and_the_first_round_is_dropped(tmp_path: Path) -> None:
    play = Play()
    report = run(_case(play.contender("a"), play.contender("b")), 2, play.said.append, tmp_path)
    assert set(play.events[:2]) == {"a up", "b up"}, "in whatever order: at the same time"
    assert play.events[2:] == [*"ababab", "b down", "a down"]
    assert [row.figures["rate"].rounds for row in report.rows] == [[2.0, 3.0], [2.0, 3.0]]
    assert list(tmp_path.iterdir()) == []


def test_as_many_rounds_are_dropped_as_a_case_asks_for(tmp_path: Path) -> None:
    for warm_ups in (0, 1, 3):
        play = Play()
        case = replace(_case(play.contender("a")), warm_ups=warm_ups)
        report = run(case, 2, play.said.append, tmp_path)
        assert report.rows[0].figures["rate"].rounds == [warm_ups + 1.0, warm_ups + 2.0]


def test_who_needs_more_warming_up_takes_turns_alone_before_the_first_round(tmp_path: Path) -> None:
    play = Play()
    slow = replace(play.contender("b"), warm_ups=2)
    report = run(_case(play.contender("a"), slow), 1, play.said.append, tmp_path)
    assert play.events[2:] == [*"bbabab", "b down", "a down"]
    assert [row.figures["rate"].rounds for row in report.rows] == [[2.0], [4.0]]


def test_a_case_may_want_several_times_as_many_rounds_as_asked_for_up_to_its_most(tmp_path: Path) -> None:
    for most, counted in ((100, 6), (5, 5)):
        play = Play()
        case = replace(_case(play.contender("a")), rounds_factor=3, rounds_max=most)
        assert run(case, 2, play.said.append, tmp_path).rounds == counted


def _meeting(events: list[str], name: str, fails: str = "") -> Contender:
    """One that says when it is ready, waits for the others, and says so."""

    @contextmanager
    def start(stage: Stage) -> Iterator[Measure]:
        def measure() -> Turn:
            if fails == "before":
                raise MeasurementError("it never came")
            events.append(f"{name} ready")
            stage.abreast()
            events.append(f"{name} on")
            if fails == "after":
                raise ZeroDivisionError("by zero")
            return Turn({"rate": float(ord(name))})

        yield measure

    return Contender(name, f"about {name}", start)


@pytest.mark.parametrize("fails", ["", "before", "after"])
def test_turns_taken_together_wait_for_one_another_and_not_for_who_failed(tmp_path: Path, fails: str) -> None:
    events: list[str] = []
    play = Play()
    case = _case(_meeting(events, "a"), _meeting(events, "b", fails), _meeting(events, "c"))
    report = run(replace(case, together=True, warm_ups=0), 3, play.said.append, tmp_path)
    there = "ac" if fails else "abc"
    assert [(row.name, row.figures["rate"].rounds) for row in report.rows] == [
        (name, [ord(name)] * 3) for name in there
    ]
    first = events[: 2 * len("abc" if fails != "before" else there)]
    kinds = [event.partition(" ")[2] for event in first]
    assert kinds == sorted(kinds, reverse=True), "nobody goes on before all are ready"
    expected = {"": [], "before": ["it never came"], "after": ["ZeroDivisionError: by zero"]}
    assert [left.why for left in report.failed] == expected[fails]


def test_turns_one_after_the_other_wait_for_nobody(tmp_path: Path) -> None:
    events: list[str] = []
    run(replace(_case(_meeting(events, "a"), _meeting(events, "b")), warm_ups=0), 2, Play().said.append, tmp_path)
    assert events == ["a ready", "a on", "b ready", "b on"] * 2


def test_servers_that_have_started_are_stopped_when_somebody_stops_the_run_meanwhile(tmp_path: Path) -> None:
    play = Play()

    @contextmanager
    def stopping(_stage: Stage) -> Iterator[Measure]:
        os.kill(os.getpid(), signal.SIGINT)
        play.events.append("b up")
        yield lambda: Turn({"rate": 1.0})
        play.events.append("b down")

    with pytest.raises(KeyboardInterrupt):
        run(_case(play.contender("a"), Contender("b", "stops", stopping)), 1_000_000, play.said.append, tmp_path)
    assert play.events[-2:] == ["b down", "a down"]
    assert list(tmp_path.iterdir()) == []


def _hanging(play: Play, name: str, turns: int, fails_at: int = 0) -> Contender:
    """One whose turns are finished when so many things have happened."""

    @contextmanager
    def start(_stage: Stage) -> Iterator[Measure]:
        mine = 0

        def measure() -> Unfinished:
            nonlocal mine
            mine += 1
            number, begun_at = mine, len(play.events)
            play.events.append(name)
            held = ExitStack()
            held.callback(play.events.append, f"{name}{number} left")

            def finish() -> Turn:
                if number == fails_at:
                    raise MeasurementError("it broke")
                return Turn({"rate": float(number)})

            return Unfinished(lambda: len(play.events) - begun_at >= turns, finish, held)

        yield measure
        play.events.append(f"{name} down")

    return Contender(name, f"about {name}", start)


def test_the_next_turn_does_not_wait_for_what_hangs_but_its_own_next_one_does(tmp_path: Path) -> None:
    play = Play()
    case = replace(_case(play.contender("a"), _hanging(play, "b", 2), _hanging(play, "c", 100)), warm_ups=0)
    report = run(case, 2, play.said.append, tmp_path)
    assert [row.figures["rate"].rounds for row in report.rows] == [[1.0, 2.0]] * 3
    rounds = ["a", "b", "c", "b1 left", "a", "b", "c1 left", "c", "b2 left", "c2 left"]
    assert play.events == ["a up", *rounds, "c down", "b down", "a down"]


def test_who_fails_after_hanging_is_out_and_what_it_held_is_left(tmp_path: Path) -> None:
    play = Play()
    case = replace(_case(play.contender("a"), _hanging(play, "b", 100, fails_at=1)), warm_ups=0)
    report = run(case, 2, play.said.append, tmp_path)
    assert [(left.name, left.why) for left in report.failed] == [("b", "it broke")]
    assert play.events == ["a up", "a", "b", "a", "b1 left", "b down", "a down"]


def test_what_a_hanging_turn_holds_is_left_when_somebody_stops_the_run(tmp_path: Path) -> None:
    play = Play()
    stopping = play.contender("a", fails_at=2, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(replace(_case(stopping, _hanging(play, "b", 100)), warm_ups=0), 2, play.said.append, tmp_path)
    assert play.events == ["a up", "a", "b", "a", "b1 left", "b down", "a down"]


def test_who_is_not_installed_is_skipped_aloud(tmp_path: Path) -> None:
    play = Play()
    report = run(
        _case(play.contender("a"), play.contender("b", missing="b is not installed")), 1, play.said.append, tmp_path
    )
    assert [left.name for left in report.skipped] == ["b"]
    assert "case: skipped b: b is not installed" in play.said
    assert "b up" not in play.events


def test_who_fails_is_out_aloud_and_the_others_go_on(tmp_path: Path) -> None:
    play = Play()
    report = run(_case(play.contender("a"), play.contender("b", fails_at=2)), 3, play.said.append, tmp_path)
    assert [row.name for row in report.rows] == ["a"]
    assert [(left.name, left.why) for left in report.failed] == [("b", "it broke")]
    assert report.rounds == 3
    assert play.events[-2:] == ["b down", "a down"]
    assert len(list(tmp_path.iterdir())) == 1, "logs are kept when something failed"
    assert any(str(next(tmp_path.iterdir())) in line for line in play.said)


@pytest.mark.parametrize("fails_at", [2, AT_THE_END])
def test_a_defect_in_one_contender_does_not_lose_the_others(tmp_path: Path, fails_at: int) -> None:
    play = Play()
    broken = play.contender("b", fails_at=fails_at, error=ZeroDivisionError("by zero"))
    report = run(_case(play.contender("a"), broken, play.contender("c")), 2, play.said.append, tmp_path)
    assert {"a", "c"} <= {row.name for row in report.rows}
    assert [(left.name, left.why) for left in report.failed] == [("b", "ZeroDivisionError: by zero")]
    assert play.events[-3:] == ["c down", "b down", "a down"]
    assert any("Traceback" in line for line in play.said)


def test_logs_are_kept_and_named_when_something_unexpected_happens(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught, Stage("case", work_dir=tmp_path):
        raise ZeroDivisionError
    (folder,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"logs of servers: {folder}"]


def test_nothing_is_kept_when_somebody_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Stage("case", work_dir=tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Stage("case", work_dir=tmp_path) as stage, pytest.raises(MeasurementError, match="ended with 3: so sad"):
        stage.server("sad", ["sh", "-c", "echo so sad; exit 3"], lambda: False)


def test_a_server_is_stopped_with_everything_it_started(tmp_path: Path) -> None:
    with Stage("case", work_dir=tmp_path) as stage:
        child = tmp_path / "child"
        server = stage.server(
            "parent", ["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], lambda: bool(_text(child))
        )
        with server:
            watched = os.pidfd_open(int(_text(child)))
        ended, _, _ = select.select([watched], [], [], 10)
        os.close(watched)
        assert ended


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def test_servers_and_generators_never_share_a_core_if_there_are_two() -> None:
    for count in range(2, 9):
        cores = divide(range(count))
        assert not cores.server & set(cores.generators)
        assert not cores.server & cores.upstream
        assert cores.server | cores.upstream | set(cores.generators) == set(range(count))
    assert divide([4]).shared


def test_a_process_started_in_a_thread_has_the_cores_that_the_thread_says(tmp_path: Path) -> None:
    everywhere = os.sched_getaffinity(0)
    seen: dict[int, str] = {}

    def look(core: int) -> None:
        with affinity(frozenset({core})):
            barrier.wait(30)
            show = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
            seen[core] = subprocess.run(show, capture_output=True, text=True, check=True).stdout

    threads = [threading.Thread(target=look, args=(core,)) for core in everywhere]
    barrier = threading.Barrier(len(threads))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {core: f"{core}\n" for core in everywhere}
    assert os.sched_getaffinity(0) == everywhere


def test_a_port_is_not_given_twice_in_a_row_of_many() -> None:
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
