"""The guard against mass expiry: when most instances fall silent in one second, it is more likely we who went deaf.

When within one second the leases end of at least `INSTANCES_MIN` instances, and of more than half of all leased ones,
the catalogue keeps those instances as stale for at most one more TTL, and those that were due with them and whose ends
take longer to write. Replicas of one store hear of the ends of all, and count alike however late they hear: each end
comes with a place in their order, and with the place from which on that second counts, as whoever wrote it has it.

The leases themselves end in time: sessions, locks and keys know no such mercy, and neither does a failing check or
whoever deregisters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import Final

from homeport.registry.core.entries import Entry

WINDOW_S: Final = 1.0  # ten buckets of the lease table: renewals of one cut-off network end no further apart
INSTANCES_MIN: Final = 20  # fewer are a rack, a deployment or a test, and may well end together


class MassExpiry:
    """Counts the ends of leases and says which instances to keep."""

    __slots__ = ("_last", "_late", "_window", "happened")

    def __init__(self) -> None:
        self._window: deque[tuple[float, Entry]] = deque()
        self._last = -inf  # where instances were last kept
        self._late = 0  # leases that were due with those, and are still to end
        self.happened = 0  # times that instances were kept

    def ending(self, at: float, since: float, entries: Iterable[Entry], more: int, leased: int) -> list[Entry]:
        """The leases of these instances end now; return the instances to keep, also of those that ended just before.

        Args:
            at: the place of these ends in the order of all: seconds of a clock, or a revision.
            since: the ends that came later than this place were within the last second.
            more: so many more leases of instances are about to end.
            leased: how many instances stand that have a lease, these among them, those that ended before not.
        """
        window = self._window
        while window and window[0][0] <= since:
            window.popleft()
        before = len(window)
        window.extend((at, entry) for entry in entries)
        if len(window) >= INSTANCES_MIN and 2 * (len(window) + more) > leased + before:
            if self._last <= since:
                self.happened += 1
            self._last = at
            self._late = more
            return [entry for _, entry in window if not entry.kept_until]
        if not self._late or self._last <= since:
            return []
        late = [entry for _, entry in islice(window, before, before + self._late)]
        self._late -= len(late)
        self._last = at
        return [entry for entry in late if not entry.kept_until]
