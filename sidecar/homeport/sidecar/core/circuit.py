"""Circuit limits: how much one service may hold of this sidecar, counted in plain integers by the data path itself.

The data path compares and adds in place; no method stands between, since it does so for every request.
"""

from __future__ import annotations

from homeport.sidecar.core.settings import Circuit


class CircuitBreaker:
    """The counts of one service beside their limits."""

    __slots__ = (
        "connections", "connections_max", "overflows", "pending", "pending_max", "requests", "requests_max",
        "retries", "retries_max",
    )  # fmt: skip

    def __init__(self, settings: Circuit) -> None:
        self.limit(settings)
        self.requests = 0  # under way
        self.pending = 0  # of which: waiting for a new connection
        self.retries = 0  # of which: not the first try
        self.connections = 0  # open, idle ones included
        self.overflows = 0  # requests that were refused here

    def limit(self, settings: Circuit) -> None:
        """Set the limits; what is counted stays."""
        self.requests_max = settings.requests_max
        self.pending_max = settings.pending_max
        self.connections_max = settings.connections_max
        self.retries_max = settings.retries_max

    @property
    def may_connect(self) -> bool:
        """Whether one more connection may be opened."""
        return self.pending < self.pending_max and self.connections + self.pending < self.connections_max
