"""What every policy chooses from: the endpoints that may take traffic now, prepared once per change of membership.

Membership changes a few times a minute and picks happen thousands of times a second, so all that depends only on
membership (who counts, the running sums of the weights) is computed here, and a pick stays O(1) or O(log n).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate
from typing import Generic, Protocol, TypeAlias, TypeVar

from homeport.client.core.backoff import Rng


class Load(Protocol):
    """What a policy may know of an endpoint.

    `active` counts requests from the moment of selection, so one that is still connecting is visible. `suspect` says
    that the endpoint failed lately: a host that fails fast has nothing under way, and must not look idle for it.
    """

    @property
    def active(self) -> int: ...
    @property
    def weight(self) -> int: ...
    @property
    def suspect(self) -> bool: ...


E = TypeVar("E", bound=Load)


class Candidates(Generic[E]):
    """An immutable choice of endpoints. Weight 0 takes no traffic while others are there; all zeros are equal."""

    __slots__ = ("cumulative", "members")

    def __init__(self, endpoints: Iterable[E] = ()) -> None:
        everyone = tuple(endpoints)
        weighted = tuple(endpoint for endpoint in everyone if endpoint.weight > 0)
        self.members: tuple[E, ...] = weighted or everyone
        weights = [endpoint.weight for endpoint in weighted]
        # None: all weights are equal, which needs neither sums nor divisions.
        self.cumulative: list[int] | None = list(accumulate(weights)) if len(set(weights)) > 1 else None

    def draw(self, rng: Rng) -> int:
        """The index of one member, with a chance in proportion to its weight."""
        if self.cumulative is None:
            return int(rng.random() * len(self.members))
        return bisect_right(self.cumulative, rng.random() * self.cumulative[-1])

    def without(self, excluded: Collection[E]) -> Candidates[E]:
        """The same choice without some endpoints; for the rare pick that follows a failure."""
        return Candidates(member for member in self.members if member not in excluded)


Policy: TypeAlias = Callable[[Candidates[E], Rng, Collection[E]], E | None]
