"""From turns to the report: comparison, warnings, the schema, and the table."""

from __future__ import annotations

from contextlib import AbstractContextManager

import msgspec
import pytest

from benchmarks import report
from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Turn
from benchmarks.machine import Machine
from benchmarks.report import Left, Report, decode, encode, summarise, table
from benchmarks.stage import Stage


def _never(_stage: Stage) -> AbstractContextManager[Measure]:
    raise AssertionError("nothing is started here")


CASE = Case(
    "case",
    "who?",
    "some",
    "ours",
    (Contender("ours", "about ours", _never), Contender("theirs", "about theirs", _never)),
    (RATE, SERVER_CPU),
)
OURS = [Turn({"rate": 200.0, "server_cpu": 5.0}, 0.99, 0.5), Turn({"rate": 400.0, "server_cpu": 5.0}, 0.99, 0.5)]
THEIRS = [Turn({"rate": 100.0, "server_cpu": 10.0}, 0.7, 0.95), Turn({"rate": 100.0, "server_cpu": 20.0}, 0.7, 0.95)]
MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory_bytes=1,
    kernel="6",
    python="CPython 3.11",
    filesystem="ext4",
    revision="",
    versions={"wrk": "4.1"},
)


def _summary(**turns: list[Turn]) -> report.CaseReport:
    return summarise(CASE, turns, [Left("absent", "not installed")], [], one_core=False)


def test_everyone_is_compared_with_the_reference_round_by_round() -> None:
    ours, theirs = _summary(ours=OURS, theirs=THEIRS).rows
    assert theirs.reference_ahead["rate"].median == 3.0
    assert theirs.reference_ahead["server_cpu"].median == 3.0
    assert ours.reference_ahead["rate"].median == 1.0
    assert theirs.figures["rate"].rounds == [100.0, 100.0]


def test_without_its_reference_a_case_still_has_figures() -> None:
    (theirs,) = _summary(theirs=THEIRS).rows
    assert theirs.reference_ahead == {}
    assert theirs.figures["rate"].spread.median == 100.0


def test_a_busy_generator_is_said_aloud_and_an_idle_one_is_not() -> None:
    (warning,) = _summary(ours=OURS, theirs=THEIRS).warnings
    assert warning.startswith("theirs: the generator used 95%")


def test_a_rate_that_kept_nobody_busy_is_said_aloud() -> None:
    idle = [Turn({"rate": 100.0, "server_cpu": 10.0}, 0.13, 0.09)]
    (warning,) = _summary(ours=idle).warnings
    assert warning.startswith("ours: server and generator used 13% and 9%")


def test_a_machine_with_one_core_is_said_aloud() -> None:
    (warning,) = summarise(CASE, {"ours": OURS}, [], [], one_core=True).warnings
    assert "only one core" in warning


def test_a_figure_that_a_contender_cannot_have_is_absent_not_zero() -> None:
    (ours,) = _summary(ours=[Turn({"rate": 1.0})]).rows
    assert set(ours.figures) == {"rate"}
    assert ours.generator_share is None


def test_a_report_survives_its_file() -> None:
    written = Report(
        started_at="2026-01-01T00:00:00+00:00",
        quick=True,
        machine=MACHINE,
        cases=[_summary(ours=OURS, theirs=THEIRS)],
    )
    assert decode(encode(written)) == written


def test_a_report_of_another_schema_is_refused() -> None:
    written = Report(schema=report.SCHEMA + 1, started_at="", quick=False, machine=MACHINE, cases=[])
    with pytest.raises(ValueError, match="schema"):
        decode(encode(written))


def test_a_field_that_is_not_in_the_schema_is_refused() -> None:
    document = msgspec.json.decode(encode(Report(started_at="", quick=False, machine=MACHINE, cases=[])))
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        decode(msgspec.json.encode(document | {"surprise": 1}))


def test_the_table_shows_who_took_part_who_did_not_and_by_how_much() -> None:
    text = table(_summary(ours=OURS, theirs=THEIRS))
    (row,) = (line for line in text.splitlines() if line.startswith("  theirs "))
    assert row.split() == [
        "theirs",
        "100",
        "(100-100)",
        "15.0",
        "(12.5-17.5)",
        "70%",
        "95%",
        *["3.00", "(2.50-3.50)", "x"] * 2,
    ]
    assert "skipped: absent: not installed" in text
    assert "theirs: about theirs" in text
