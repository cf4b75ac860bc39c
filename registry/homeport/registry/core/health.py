"""What a check's results mean: verdicts, hysteresis, the status of the whole, and when to look again.

A result is what one look at an instance found; a status is what the registry says of it. `CheckState` stands between
the two, so that one lost packet takes nobody out and one lucky answer lets nobody in.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Final

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.model import OUTPUT_BYTES_MAX, SEVERITY, Check, Status

JITTER: Final = 0.1  # of the interval, both ways: checks that started together drift apart, none runs notably late
OUTPUT_INTERVAL_S: Final = 300.0  # output alone is written this often per check at most: 33 writes/s for 10,000 checks
CUT_MARK: Final = " [cut]"

_WARNING: Final = SEVERITY["warning"]
_STATUS: Final[tuple[Status, ...]] = tuple(sorted(SEVERITY, key=SEVERITY.__getitem__))


class Verdict(msgspec.Struct, frozen=True):
    """A status and the words for it; `output` is at most 4 KiB of UTF-8, and ends in a mark where more was cut off."""

    status: Status
    output: str = ""
    refused: bool = False  # the target's host answered that nobody listens there: the process is gone, not slow

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "output", capped(self.output))


def capped(text: str) -> str:
    """The text as valid UTF-8 of at most `OUTPUT_BYTES_MAX` bytes, cut between characters and marked as cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= OUTPUT_BYTES_MAX:
        return data.decode()
    return data[: OUTPUT_BYTES_MAX - len(CUT_MARK)].decode("utf-8", "ignore") + CUT_MARK


class CheckState:
    """The status of one check, moved by results in a row.

    The rule, for any mixture of results: the status becomes worse when the last `critical_after` results all are
    worse than it, and then is the mildest of them; it becomes better when the last `passing_after` results all are
    better than it, and then is the worst of them. So warning takes `critical_after` results in a row when it comes
    after passing and `passing_after` when it comes after critical; warning and critical by turns are no excuse for
    staying at passing. With `warning_after`, that many results in a row worse than passing already make it a warning,
    whatever they are. It holds from the first result on: before there are enough of them nothing moves.

    The mildest of a row never exceeds its last result, nor does the worst of another fall below it; so at most one
    of the two can ask for a change.
    """

    __slots__ = ("_critical_after", "_level", "_most", "_passing_after", "_recent", "_warning_after")

    def __init__(self, check: Check, status: Status | None = None) -> None:
        """Begin at `status`, or at the check's `initial`, with no result yet."""
        self._passing_after = check.passing_after
        self._critical_after = check.critical_after
        self._warning_after = check.warning_after or check.critical_after
        self._most = max(self._passing_after, self._critical_after, self._warning_after)
        self._level = SEVERITY[status or check.initial]
        self._recent = bytearray()  # severities of the last results, as many as the longest threshold asks for

    @property
    def status(self) -> Status:
        return _STATUS[self._level]

    def observe(self, status: Status) -> Status | None:
        """Take a result in; return the new status if it changed."""
        recent = self._recent
        recent.append(SEVERITY[status])
        if len(recent) > self._most:
            del recent[0]
        level = self._level
        if len(recent) >= self._warning_after:
            level = max(level, min(_WARNING, *recent[-self._warning_after :]))
        if len(recent) >= self._critical_after:
            level = max(level, min(recent[-self._critical_after :]))
        if len(recent) >= self._passing_after:
            level = min(level, max(recent[-self._passing_after :]))
        return self._move(level)

    @property
    def recent(self) -> tuple[Status, ...]:
        """The last results that still count, oldest first."""
        return tuple(_STATUS[level] for level in self._recent)

    def force(self, status: Status) -> Status | None:
        """Set a status known for certain, whatever was seen before; return it if it is new. Counting starts anew."""
        self._recent.clear()
        return self._move(SEVERITY[status])

    def _move(self, level: int) -> Status | None:
        if level == self._level:
            return None
        self._level = level
        return _STATUS[level]


def aggregate(statuses: Iterable[Status]) -> Status:
    """The status of an instance with checks of these statuses: the worst, or passing if it has none."""
    return max(statuses, key=SEVERITY.__getitem__, default="passing")


def worse(one: Status, other: Status) -> Status:
    """The same of two."""
    return one if SEVERITY[one] >= SEVERITY[other] else other


def first_start(now: float, interval_s: float, rng: Rng) -> float:
    """When a new check runs first: anywhere within its interval, so that checks made together do not run together."""
    return now + rng.uniform(0.0, interval_s)


def next_start(due: float, started: float, interval_s: float, rng: Rng) -> float:
    """When a check that was due at `due` and ran at `started` runs next: an interval later, give or take `JITTER`.

    It counts from `due`, not `started`: checks that a stall made late together go back to their own places instead of
    staying together. Starts that were missed are skipped, not made up for, and no run follows the last within half
    an interval; one that came early, out of turn, leaves the regular one where it was unless that is too near.
    """
    earliest = started + interval_s / 2
    if due >= earliest:
        return due
    following = due + interval_s * rng.uniform(1 - JITTER, 1 + JITTER)
    if following < earliest:
        following += ceil((earliest - following) / interval_s) * interval_s
    return following


def before_first(check: Check) -> Status:
    """The status of a check of which nothing is written: not known yet, or a ttl check that fell silent."""
    return "critical" if check.kind == "ttl" else check.initial
