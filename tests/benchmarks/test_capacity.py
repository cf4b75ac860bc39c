"""The capacity page shows what the reckoning says."""

from __future__ import annotations

from pathlib import Path

from benchmarks.capacity import Site

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"


def test_the_page_holds_the_table_as_it_is_reckoned() -> None:
    site = Site(1_000_000, 60.0, 5, 1000, 100.0)
    for what, figure, source in site.figures():
        assert f"| {what} | {figure} | {source} |" in PAGE.read_text(), "run python -m benchmarks.capacity"


def test_twice_the_replicas_halve_what_each_hears() -> None:
    one, two = ({what: figure for what, figure, _ in Site(100_000, 10.0, n, 1, 1.0).figures()} for n in (2, 4))
    assert one["renewals, all replicas"] == two["renewals, all replicas"]
    assert float(one["of one core of each replica"][:-2]) >= 1.9 * float(two["of one core of each replica"][:-2])
