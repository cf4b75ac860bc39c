"""What every policy is: a choice of endpoints, prepared once per change of membership, that picks one per request.

Membership changes a few times a minute and picks happen thousands of times a second, so all that depends only on
membership (who counts, running sums of weights, pairs, tables) is computed when a choice is made, and a pick stays
O(1) or O(log n). A choice is never changed afterwards but replaced; only what the endpoints count themselves moves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from homeport.client.core.backoff import Rng


class Load(Protocol):
    """What a policy may know of an endpoint.

    `active` counts requests from the moment of selection, so one that is still connecting is visible. `suspect` says
    that the endpoint failed lately: a host that fails fast has nothing under way, and must not look idle for it.
    """

    @property
    def active(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def suspect(self) -> bool: ...


E = TypeVar("E", bound=Load)


class Candidates(Generic[E]):
    """The base of all policies. Weight 0 takes no traffic while others are there; all zeros are equal."""

    __slots__ = ("cumulative", "members")

    def __init__(self, endpoints: Iterable[E] = ()) -> None:
        everyone = tuple(endpoints)
        weighted = tuple(endpoint for endpoint in everyone if endpoint.weight > 0)
        self.members: tuple[E, ...] = weighted or everyone
        weights = [endpoint.weight for endpoint in weighted]
        # None: all weights are equal, which needs neither sums nor divisions.
        self.cumulative: list[float] | None = list(accumulate(weights)) if len(set(weights)) > 1 else None

    def pick(self, rng: Rng, excluded: Collection[E] = (), now: float = 0.0, key: bytes | None = None) -> E | None:
        """Pick an endpoint outside `excluded`, or None when there is none. The caller counts the load.

        Args:
            now: Read by policies that remember latencies.
            key: What belongs together goes to one endpoint; read by policies that hash.
        """
        raise NotImplementedError

    def draw(self, rng: Rng) -> int:
        """The index of one member, with a chance in proportion to its weight."""
        if self.cumulative is None:
            return int(rng.random() * len(self.members))
        return bisect_right(self.cumulative, rng.random() * self.cumulative[-1])
