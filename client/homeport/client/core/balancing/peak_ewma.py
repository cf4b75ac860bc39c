"""Peak-EWMA: of two drawn endpoints, take the one whose latency times its queue is less.

The average is sensitive to peaks: a sample above it sets it at once, one below lets it decay with a time constant, so
a host that becomes slow is left within one answer and comes back slowly. Time without answers is good news too: a
read first observes 0, so that an avoided host's cost sinks until somebody tries it again. Weights decide how often a
host is drawn and how long its queue counts, so that they hold when idle and when busy.
Source: Finagle's `PeakEwma` (Twitter), also in Tower's `load` module.
"""

from __future__ import annotations

from collections.abc import Collection
from math import exp
from typing import Final, Protocol, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates, Load
from homeport.client.core.balancing.least_request import draw_two

TAU_S: Final = 10.0  # an average forgets 63 % of a peak in this time; Finagle's default
# What a newcomer is thought to take. It fades like a measurement: a first fast answer does not outrun those who have
# not answered yet, or they would never be asked.
SEED_S: Final = 0.030
UNMEASURED_S: Final = 1e6  # without an answer, but with requests under way: anything that was measured is better


class Latency:
    """The decaying peak of one endpoint's latencies, in seconds."""

    __slots__ = ("_at_s", "_average_s", "_measured", "_tau_s")

    def __init__(self, now: float, tau_s: float = TAU_S) -> None:
        self._average_s = SEED_S
        self._at_s = now
        self._measured = False
        self._tau_s = tau_s

    def observe(self, sample_s: float, now: float) -> None:
        """Take in how long an answer took."""
        self._measured = True
        average_s = self._average_s
        if sample_s >= average_s:
            self._average_s = sample_s
        else:
            kept = exp((self._at_s - now) / self._tau_s) if now > self._at_s else 1.0
            self._average_s = average_s * kept + sample_s * (1.0 - kept)
        self._at_s = max(now, self._at_s)

    def cost(self, pending: float, now: float) -> float:
        """What one more request would cost, with `pending` under way."""
        if pending and not self._measured:
            return UNMEASURED_S * (pending + 1)
        if now > self._at_s:
            self._average_s *= exp((self._at_s - now) / self._tau_s)
            self._at_s = now
        return self._average_s * (pending + 1)


class Measured(Load, Protocol):
    """An endpoint whose answers are timed."""

    @property
    def latency(self) -> Latency | None: ...


M = TypeVar("M", bound=Measured)


class PeakEwma(Candidates[M]):
    """Two choices by cost. An endpoint whose `latency` is None counts as unmeasured."""

    __slots__ = ()

    def pick(self, rng: Rng, excluded: Collection[M] = (), now: float = 0.0, key: bytes | None = None) -> M | None:
        candidates: Candidates[M] = self
        if excluded:  # rare: it follows a failure
            candidates = Candidates(member for member in self.members if member not in excluded)
        members = candidates.members
        if len(members) < 2:
            return members[0] if members else None
        at, other = draw_two(candidates, rng)
        first, second = members[at], members[other]
        if first.suspect != second.suspect:
            return second if first.suspect else first
        if candidates.cumulative is None:
            return first if _cost(first, first.active, now) <= _cost(second, second.active, now) else second
        mean = candidates.cumulative[-1] / len(members)
        first_pending, second_pending = first.active * mean / first.weight, second.active * mean / second.weight
        return first if _cost(first, first_pending, now) <= _cost(second, second_pending, now) else second


def _cost(endpoint: Measured, pending: float, now: float) -> float:
    latency = endpoint.latency
    if latency is None:
        return (UNMEASURED_S if pending else SEED_S) * (pending + 1)
    return latency.cost(pending, now)
