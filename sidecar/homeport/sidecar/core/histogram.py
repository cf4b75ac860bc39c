"""How long answers took, counted in fixed buckets: each bound is twice the one before, from a quarter of a millisecond.

The data path does `counts[bisect_left(BOUNDS_S, took_s)] += 1` in place, on a list of `SIZE` integers; everything else
is done when somebody asks. Doubling bounds keep every estimate within a factor of two, and usually far closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BOUNDS_S: Final[tuple[float, ...]] = tuple(
    0.000_25 * (1 << power) for power in range(18)
)  # to 32.8 s: past every first-byte timeout
SIZE: Final = len(BOUNDS_S) + 1  # the last one counts what took longer


def quantile(counts: Sequence[int], share: float) -> float | None:
    """How long `share` of the answers took at most, in seconds; None without any.

    Within a bucket, answers are taken to be spread evenly, as Prometheus' `histogram_quantile` does.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            if index == len(BOUNDS_S):
                break
            lower = BOUNDS_S[index - 1] if index else 0.0
            return lower + (BOUNDS_S[index] - lower) * (wanted - below) / count
        below += count
    return BOUNDS_S[-1]
