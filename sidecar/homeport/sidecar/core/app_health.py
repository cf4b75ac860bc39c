"""Whether the application behind an inbound is well: looked at on a schedule, and at once when its requests fail.

Every request that passes is evidence. When one could not be delivered, timed out or was answered with a 5xx, the next
look is due now instead of at the end of the interval; that alone never changes the status, since a handler may fail for
reasons of its own. A look that fails is repeated soon, so that a wedged application leaves within a second or two of
the first look that shows it, whatever the interval.
"""

from __future__ import annotations

from typing import Final

from homeport.client.core.model import Status

EVIDENCE_GAP_S: Final = 0.5  # between two looks, however many requests fail: a look must not be a load
RECHECK_S: Final = 0.5  # after a look that disagrees with the status, until the next


class AppHealth:
    """Starts `passing`, because an application is registered only after it was found well.

    Args:
        interval_s: between two looks while nothing happens.
        passing_after: so many good looks in a row make it passing again.
        critical_after: so many failed ones make it critical.
    """

    __slots__ = ("_against", "_critical_after", "_interval_s", "_looked_at_s", "_passing_after", "due_s", "status")

    def __init__(self, now: float, *, interval_s: float, passing_after: int = 2, critical_after: int = 2) -> None:
        self.status: Status = "passing"
        self.due_s = now + interval_s  # when to look next
        self._interval_s = interval_s
        self._passing_after = passing_after
        self._critical_after = critical_after
        self._looked_at_s = now - EVIDENCE_GAP_S
        self._against = 0  # looks in a row that disagree with the status

    def evidence(self, now: float) -> None:
        """Requests failed in a way that may be the application's: look soon."""
        self.due_s = min(self.due_s, max(now, self._looked_at_s + EVIDENCE_GAP_S))

    def looked(self, well: bool, now: float) -> bool:
        """Take in what a look has shown; return whether that changed the status."""
        self._looked_at_s = now
        if well == (self.status == "passing"):
            self._against = 0
            self.due_s = now + self._interval_s
            return False
        self._against += 1
        if self._against < (self._passing_after if well else self._critical_after):
            self.due_s = now + min(RECHECK_S, self._interval_s)
            return False
        self.status = "passing" if well else "critical"
        self._against = 0
        self.due_s = now + self._interval_s
        return True
