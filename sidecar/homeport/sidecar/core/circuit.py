"""Circuit limits: how much one service may hold of this sidecar, counted in plain integers by the data path itself.

The data path compares and adds in place; no method stands between, since it does so for every request. Only who finds
all connections taken asks for more: it waits in `waiting`, first come, first served, until one is free or may be
opened. Who waits is `pending` like who connects, and `pending_max` bounds both.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from homeport.sidecar.core.settings import Circuit


class Waiter(Protocol):
    """Somebody who waits for a connection."""

    def connect(self) -> None:
        """There is room for a new one; `waiting` has been left."""


class CircuitBreaker:
    """The counts of one service beside their limits."""

    __slots__ = (
        "connections", "connections_max", "overflows", "pending", "pending_max", "requests", "requests_max",
        "retries", "retries_max", "waiting",
    )  # fmt: skip

    def __init__(self, settings: Circuit) -> None:
        self.requests = 0  # under way
        self.pending = 0  # of which: connecting, or waiting until they may
        self.waiting: deque[Waiter] = deque()
        self.retries = 0  # of which: not the first try
        self.connections = 0  # open, idle ones included
        self.overflows = 0  # requests that were refused here
        self.limit(settings)

    def limit(self, settings: Circuit) -> None:
        """Set the limits; what is counted stays."""
        self.requests_max = settings.requests_max
        self.pending_max = settings.pending_max
        self.connections_max = settings.connections_max
        self.retries_max = settings.retries_max
        self.admit()

    @property
    def may_connect(self) -> bool:
        """Whether one more connection may be opened."""
        return self.pending < self.pending_max and self._has_room

    @property
    def _has_room(self) -> bool:
        return self.connections + self.pending - len(self.waiting) < self.connections_max

    def wait(self, waiter: Waiter) -> bool:
        """Wait for a connection; False: too many do already."""
        if self.pending >= self.pending_max:
            return False
        self.pending += 1
        self.waiting.append(waiter)
        return True

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        self.waiting.remove(waiter)
        self.pending -= 1

    def connecting_ended(self) -> None:
        """A connection that was being opened is open, or will not be."""
        self.pending -= 1
        self.admit()

    def closed(self) -> None:
        """An open connection is gone."""
        self.connections -= 1
        self.admit()

    def admit(self) -> None:
        """Let those connect who have waited longest, as far as there is room."""
        while self.waiting and self._has_room:
            self.waiting.popleft().connect()
