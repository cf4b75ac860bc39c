"""Reports as pictures and as Markdown: bars from zero, one per contender, with quartiles and everyone's version.

`python -m benchmarks.drawing` reads benchmarks/results/*.json, draws into docs/benchmarks/, writes docs/benchmarks.md
and replaces the tables of README and docs/comparison.md, each of which stands between two comments. No figure of a
benchmark is copied by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.case import HEADLINES, Metric
from benchmarks.machine import Machine
from benchmarks.report import CaseReport, Report, Row, decode, number, rounds
from benchmarks.servers import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"
PICTURES: Final = ROOT / "docs" / "benchmarks"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
PROFILE: Final = "profile-"  # begins the names of pictures that `benchmarks.profile` makes
README: Final = ROOT / "README.md"
COMPARISON: Final = ROOT / "docs" / "comparison.md"
_MARKED: Final = re.compile(  # a table of everybody, or of some: `<!-- benchmarks of etcd, redis: begin -->`
    r"(?P<begin><!-- benchmarks(?: of (?P<names>[\w, ]+))?: begin -->\n).*?(?P<end><!-- benchmarks: end -->)", re.DOTALL
)
_ABOUT: Final = (
    "Made by `make bench`, which measures everyone on the same machine in alternating rounds and draws what it found; "
    "`benchmarks/results/` holds every round. Ratios are taken within a round; above 1, Homeport is ahead. CPU is that "
    "of the server alone. The last two columns are shares of a core; if the generator's is above 90 %, the rate is a "
    "lower bound."
)
_OURS: Final = "#2a6f97"
_THEIRS: Final = "#b0b7bd"
_LINE_CHARACTERS: Final = 84  # of a title


def draw(case: CaseReport, metric: Metric, machine: Machine, file: Path) -> None:
    """One picture: a metric of a case, everyone who has it."""
    if case.sizes:
        _draw_growth(case, metric, machine, file)
        return
    rows = [row for row in case.rows if metric.name in row.figures]
    spreads = [row.figures[metric.name].spread for row in rows]
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    bars = axes.barh(
        places,
        [spread.median for spread in spreads],
        xerr=([spread.median - spread.q1 for spread in spreads], [spread.q3 - spread.median for spread in spreads]),
        color=[_OURS if _is_ours(row) else _THEIRS for row in rows],
        ecolor="#333333",
        capsize=3,
    )
    axes.set_yticks(places, [_labelled(row, machine) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.bar_label(bars, [f" {number(spread.median)}" for spread in spreads], padding=4)
    axes.set_xlabel(
        f"{metric.name} [{metric.unit}], {metric.better} is better; median and quartiles\n{_where(machine)}"
    )
    axes.set_title(_wrapped(f"{case.name}: {case.load}"), fontsize=9, loc="left")
    _save(figure, case, file)


def _draw_growth(case: CaseReport, metric: Metric, machine: Machine, file: Path) -> None:
    """A cost over the size: sizes by powers of ten, costs from zero."""
    rows = sorted((row for row in case.rows if metric.name in row.figures), key=lambda row: case.sizes[row.name])
    sizes = [case.sizes[row.name] for row in rows]
    spreads = [row.figures[metric.name].spread for row in rows]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        sizes,
        [spread.median for spread in spreads],
        yerr=([spread.median - spread.q1 for spread in spreads], [spread.q3 - spread.median for spread in spreads]),
        color=_OURS,
        ecolor="#333333",
        marker="o",
        capsize=3,
    )
    for size, spread in zip(sizes, spreads, strict=True):
        axes.annotate(
            number(spread.median), (size, spread.median), textcoords="offset points", xytext=(0, 8), ha="center"
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0, top=1.25 * max(spread.q3 for spread in spreads))
    axes.set_xlabel(f"instances\n{_where(machine)}")
    axes.set_ylabel(f"{metric.name} [{metric.unit}]")
    power = case.exponents.get(metric.name)
    fitted = "" if power is None else f"; fitted exponent {power:.2f}"
    axes.set_title(_wrapped(f"{case.name}: {case.load}{fitted}"), fontsize=9, loc="left")
    _save(figure, case, file)


def _save(figure: Figure, case: CaseReport, file: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    # The same figures give the same file; text stays text, which is small and can be found.
    with rc_context({"svg.hashsalt": case.name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib ends lines with spaces; nobody wants those in a diff.
    file.write_text("".join(f"{line.rstrip()}\n" for line in file.read_text().splitlines()))


def _is_ours(row: Row) -> bool:
    return row.name.startswith("homeport") or row.name in {"cached client", "catalogue", "blocked"}


def _labelled(row: Row, machine: Machine) -> str:
    version = machine.versions.get(row.name.split()[0])
    return f"{row.name} {version}" if version else row.name


def _wrapped(text: str) -> str:
    return re.sub(rf"(.{{1,{_LINE_CHARACTERS}}})(?:\s+|$)", r"\1\n", text).rstrip()


def page(reports: Sequence[Report]) -> str:
    """All of it as one page of Markdown, with the pictures and who was ahead of whom."""
    lines = ["# Benchmarks", "", _ABOUT, "", "## Machine", "", *(f"- {each}" for each in _machines(reports))]
    for report in reports:
        for case in report.cases:
            lines += [
                "",
                f"## {case.name}",
                "",
                f"{case.question[:1].upper()}{case.question[1:]}",
                "",
                f"{case.load}; {rounds(case)}.",
            ]
            lines += ["", *_case_table(case)]
            lines += ["", *(f"- **{row.name}**: {row.about}" for row in case.rows)]
            lines += [
                f"- {name} grows with the size to the power of {power:.2f}" for name, power in case.exponents.items()
            ]
            lines += [f"- {warning}" for warning in case.warnings]
            lines += [f"- {left.name} was skipped: {left.why}" for left in case.skipped]
            lines += [f"- {left.name} failed: {left.why}" for left in case.failed]
            for metric in case.metrics:
                if metric.headline and _drawn(case, metric):
                    lines += ["", f"![{case.name}, {metric.name}](benchmarks/{_file_name(case, metric)})"]
    return "\n".join([*lines, ""])


def _drawn(case: CaseReport, metric: Metric) -> bool:
    return any(metric.name in row.figures for row in case.rows)


def _case_table(case: CaseReport) -> list[str]:
    compared = [metric for metric in case.metrics if metric.headline]
    heads = ["", *(f"{metric.name} [{metric.unit}]" for metric in case.metrics)]
    heads += [f"ahead in {metric.name}" for metric in compared] + ["server", "generator"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in case.rows:
        cells = [row.name]
        for metric in case.metrics:
            figure = row.figures.get(metric.name)
            cells.append(
                f"{number(figure.spread.median)} ({number(figure.spread.q1)} to {number(figure.spread.q3)})"
                if figure
                else "-"
            )
        for metric in compared:
            lead = row.reference_ahead.get(metric.name)
            cells.append("-" if lead is None or row.name == case.reference else f"{number(lead.median)} x")
        cells += [f"{share.median:.0%}" if share else "-" for share in (row.server_share, row.generator_share)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def headlines(reports: Sequence[Report], names: Collection[str] = ()) -> str:
    """The questions that most people ask, everyone's answer (or theirs, who are named), and who is ahead."""
    cases = {case.name: case for report in reports for case in report.cases}
    lines = ["| | Homeport | others | Homeport ahead |", "|---|---|---|---|"]
    for name, metric_name, what in HEADLINES:
        case = cases.get(name)
        metric = next((each for each in case.metrics if each.name == metric_name), None) if case else None
        if case is None or metric is None:
            continue
        rows = {row.name: row for row in case.rows if metric_name in row.figures}
        ours = rows.pop(case.reference, None)
        others = [
            row
            for row in rows.values()
            if not _is_ours(row) and row.name != "direct" and (not names or row.name in names)
        ]
        if ours is None or not others:
            continue
        values = "; ".join(f"{row.name} {_value(row, metric)}" for row in others)
        leads = "; ".join(f"{row.name} {_lead(row, metric_name)}" for row in others)
        lines.append(f"| {what} | {_value(ours, metric)} | {values} | {leads} |")
    return "\n".join(lines)


