"""The capacity page shows what was simulated."""

from __future__ import annotations

from benchmarks.million.page import PAGE, table, with_table


def test_the_page_holds_the_table_of_the_last_results() -> None:
    assert with_table(PAGE.read_text(), table()) == PAGE.read_text(), "run python -m benchmarks.million.page"


def test_only_the_table_is_written_anew() -> None:
    page = "before\n<!-- simulated: begin -->\nold\n<!-- simulated: end -->\nafter\n"
    assert with_table(page, "new\n") == page.replace("old", "new")
