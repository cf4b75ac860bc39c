"""What a run leaves behind: its trace, the named events that occurred in it, and the guarantees that it broke."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LINES_MAX: Final = 200_000  # of one trace: a thousand times an ordinary one; past it a run is out of hand
VIOLATIONS_MAX: Final = 20  # the first says it, the next may help, and more are echoes


class OutOfHand(Exception):
    """A run does so much that something in it must be going round in circles."""


@dataclass(frozen=True)
class Violation:
    """A guarantee that did not hold.

    Attributes:
        guarantee: one of the names in `guarantees.py`.
        at: virtual seconds after the start.
        what: what was seen, and what it should have been.
    """

    guarantee: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.guarantee}: at {self.at:.3f} s: {self.what}"


class Trace:
    """The course of one run.

    Args:
        now: virtual seconds after the start.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.lines: list[str] = []
        self.events: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.over = False  # what dead processes still say while they are buried is nobody's concern

    def note(self, line: str) -> None:
        """Something happened that a reader wants to see; nothing in it may depend on addresses or hashes."""
        if self.over:
            return
        if len(self.lines) >= LINES_MAX:
            raise OutOfHand(f"{LINES_MAX} lines, the last: {line}")
        self.lines.append(f"{self._now():10.6f} {line}")

    def count(self, event: str) -> None:
        """A named event occurred: one of `coverage.EVENTS`."""
        self.events[event] += 1

    def broken(self, guarantee: str, what: str) -> None:
        """A guarantee does not hold."""
        if self.over:
            return
        self.note(f"BROKEN {guarantee}: {what}")
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(guarantee, self._now(), what))

    def hash(self) -> str:
        """Of everything noted: equal for equal runs."""
        return hashlib.blake2b("\n".join(self.lines).encode(), digest_size=16).hexdigest()
