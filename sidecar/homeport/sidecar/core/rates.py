"""A token bucket: so many requests a second, and a burst of them after a pause."""

from __future__ import annotations


class TokenBucket:
    """Full at first. Tokens come back with time, never more than `burst`."""

    __slots__ = ("_at_s", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at_s = float("-inf")

    def take(self, now: float) -> float:
        """Take a token, and return 0; or take none, and return in how many seconds there will be one."""
        if now > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now - self._at_s) * self._per_s)
            self._at_s = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s
