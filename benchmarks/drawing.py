"""Reports as pictures and as Markdown: bars from zero, one per contender, with quartiles and everyone's version.

`python -m benchmarks.drawing` reads benchmarks/results/*.json, draws into docs/benchmarks/, writes docs/benchmarks.md
and replaces README's table, which stands between two comments.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.case import HEADLINES, Metric
from benchmarks.machine import Machine
from benchmarks.report import CaseReport, Report, Row, decode, number
from benchmarks.servers import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"
_PICTURES: Final = ROOT / "docs" / "benchmarks"
_PAGE: Final = ROOT / "docs" / "benchmarks.md"
PROFILE: Final = "profile-"  # begins the names of pictures that `benchmarks.profile` makes
_README: Final = ROOT / "README.md"
_BEGIN: Final = "<!-- benchmarks: begin -->"
_END: Final = "<!-- benchmarks: end -->"
_ABOUT: Final = (
    "Made by `make bench`, which measures everyone on the same machine in alternating rounds and draws what it found; "
    "`benchmarks/results/` holds every round. Ratios are taken within a round; above 1, Homeport is ahead. CPU is that "
    "of the server alone."
)
_OURS: Final = "#2a6f97"
_THEIRS: Final = "#b0b7bd"
_LINE_CHARACTERS: Final = 84  # of a title


def draw(case: CaseReport, metric: Metric, machine: Machine, file: Path) -> None:
    """One picture: a metric of a case, everyone who has it."""
    if case.sizes:
        _draw_growth(case, metric, file)
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
    axes.set_xlabel(f"{metric.name} [{metric.unit}], {metric.better} is better; median and quartiles")
    axes.set_title(_wrapped(f"{case.name}: {case.load}"), fontsize=9, loc="left")
    _save(figure, case, file)


def _draw_growth(case: CaseReport, metric: Metric, file: Path) -> None:
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
    axes.set_xlabel("instances")
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
    lines = ["# Benchmarks", "", _ABOUT]
    for report in reports:
        for case in report.cases:
            lines += [
                "",
                f"## {case.name}",
                "",
                f"{case.question[:1].upper()}{case.question[1:]}",
                "",
                f"{case.load}; {case.rounds} rounds.",
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
    machines = {_machine(report.machine): None for report in reports}
    lines += ["", "## Machine", "", *(f"- {each}" for each in machines), ""]
    return "\n".join(lines)


def _drawn(case: CaseReport, metric: Metric) -> bool:
    return any(metric.name in row.figures for row in case.rows)


def _case_table(case: CaseReport) -> list[str]:
    compared = [metric for metric in case.metrics if metric.headline]
    heads = ["", *(f"{metric.name} [{metric.unit}]" for metric in case.metrics)]
    heads += [f"ahead in {metric.name}" for metric in compared]
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
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def headlines(reports: Sequence[Report]) -> str:
    """README's table: the questions that most people ask, everyone's answer, and who is ahead."""
    cases = {case.name: case for report in reports for case in report.cases}
    lines = ["| | Homeport | others | Homeport ahead |", "|---|---|---|---|"]
    for name, metric_name, what in HEADLINES:
        case = cases.get(name)
        metric = next((each for each in case.metrics if each.name == metric_name), None) if case else None
        if case is None or metric is None:
            continue
        rows = {row.name: row for row in case.rows if metric_name in row.figures}
        ours = rows.pop(case.reference, None)
        others = [row for row in rows.values() if not _is_ours(row) and row.name != "direct"]
        if ours is None or not others:
            continue
        values = "; ".join(f"{row.name} {_value(row, metric)}" for row in others)
        leads = "; ".join(f"{row.name} {_lead(row, metric_name)}" for row in others)
        lines.append(f"| {what} | {_value(ours, metric)} | {values} | {leads} |")
    lines += [
        "",
        *(f"{_machine(machine)}." for machine in {report.machine.cpu: report.machine for report in reports}.values()),
    ]
    return "\n".join(lines)


def _lead(row: Row, metric_name: str) -> str:
    """How far ahead the reference is; nothing can be said where it has a zero."""
    lead = row.reference_ahead.get(metric_name)
    return f"{number(lead.median)} x" if lead else "-"


def _value(row: Row, metric: Metric) -> str:
    return f"{number(row.figures[metric.name].spread.median)} {metric.unit.removesuffix('/op')}"


def _machine(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    where = f"{machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, {machine.python}, {machine.filesystem}"
    return f"{where}; {versions}"


def _file_name(case: CaseReport, metric: Metric) -> str:
    return f"{case.name.replace('/', '-')}-{metric.name}.svg"


def main() -> int:
    """Draw whatever results there are."""
    reports = [decode(file.read_bytes()) for file in sorted(RESULTS.glob("*.json"))]
    if not reports:
        print(f"there are no results in {RESULTS}; `make bench` makes some", file=sys.stderr)
        return 1
    _PICTURES.mkdir(parents=True, exist_ok=True)
    for old in _PICTURES.glob("*.svg"):
        if not old.name.startswith(PROFILE):
            old.unlink()
    for report in reports:
        for case in report.cases:
            for metric in case.metrics:
                if metric.headline and _drawn(case, metric):
                    draw(case, metric, report.machine, _PICTURES / _file_name(case, metric))
    _PAGE.write_text(page(reports))
    readme = _README.read_text()
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        _README.write_text(f"{before}{begin}\n{headlines(reports)}\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
