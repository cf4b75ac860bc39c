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

from collections.abc import Collection
from typing import Final, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates, Load

E = TypeVar("E", bound=Load)

REDRAWS_MAX: Final = 4  # with one very heavy host, the second draw repeats the first; then any other host will do


def least_request(candidates: Candidates[E], rng: Rng, excluded: Collection[E] = ()) -> E | None:
    """Pick an endpoint outside `excluded`, or None when there is none. Changes nothing; the caller counts the load."""
    if excluded:
        candidates = candidates.without(excluded)
    members = candidates.members
    count = len(members)
    if count < 2:
        return members[0] if members else None
    if candidates.cumulative is None:
        at = int(rng.random() * count)
        first = members[at]
        second = members[(at + 1 + int(rng.random() * (count - 1))) % count]
        if first.suspect != second.suspect:
            return second if first.suspect else first
        return first if first.active <= second.active else second
    return _weighted(candidates, rng)


def _weighted(candidates: Candidates[E], rng: Rng) -> E:
    members = candidates.members
    at = candidates.draw(rng)
    other = at
    for _ in range(REDRAWS_MAX):
        other = candidates.draw(rng)
        if other != at:
            break
    else:
        other = (at + 1 + int(rng.random() * (len(members) - 1))) % len(members)
    first, second = members[at], members[other]
    if first.suspect != second.suspect:
        return second if first.suspect else first
    if first.active == 0 or (first.active + 1) * second.weight <= (second.active + 1) * first.weight:
        return first
    return second
