"""Two-choice least request: draw two distinct endpoints, take the one that is well, then the one with less to do.

Two random choices bring nearly all of what comparing everyone would, without herding onto one host (Mitzenmacher,
"The Power of Two Choices", 1996). The two must be distinct: with replacement, a quarter of all picks between two hosts
would compare a host with itself. Health is compared before load, as in Finagle's `P2CPick`.

Load is `active + 1` over weight. Between unequal weights that alone would starve the lighter host whenever traffic is
thin (one request at a time always goes to the heaviest), so draws are weighted and an idle first draw is taken as it
is: shares follow the weights when idle, and equal out per unit of weight when busy. For equal weights this changes
nothing, since an idle host already has the least load there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import permutations
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates, E

REDRAWS_MAX: Final = 4  # with one very heavy host, the second draw repeats the first; then any other host will do
PAIRED_MAX: Final = 32  # up to 992 pairs, 8 KB of references, are kept ready; more would be slower to make than to use


class LeastRequest(Candidates[E]):
    """The default policy."""

    __slots__ = ("pairs",)

    def __init__(self, endpoints: Iterable[E] = ()) -> None:
        super().__init__(endpoints)
        # Every ordered pair: one draw then chooses both, and a tie is no advantage for anyone.
        paired = self.cumulative is None and 2 <= len(self.members) <= PAIRED_MAX
        self.pairs: tuple[tuple[E, E], ...] = tuple(permutations(self.members, 2)) if paired else ()

    def pick(self, rng: Rng, excluded: Collection[E] = (), now: float = 0.0, key: bytes | None = None) -> E | None:
        if excluded:  # rare: it follows a failure
            return _of_two(Candidates(member for member in self.members if member not in excluded), rng)
        pairs = self.pairs
        if not pairs:
            return _of_two(self, rng)
        first, second = pairs[int(rng.random() * len(pairs))]
        if first.suspect != second.suspect:
            return second if first.suspect else first
        return first if first.active <= second.active else second


def draw_two(candidates: Candidates[E], rng: Rng) -> tuple[int, int]:
    """The indices of two distinct members of at least two, each with a chance in proportion to its weight."""
    count = len(candidates.members)
    at = candidates.draw(rng)
    if candidates.cumulative is not None:
        for _ in range(REDRAWS_MAX):
            other = candidates.draw(rng)
            if other != at:
                return at, other
    return at, (at + 1 + int(rng.random() * (count - 1))) % count


def _of_two(candidates: Candidates[E], rng: Rng) -> E | None:
    members = candidates.members
    if len(members) < 2:
        return members[0] if members else None
    at, other = draw_two(candidates, rng)
    first, second = members[at], members[other]
    if first.suspect != second.suspect:
        return second if first.suspect else first
    if first.active == 0 or (first.active + 1) * second.weight <= (second.active + 1) * first.weight:
        return first
    return second
