"""Pictures and tables say what the figures say, and the same figures give the same files."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import drawing
from benchmarks.case import RATE, SERVER_CPU
from benchmarks.machine import Machine
from benchmarks.report import CaseReport, Figure, Report, Row
from benchmarks.spread import Spread

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory_bytes=1,
    kernel="6",
    python="CPython 3.11",
    filesystem="ext4",
    revision="",
    versions={"envoy": "1.40.0"},
)


def row(name: str, cpu_us: float, ahead: float) -> Row:
    figure = Figure([cpu_us], Spread(cpu_us, cpu_us, cpu_us))
    lead = {"server_cpu": Spread(ahead, ahead, ahead)}
    return Row(name, f"about {name}", {"server_cpu": figure}, lead, None, None)


CASE = CaseReport(
    name="sidecar/small",
    question="who?",
    load="some load",
    reference="homeport",
    rounds=5,
    metrics=[RATE, SERVER_CPU],
    rows=[row("homeport", 25.0, 1.0), row("envoy", 50.0, 2.0), row("nginx", 20.0, 0.8), row("direct", 7.0, 0.28)],
    skipped=[],
    failed=[],
    warnings=["a warning"],
)
REPORT = Report(started_at="2026-01-01T00:00:00+00:00", quick=False, machine=MACHINE, cases=[CASE])


def test_a_picture_names_everyone_with_their_version_and_is_the_same_each_time(tmp_path: Path) -> None:
    drawing.draw(CASE, SERVER_CPU, MACHINE, tmp_path / "one.svg")
    drawing.draw(CASE, SERVER_CPU, MACHINE, tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    for words in ("envoy 1.40.0", "nginx", "homeport", "lower is better", "sidecar/small: some load"):
        assert f"<!-- {words}" in text or words in text
    assert "a processor, 2 cores" in text


def test_being_behind_is_said_in_the_same_size_as_being_ahead() -> None:
    table = drawing.headlines([REPORT])
    assert "| 25.0 us | envoy 50.0 us; nginx 20.0 us | envoy 2.00 x; nginx 0.8 x |" in table
    assert "direct" not in table, "having no proxy is no competitor"


def test_the_page_holds_every_row_and_every_warning() -> None:
    page = drawing.page([REPORT])
    for words in ("| direct | - | 7.00 (7.00 to 7.00) |", "0.28 x", "- a warning", "about envoy", "5 rounds"):
        assert words in page
    assert "benchmarks/sidecar-small-server_cpu.svg" in page
    assert "sidecar-small-rate.svg" not in page, "nobody has that figure"


def test_a_table_of_some_names_them_alone_and_what_is_around_it_stays() -> None:
    text = "a\n<!-- benchmarks of nginx: begin -->\nold\n<!-- benchmarks: end -->\nb\n"
    made = drawing.with_tables(text, [REPORT])
    assert "| 25.0 us | nginx 20.0 us | nginx 0.8 x |" in made
    assert made.startswith("a\n<!-- benchmarks of nginx: begin -->\n| |")
    assert made.endswith("|\n<!-- benchmarks: end -->\nb\n")
    assert "old" not in made
    assert drawing.with_tables(made, [REPORT]) == made


def test_the_table_of_everybody_says_on_what_machine() -> None:
    made = drawing.with_tables("<!-- benchmarks: begin -->\n<!-- benchmarks: end -->", [REPORT])
    assert "\na processor, 2 cores, Linux 6, CPython 3.11, ext4; envoy 1.40.0.\n" in made


@pytest.mark.parametrize("file", [drawing.README, drawing.COMPARISON], ids=["README", "comparison"])
def test_the_tables_of_the_pages_are_those_of_the_last_results(file: Path) -> None:
    text = file.read_text()
    assert "<!-- benchmarks" in text
    assert drawing.with_tables(text, drawing.results()) == text, "run python -m benchmarks.drawing"


def test_the_page_and_its_pictures_are_those_of_the_last_results() -> None:
    text = drawing.PAGE.read_text()
    assert drawing.page(drawing.results()) == text, "run python -m benchmarks.drawing"
    named = set(re.findall(r"\(benchmarks/([^)]+)\)", text))
    drawn = {file.name for file in drawing.PICTURES.glob("*.svg") if not file.name.startswith(drawing.PROFILE)}
    assert named == drawn


def test_growth_is_drawn_from_zero_with_its_fitted_exponent(tmp_path: Path) -> None:
    rows = [row("homeport 1,000", 10.0, 1.0), row("homeport 10,000", 20.0, 2.0)]
    sizes = {"homeport 1,000": 1_000, "homeport 10,000": 10_000}
    grown = msgspec.structs.replace(CASE, rows=rows, sizes=sizes, exponents={"server_cpu": 0.301})
    drawing.draw(grown, SERVER_CPU, MACHINE, tmp_path / "grown.svg")
    assert "fitted exponent 0.30" in (tmp_path / "grown.svg").read_text()
    assert "server_cpu grows with the size to the power of 0.30" in drawing.page(
        [msgspec.structs.replace(REPORT, cases=[grown])]
    )
