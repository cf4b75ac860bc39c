"""What the demo counts, and the one line of JSON it ends with. Pure.

A failure is what a user saw: no answer, an answer that says no, or a wrong one. It is `unsafe` when its answer had
already begun and the log of a killed process shows that the request had been delivered there: nothing in front of that
process could have tried again. Any other failure is `failed`, and one is too many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

LATENCIES_MAX: Final = 200_000  # some 2 MB, and more than the demo can ask for in its minute


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that did not get what it was owed."""

    request_id: str
    action: str
    reason: str
    began: bool  # the answer had begun when it broke off


@dataclass(slots=True)
class Tally:
    """Counted while the load runs."""

    requests: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    served_by: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def done(self, action: str, latency_ms: float, served_by: str) -> None:
        """A request was answered as it should be, by the instance of that name."""
        self._count(action, latency_ms)
        self.served_by[served_by] += 1

    def failed(self, failure: Failure, latency_ms: float) -> None:
        """A request was not."""
        self._count(failure.action, latency_ms)
        self.failures.append(failure)

    def _count(self, action: str, latency_ms: float) -> None:
        self.requests += 1
        self.actions[action] += 1
        if len(self.latencies_ms) < LATENCIES_MAX:
            self.latencies_ms.append(latency_ms)


def split_failures(failures: Sequence[Failure], delivered: Collection[str]) -> tuple[list[Failure], list[Failure]]:
    """Return the failures that count and the unsafe ones, given the request ids in the logs of killed processes."""
    unsafe = [failure for failure in failures if failure.began and failure.request_id in delivered]
    return [failure for failure in failures if failure not in unsafe], unsafe


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed; 0.0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
