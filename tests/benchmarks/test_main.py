"""The command line of the benchmarks: one that breaks does not lose the others, and nothing is replaced by a part."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from benchmarks.__main__ import main
from benchmarks.case import RATE, Case, Contender, Measure, Scale, Turn
from benchmarks.report import decode
from benchmarks.stage import Stage

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")


@contextmanager
def _start(_stage: Stage) -> Iterator[Measure]:
    yield lambda: Turn({"rate": 1.0})


def _whole(_scale: Scale) -> tuple[Case, ...]:
    return (Case("dns/A", "who?", "none", "a", (Contender("a", "about a", _start),), (RATE,)),)


def _broken(_scale: Scale) -> NoReturn:
    raise ZeroDivisionError("by zero")


@pytest.fixture
def _suites(monkeypatch: pytest.MonkeyPatch) -> None:
    suites = {
        "benchmarks.suite.kv": SimpleNamespace(cases=_broken),
        "benchmarks.suite.dns": SimpleNamespace(cases=_whole),
    }
    monkeypatch.setattr(importlib, "import_module", suites.__getitem__)


@pytest.mark.usefixtures("_suites")
def test_a_benchmark_that_breaks_is_said_at_the_end_and_the_others_leave_their_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["kv", "dns", "--rounds", "1", "--results", str(tmp_path / "results"), "--work-dir", str(tmp_path)]) == 1
    )
    assert capsys.readouterr().err.endswith("FAILED kv: ZeroDivisionError: by zero\n")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["dns.json"]
    assert decode((tmp_path / "results" / "dns.json").read_bytes()).cases[0].rows[0].name == "a"


@pytest.mark.usefixtures("_suites")
@pytest.mark.parametrize("part", [["--quick"], ["--only", "dns/A"]])
def test_results_are_not_replaced_by_a_part_of_them(tmp_path: Path, part: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dns", *part, "--results", str(tmp_path)])
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_suites")
def test_a_pattern_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dns", "--only", "dns/none", "--work-dir", str(tmp_path)])
    assert stopped.value.code == 2


@pytest.mark.usefixtures("_suites")
@pytest.mark.parametrize("turn", ["0", "-1", "nan", "soon", "1e9"])
def test_a_turn_of_no_time_is_refused(tmp_path: Path, turn: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dns", f"--turn={turn}", "--work-dir", str(tmp_path)])
    assert stopped.value.code == 2
