"""What a list of figures says: its median and quartiles, and how far one contender was ahead of another.

Pure arithmetic. Ratios are taken within a round and only then summarised, because contenders of one round shared the
machine's mood; and they are turned so that above one always means that the first did better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

Better = Literal["higher", "lower"]

_STEPS_PER_DOUBLING: Final = 32  # of a histogram: neighbouring buckets differ by 2.2 %, below any round's noise


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Median and quartiles; of one value, all three are that value."""

    median: float
    q1: float
    q3: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise figures of the same kind; between two of them it interpolates linearly.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("there is nothing to summarise")
    ordered = sorted(values)
    return Spread(_quantile(ordered, 0.5), _quantile(ordered, 0.25), _quantile(ordered, 0.75))


def ahead(reference: Sequence[float], other: Sequence[float], better: Better) -> list[float]:
    """How many times better the reference did than the other, round by round.

    Rounds in which the worse figure is zero say nothing and are left out.

    Raises:
        ValueError: they did not run the same rounds.
    """
    pairs = zip(reference, other, strict=True) if better == "higher" else zip(other, reference, strict=True)
    return [above / below for above, below in pairs if below > 0]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of the power law that fits best: the slope of log(cost) over log(size), by least squares.

    Raises:
        ValueError: there are not two different sizes, or a value is not positive.
    """
    if len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ValueError("a fit needs two different sizes, and positive values")
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def histogram(values: Iterable[float]) -> dict[int, int]:
    """Count positive values in buckets of equal ratio, so that several processes' can be added up."""
    counts: dict[int, int] = {}
    for value in values:
        bucket = math.ceil(math.log2(value) * _STEPS_PER_DOUBLING) if value > 0 else -(1 << 20)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merged(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The histogram of all their values together."""
    total: dict[int, int] = {}
    for each in histograms:
        for bucket, count in each.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def percentile(counts: Mapping[int, int], share: float) -> float:
    """The value below which that share (0 to 1) of a histogram lies: its bucket's upper end.

    Raises:
        ValueError: the histogram is empty.
    """
    rank = share * sum(counts.values())
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return float(2.0 ** (bucket / _STEPS_PER_DOUBLING))
    raise ValueError("there is nothing to summarise")