def with_tables(text: str, reports: Sequence[Report]) -> str:
    """A page with its tables made anew; the one of everybody also says on what machine."""

    def table(found: re.Match[str]) -> str:
        if found["names"]:
            made = headlines(reports, found["names"].split(", "))
        else:
            made = "\n".join([headlines(reports), "", *(f"{each}." for each in _machines(reports))])
        return f"{found['begin']}{made}\n{found['end']}"

    return _MARKED.sub(table, text)


def _lead(row: Row, metric_name: str) -> str:
    """How far ahead the reference is; nothing can be said where it has a zero."""
    lead = row.reference_ahead.get(metric_name)
    return f"{number(lead.median)} x" if lead else "-"


def _value(row: Row, metric: Metric) -> str:
    return f"{number(row.figures[metric.name].spread.median)} {metric.unit.removesuffix('/op')}"


def _machines(reports: Sequence[Report]) -> list[str]:
    """Each machine with everything that took part; of what was there in several versions, all of them."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for report in reports:
        programs = found.setdefault(_where(report.machine), {})
        for name, version in report.machine.versions.items():
            programs.setdefault(name, {})[version] = None
    return [
        f"{where}; " + ", ".join(f"{name} {' and '.join(versions)}" for name, versions in programs.items())
        for where, programs in found.items()
    ]


def _where(machine: Machine) -> str:
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
    return f"{machine.cpu}, {cores}, Linux {machine.kernel}, {machine.python}, {machine.filesystem}"


def _file_name(case: CaseReport, metric: Metric) -> str:
    return f"{case.name.replace('/', '-')}-{metric.name}.svg"


def results() -> list[Report]:
    """The last results of everything."""
    return [decode(file.read_bytes()) for file in sorted(RESULTS.glob("*.json"))]


def main() -> int:
    """Draw whatever results there are."""
    reports = results()
    if not reports:
        print(f"there are no results in {RESULTS}; `make bench` makes some", file=sys.stderr)
        return 1
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        if not old.name.startswith(PROFILE):
            old.unlink()
    for report in reports:
        for case in report.cases:
            for metric in case.metrics:
                if metric.headline and _drawn(case, metric):
                    draw(case, metric, report.machine, PICTURES / _file_name(case, metric))
    PAGE.write_text(page(reports))
    for file in (README, COMPARISON):
        file.write_text(with_tables(file.read_text(), reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
