"""When to try again: decorrelated jitter, which spreads a crowd that lost the same server at the same moment.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: sleep = min(cap, uniform(base, 3 x last sleep)).
"""

from __future__ import annotations

from typing import Final, Protocol

BASE_S: Final = 0.05
CAP_S: Final = 5.0  # half of the default TTL: a registry that comes back is found before its leases' grace ends


class Rng(Protocol):
    """The part of `random.Random` that decisions draw from."""

    def random(self) -> float: ...
    def uniform(self, a: float, b: float) -> float: ...
    def randrange(self, stop: int, /) -> int: ...


class Backoff:
    """The next delay after each failure, in seconds; `reset` after a success."""

    __slots__ = ("_base_s", "_cap_s", "_last_s", "_rng")

    def __init__(self, rng: Rng, base_s: float = BASE_S, cap_s: float = CAP_S) -> None:
        self._rng = rng
        self._base_s = base_s
        self._cap_s = cap_s
        self._last_s = base_s

    def next_s(self) -> float:
        """Return the delay before the next try."""
        self._last_s = min(self._cap_s, self._rng.uniform(self._base_s, self._last_s * 3))
        return self._last_s

    def reset(self) -> None:
        self._last_s = self._base_s
