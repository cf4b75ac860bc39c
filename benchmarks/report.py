"""What a run leaves: one JSON document of a versioned schema, and the same as plain tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.case import Case, Metric, Turn
from benchmarks.machine import Machine
from benchmarks.spread import Spread, ahead, exponent, spread

SCHEMA: Final = 1  # raised when a reader of the previous one would misread a field
GENERATOR_SHARE_MAX: Final = 0.9  # past this, the generator may be what limits
_BUSY_SHARE_MIN: Final = 0.5  # below this, neither is what limits


class Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contender without figures, and why."""

    name: str
    why: str


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A metric of one contender: each round's value, and their spread."""

    rounds: list[float]
    spread: Spread


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One contender. `reference_ahead`: how many times better the reference did, by metric; above 1 it is ahead."""

    name: str
    about: str
    figures: dict[str, Figure]
    reference_ahead: dict[str, Spread]
    server_share: Spread | None
    generator_share: Spread | None


class CaseReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question and its answer."""

    name: str
    question: str
    load: str
    reference: str
    rounds: int
    metrics: list[Metric]
    rows: list[Row]
    skipped: list[Left]
    failed: list[Left]
    warnings: list[str]
    sizes: dict[str, int] = {}  # what the contenders differ in, if it is a number
    exponents: dict[str, float] = {}  # by metric: that of the power law that fits its medians best


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole run."""

    schema: int = SCHEMA
    started_at: str
    quick: bool
    machine: Machine
    cases: list[CaseReport]


def summarise(
    case: Case, turns: Mapping[str, Sequence[Turn]], skipped: list[Left], failed: list[Left], *, one_core: bool
) -> CaseReport:
    """Turn everyone's turns into rows, each compared with the reference round by round."""
    warnings = list(case.notes)
    if one_core:
        warnings.append("there is only one core: servers and generators took time from each other")
    reference = turns.get(case.reference, ())
    rows = []
    for contender in case.contenders:
        mine = turns.get(contender.name, ())
        if not mine:
            continue
        figures: dict[str, Figure] = {}
        lead: dict[str, Spread] = {}
        for metric in case.metrics:
            values = [turn.figures[metric.name] for turn in mine if metric.name in turn.figures]
            if not values:
                continue
            figures[metric.name] = Figure(values, spread(values))
            theirs = [turn.figures[metric.name] for turn in reference if metric.name in turn.figures]
            if len(theirs) == len(values) and (ratios := ahead(theirs, values, metric.better)):
                lead[metric.name] = spread(ratios)
        served, share = (
            _share(shares) for shares in zip(*((it.server_share, it.generator_share) for it in mine), strict=True)
        )
        if share is not None and share.median > GENERATOR_SHARE_MAX:
            warnings.append(
                f"{contender.name}: the generator used {share.median:.0%} of its core, so the server may not have "
                "been at its limit; server CPU per operation holds, the rate is a lower bound"
            )
        if "rate" in figures and served and share and max(served.median, share.median) < _BUSY_SHARE_MIN:
            warnings.append(
                f"{contender.name}: server and generator used {served.median:.0%} and {share.median:.0%} of their "
                "cores: the rate is limited by waiting (for a disk, or for one another), or by other programs"
            )
        rows.append(Row(contender.name, contender.about, figures, lead, served, share))
    rounds = max((len(mine) for mine in turns.values()), default=0)
    return CaseReport(
        case.name,
        case.question,
        case.load,
        case.reference,
        rounds,
        list(case.metrics),
        rows,
        skipped,
        failed,
        warnings,
        sizes=dict(case.sizes),
        exponents=_exponents(case, rows),
    )


def _exponents(case: Case, rows: Sequence[Row]) -> dict[str, float]:
    found = {}
    for metric in case.metrics:
        points = [
            (case.sizes[row.name], row.figures[metric.name].spread.median)
            for row in rows
            if row.name in case.sizes and metric.name in row.figures
        ]
        if len({size for size, _ in points}) > 1 and all(cost > 0 for _, cost in points):
            found[metric.name] = exponent([size for size, _ in points], [cost for _, cost in points])
    return found


def _share(shares: Iterable[float | None]) -> Spread | None:
    known = [share for share in shares if share is not None]
    return spread(known) if known else None


def encode(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode(data: bytes) -> Report:
    """A report that `encode` wrote.

    Raises:
        ValueError: it is not one, or of another schema.
    """
    report = msgspec.json.decode(data, type=Report)
    if report.schema != SCHEMA:
        raise ValueError(f"schema {report.schema}; this reads schema {SCHEMA}")
    return report


def table(case: CaseReport) -> str:
    """A case as text: medians with quartiles, and how many times better the reference did."""
    heads = ["", *(f"{metric.name} [{metric.unit}]" for metric in case.metrics), "server", "generator"]
    compared = [metric for metric in case.metrics if metric.headline]
    heads += [f"ahead in {metric.name}" for metric in compared]
    lines = [heads]
    for row in case.rows:
        cells = [row.name]
        for metric in case.metrics:
            figure = row.figures.get(metric.name)
            cells.append(_spread(figure.spread) if figure else "-")
        cells += [f"{share.median:.0%}" if share else "-" for share in (row.server_share, row.generator_share)]
        for metric in compared:
            lead = row.reference_ahead.get(metric.name)
            cells.append("-" if lead is None or row.name == case.reference else f"{_spread(lead)} x")
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    aligned = [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text = [
        f"{case.name}: {case.question}",
        f"  load: {case.load}",
        f"  {rounds(case)}, median (quartiles)",
        f"  server, generator: share of a core in use; ahead: how many times better {case.reference} did",
        *(f"  {line.rstrip()}" for line in aligned),
        *(f"  {row.name}: {row.about}" for row in case.rows),
        *(f"  {name} grows with the size to the power of {power:.2f}" for name, power in case.exponents.items()),
        *(f"  note: {warning}" for warning in case.warnings),
        *(f"  skipped: {left.name}: {left.why}" for left in case.skipped),
        *(f"  failed: {left.name}: {left.why}" for left in case.failed),
    ]
    return "\n".join(text)


def rounds(case: CaseReport) -> str:
    """How many counted, in words."""
    return f"{case.rounds} round{'' if case.rounds == 1 else 's'}"


def _spread(it: Spread) -> str:
    return f"{number(it.median)} ({number(it.q1)}-{number(it.q3)})"


def number(value: float) -> str:
    """Three significant digits, and no more digits than that after the point."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3g}"
