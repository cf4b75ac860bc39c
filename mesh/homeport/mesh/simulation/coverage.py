"""The named events that runs must exercise: a guarantee that nothing ever strained is not known to hold.

`make simulate` prints in what share of the seeds each occurred; a search that never reaches one is a worse search than
it says, so each must occur in at least `SHARE_MIN` of many seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

SHARE_MIN: Final = 0.01
UNDECIDED: Final = "undecided history"  # not one that runs must exercise: the search for an order was given up

EVENTS: Final = (
    "lease expired",
    "expiry under stall",
    "registry restarted from its disk",
    "registry restarted without memory",
    "power cut",
    "power cut that lost writes",
    "write of unknown outcome",
    "rollback",
    "disk full",
    "registry stood still",
    "watch resumed",
    "compaction during resume",
    "watch of another history",
    "client moved to another replica",
    "takeover of a lease",
    "adoption of leases",
    "replica lost etcd",
    "replica read anew",
    "answer of etcd lost",
    "drain",
    "drain with a lost acknowledgement",
    "instance killed",
    "instance registered again",
    "connection broken in a frame",
    "retry",
    "retry after reset",
    "request that may not be repeated failed",
    "truncated answer",
    "lock taken",
    "lock refused",
    "lock lost",
    "lock-delay race",
    "session ended with its lock",
    "election decided",
    "mass-expiry guard",
    "snapshot held back",
    "read that saw a conflict",
)


def shares(counts: Iterable[Counter[str]]) -> dict[str, float]:
    """In what share of runs each event occurred at least once."""
    runs = 0
    occurred: Counter[str] = Counter()
    for events in counts:
        runs += 1
        occurred.update(event for event in EVENTS if events[event])
    return {event: occurred[event] / runs if runs else 0.0 for event in EVENTS}
