"""Counts calls and their latencies, and says when there is enough; shared by all connections of a generator process."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from itertools import cycle
from typing import Generic, TypeVar

from benchmarks.load.plan import Outcome
from benchmarks.spread import histogram

T = TypeVar("T")


class Meter(Generic[T]):
    """A closed loop's book-keeping.

    Args:
        calls: what to ask, over and over, in this order.
        operations_max: after so many calls there is no next one; 0: until `stop`.
    """

    def __init__(self, calls: Sequence[T], operations_max: int) -> None:
        self.now = time.perf_counter
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = cycle(calls)
        self._left = operations_max or 1 << 62
        self._in_flight = 0
        self._failed = 0
        self._first_error = b""
        self._latencies_s = array("d")

    def start(self) -> None:
        """Start the clocks."""
        self._cpu_at = time.process_time()
        self._started_at = self._ended_at = self.now()

    def next_call(self) -> T | None:
        """What to ask next, or None: that is all."""
        if self._left <= 0:
            return None
        self._left -= 1
        self._in_flight += 1
        return next(self._calls)

    def answered(self, latency_s: float, error: bytes = b"") -> None:
        """A call came back, with an error if there are words for one."""
        self._in_flight -= 1
        self._latencies_s.append(latency_s)
        if error:
            self._failed += 1
            self._first_error = self._first_error or error

    def turned(self) -> None:
        """Everything that was answered has been asked again, as far as there is more: is it the end?"""
        if not self._in_flight and self._left <= 0 and not self.finished.done():
            self._ended_at = self.now()
            self._cpu_s = time.process_time() - self._cpu_at
            self.finished.set_result(None)

    def stop(self) -> None:
        """No more calls; the end is when those in flight are answered."""
        self._left = 0
        self.turned()

    def broke(self) -> None:
        """A connection was lost: nothing that is measured now would mean anything."""
        if not self.finished.done():
            self.finished.set_exception(ConnectionError("the server closed a connection under load"))

    def outcome(self) -> Outcome:
        """What was done, once `finished`; all that was answered, over the time until the last answer."""
        return Outcome(
            operations=len(self._latencies_s),
            failed=self._failed,
            wall_s=self._ended_at - self._started_at,
            cpu_s=self._cpu_s,
            latencies_us=histogram(latency_s * 1e6 for latency_s in self._latencies_s),
            first_error=self._first_error.decode("utf-8", "backslashreplace"),
        )
