"""Who holds which lock for how long, and that nobody else does meanwhile.

A holder may act as one for the TTL that its last answered renewal promised, counted from when that was sent. Another
that takes the lock before that time is over, or whose token is not larger, breaks the one thing locks are for. After a
session has ended, by itself too, its locks stay closed for their delay, for what the former holder still has under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.trace import Trace

ROUNDING_S: Final = 1e-6
DELAY_S: Final = 3.0  # of the locks of sessions


@dataclass
class Holder:
    """One holding of one lock: until `valid_until`, for as long as `holds` says so, the holder may rely on it."""

    name: str
    lock: str
    token: int
    valid_until: float
    holds: Callable[[], bool] = lambda: True
    released: bool = False
    session: str = ""  # of Consul's, on which it is held


class Locks:
    """All locks of a run."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._holders: dict[str, list[Holder]] = {}
        self._closed_until: dict[str, float] = {}

    def taken(self, name: str, lock: str, token: int, decided: float, valid_until: float) -> Holder:
        """Somebody was told, or shown, that it holds a lock since a moment no later than `decided`."""
        holders = self._holders.setdefault(lock, [])
        for other in holders:
            if not other.released and decided < other.valid_until - ROUNDING_S and other.holds():
                self._trace.broken(
                    guarantees.LOCKS,
                    f"{name} took {lock} (token {token}) while {other.name} (token {other.token}) "
                    f"holds it for {other.valid_until - decided:.3f} s more",
                )
            if token <= other.token:
                self._trace.broken(
                    guarantees.LOCKS,
                    f"{name} took {lock} with token {token}, after token {other.token} of {other.name}",
                )
        if decided < self._closed_until.get(lock, 0.0) - ROUNDING_S:
            left_s = self._closed_until[lock] - decided
            self._trace.broken(guarantees.LOCKS, f"{name} took {lock} {left_s:.3f} s before its delay was over")
        holders[:] = [Holder(name, lock, token, valid_until)]
        return holders[0]

    def closed(self, lock: str, until: float) -> None:
        """The session that held a lock has ended: nobody gets it before its delay is over."""
        self._closed_until[lock] = max(until, self._closed_until.get(lock, 0.0))

    def session_ended(self, session: str, now: float) -> None:
        """A session is gone, by itself or because somebody asked: what it still held has its delay before it."""
        for lock, holders in self._holders.items():
            if any(one.session == session and not one.released for one in holders):
                self._trace.count("session ended with its lock")
                self.closed(lock, now + DELAY_S)

    def is_closed(self, lock: str, now: float) -> bool:
        """Whether its delay runs."""
        return now < self._closed_until.get(lock, 0.0)

    def forget(self) -> None:
        """A registry that keeps nothing has started anew."""
        self._holders.clear()
        self._closed_until.clear()
