"""`python -m benchmarks.million.page`: write what was simulated into the table of docs/capacity.md."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.million import ETCD_WRITES_PER_S, PROBE_US
from benchmarks.report import decode
from benchmarks.servers import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results" / "million.json"
PAGE: Final = ROOT / "docs" / "capacity.md"
_BEGIN: Final = "<!-- simulated: begin -->\n"
_END: Final = "<!-- simulated: end -->\n"
_ROWS: Final = (  # of the metrics in one row, their format, and where the figure is from
    (
        "memory of a mirror with its catalogue",
        "{mirror_memory:.1f} GiB",
        "measured: all keys and the catalogue",
    ),
    ("each instance of that", "{instance_memory:,.0f} bytes", "measured"),
    ("CPU until a replica has taken everything in", "{load_cpu:.0f} s", "measured, without etcd's part"),
    ("CPU of a revision, in mirror and catalogue", "{revision_cpu:.0f} us", "measured, at this size"),
    ("CPU of an event for each follower", "{delivery_cpu:.2f} us", "measured, up to the socket"),
    ("renewals, all replicas", "{renewals:,.0f}/s", "simulated: every client's clock"),
    ("calls that carry them, at each replica", "{renewal_calls:,.0f}/s", "simulated"),
    (
        "their share of a replica's core",
        "{renewal_core_least:.0f} to {renewal_core_most:.0f} %",
        "calls at the cost measured by `renewals`, renewals at that by `cluster` (sparse, idle costs included)",
    ),
    ("the leases' own part of a renewal", "{lease_cpu:.2f} us", "measured: the lease table"),
    (
        "the leases' clock, of a core",
        "{clock_cpu:.1f} %, a turn at most {clock_turn_max:.0f} ms",
        "measured, five in one process; one alone: 4 ms",
    ),
    ("leases that ended although renewed", "{leases_ended:.0f}", "simulated, two TTLs"),
    ("renewals that reach etcd", "0/s", "measured by `cluster`, and held by a test"),
    ("checks at the replica that has most", "{probe_spread:.3f} x the mean", "the hash itself, over all names"),
    ("checks that move when a replica goes", "{probes_moved:.1f} %", "the same"),
    (
        "CPU to share them out anew, at each replica",
        "{share_out_cpu:.1f} s, a turn at most {share_out_turn_max:.1f} ms",
        "measured: the hash, 500 at a time",
    ),
    (
        "HTTP checks of all, each 10 s",
        "{probe_cores:.1f} cores at each replica",
        f"{PROBE_US:.0f} us each, measured by `checks`",
    ),
    ("CPU of a lease that moves, but for the write", "{moved_cpu:.1f} us", "measured, in process, 20 in a call"),
    (
        "a replica dies, its clients go to all others",
        "all owned after {storm_owned:.0f} s, all told after {storm_over:.0f} s, {storm_lost:,.0f} lost",
        f"simulated; {ETCD_WRITES_PER_S:,.0f} writes/s of etcd in all, measured",
    ),
    (
        "the same, and all go to one of them",
        "all owned after {crowded_owned:.0f} s, all told after {crowded_over:.0f} s, {crowded_lost:,.0f} lost",
        "simulated; 300 s: not by itself",
    ),
)


def table(results: Path = RESULTS) -> str:
    """The table in Markdown."""
    report = decode(results.read_bytes())
    (row,) = report.cases[0].rows
    figures = {name: figure.spread.median for name, figure in row.figures.items()}
    lines = ["| what | figure | from |", "|---|---|---|"]
    lines += [f"| {what} | {figure.format(**figures)} | {source} |" for what, figure, source in _ROWS]
    return "\n".join(lines) + "\n"


def with_table(page: str, new: str) -> str:
    """The page with this table in the place of the one it had."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + new + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), table()))
