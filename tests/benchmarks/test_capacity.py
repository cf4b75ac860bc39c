"""The capacity page shows what was simulated, from costs that were measured."""

from __future__ import annotations

import pytest

from benchmarks.drawing import results
from benchmarks.million import PROBE_US, RENEWAL_CALL_US
from benchmarks.million.page import PAGE, table, with_table

DRIFT_MAX = 1.5  # times: further from the last measurement, the simulation says something else than it would now


def test_the_page_holds_the_table_of_the_last_results() -> None:
    assert with_table(PAGE.read_text(), table()) == PAGE.read_text(), "run python -m benchmarks.million.page"


def test_only_the_table_is_written_anew() -> None:
    page = "before\n<!-- simulated: begin -->\nold\n<!-- simulated: end -->\nafter\n"
    assert with_table(page, "new\n") == page.replace("old", "new")


@pytest.mark.parametrize(("name", "us"), [("checks", PROBE_US), ("renewals", RENEWAL_CALL_US)])
def test_what_the_simulation_takes_for_a_cost_is_near_the_last_measurement(name: str, us: float) -> None:
    (case,) = (case for report in results() for case in report.cases if case.name == name)
    measured = case.rows[0].figures["server_cpu"].spread.median
    assert us / DRIFT_MAX < measured < us * DRIFT_MAX, "set the constant in benchmarks/million, and simulate again"
