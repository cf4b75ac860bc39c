"""Smooth weighted round robin: exact shares, and the heavy host's turns spread between those of the others.

Each step credits every host with its weight, takes the one that has most, and charges it the sum of all weights:
weights 5, 1, 1 give a a b a c a a instead of a a a a a b c (nginx's algorithm, by Igor Sysoev). The sequence repeats
after sum/gcd steps, so it is written down while it is played the first time, and replayed in O(1) after that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import gcd
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates, E

SCALE: Final = 100  # weights count in hundredths, which is as fine as slow start makes them
PERIOD_MAX: Final = 4096  # picks that are written down; beyond it, each pick walks all hosts


class RoundRobin(Candidates[E]):
    """One turn after the other. Starts at a random turn, so that a thousand sidecars do not start with one host."""

    __slots__ = ("_credits", "_period", "_played", "_turn", "_weights")

    def __init__(self, endpoints: Iterable[E] = ()) -> None:
        super().__init__(endpoints)
        weights = [max(1, round(member.weight * SCALE)) for member in self.members]
        divisor = gcd(*weights) or 1
        self._weights = [weight // divisor for weight in weights]
        self._period = sum(self._weights)
        self._credits = [0] * len(weights)
        self._played: list[E] = []
        self._turn = -1  # not begun

    def pick(self, rng: Rng, excluded: Collection[E] = (), now: float = 0.0, key: bytes | None = None) -> E | None:
        if excluded:  # a retry takes nobody's turn
            others = [member for member in self.members if member not in excluded]
            return others[Candidates(others).draw(rng)] if others else None
        if not self.members:
            return None
        if self._turn < 0:
            self._turn = 0
            for _ in range(int(rng.random() * min(self._period, PERIOD_MAX))):
                self._next()
        return self._next()

    def _next(self) -> E:
        if len(self._played) == self._period:
            turn = self._turn
            self._turn = turn + 1 if turn + 1 < self._period else 0
            return self._played[turn]
        owned = self._credits
        for at, weight in enumerate(self._weights):
            owned[at] += weight
        best = owned.index(max(owned))
        owned[best] -= self._period
        if self._period <= PERIOD_MAX:
            self._played.append(self.members[best])
        return self.members[best]
