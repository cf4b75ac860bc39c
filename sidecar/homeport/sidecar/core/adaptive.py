"""An adaptive limit of concurrency: as many requests at a time as a service answers without queueing them.

When a service has more than it can work on, its answers take longer before anything fails. The limit shrinks by the
ratio of the usual time of an answer to that of the last window, and grows by a few requests while they are alike. It
does not grow when it is not needed, or a quiet night would end in no limit at all.
Source: the Gradient2 algorithm of Netflix's concurrency-limits.

Strategy: the data path adds to `answers` and `sum_s`; `sweep` closes a window and returns the limit.
"""

from __future__ import annotations

from typing import Final

from homeport.sidecar.core.settings import Adaptive

USUAL_WINDOWS: Final = 600  # windows over which the usual time of an answer is averaged: ten minutes of seconds
QUEUE: Final = 4  # requests that may wait beyond what is worked on: where growth comes from
SMOOTHING: Final = 0.2  # of a new limit that is taken at once
SHRINK_LEAST: Final = 0.5  # one bad window at most halves the limit that is aimed at
RECOVERED: Final = 2.0  # a usual time this many times the last one is of an overload that is over
FORGET: Final = 0.95  # and is brought down by this factor a window


class AdaptiveLimit:
    """The limit of one service."""

    __slots__ = ("_limit", "_next_s", "_peak", "_settings", "_usual_s", "_windows", "answers", "sum_s")

    def __init__(self, settings: Adaptive) -> None:
        self.answers = 0  # in this window
        self.sum_s = 0.0  # how long they took, to their first byte
        self._settings = settings
        self._limit = float(settings.initial)
        self._usual_s = 0.0
        self._windows = 0  # that the usual time was averaged over
        self._peak = 0  # most requests under way at a sweep of this window
        self._next_s = 0.0

    def sweep(self, now: float, active: int) -> int:
        """Account for `active` requests under way, and return how many there may be."""
        settings = self._settings
        self._peak = max(self._peak, active)
        if now >= self._next_s:
            self._next_s = now + settings.window_s
            if self.answers >= settings.answers_min:
                self._adjust(self.sum_s / self.answers)
            self.answers = 0
            self.sum_s = 0.0
            self._peak = active
        return int(self._limit)

    def _adjust(self, last_s: float) -> None:
        settings = self._settings
        self._windows = min(self._windows + 1, USUAL_WINDOWS)
        self._usual_s += (last_s - self._usual_s) / self._windows
        if self._usual_s > RECOVERED * last_s:
            self._usual_s *= FORGET
        gradient = max(SHRINK_LEAST, min(1.0, settings.tolerance * self._usual_s / last_s)) if last_s > 0 else 1.0
        wanted = self._limit * gradient + QUEUE
        if wanted > self._limit and self._peak < self._limit / 2:
            return
        limit = self._limit + SMOOTHING * (wanted - self._limit)
        self._limit = min(max(limit, float(settings.requests_min)), float(settings.requests_max))
