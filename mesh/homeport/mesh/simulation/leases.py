"""The lease promise, held against what clients heard and when leases ended, in virtual time.

Never before its TTL: a renewal that was answered was received no earlier than it was sent, so from then on the lease
lives for its TTL, and longer by every stall of its registry. No later than its TTL plus one tick of a live process:
counted from the last renewal that any store received, with what the disk took and the time in which nothing could be
written. Leases that somebody ended, or replaced, are nobody's concern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.trace import Trace
from homeport.registry.core.leases import BUCKET_S, TICK_S

ROUNDING_S: Final = 1e-6  # of sums of virtual times
WRITING_S: Final = 0.05  # a commit on an ordinary disk of the simulation takes two jobs' delays, and may wait for one


@dataclass
class _Lease:
    ttl_s: float
    sent: float  # when the last renewal that was answered had been sent; -inf: none was
    received: float  # when a store last heard of it
    ended: bool = False  # by somebody


class Leases:
    """Every lease of a run.

    Args:
        stalled_s: how long the process that ran a lease's clock stood still, between two times.
        unwritable: whether something was in the way of writing an end between two times.
    """

    def __init__(
        self,
        trace: Trace,
        stalled_s: Callable[[float, float], float],
        unwritable: Callable[[float, float], bool],
    ) -> None:
        self._trace = trace
        self._stalled_s = stalled_s
        self._unwritable = unwritable
        self._leases: dict[int, _Lease] = {}

    def granted(self, lease: int, ttl_s: float, now: float) -> None:
        """Its record became durable, or a registry started with it."""
        one = self._leases.get(lease)
        if one is None:
            self._leases[lease] = _Lease(ttl_s, -1.0, now)
        else:
            one.ttl_s, one.received = ttl_s, max(one.received, now)

    def restarted(self, lease: int, ttl_s: float, now: float) -> None:
        """A registry that is the only one has started with it: a full TTL again."""
        self.granted(lease, ttl_s, now)
        self._leases[lease].sent = max(self._leases[lease].sent, now)

    def received(self, lease: int, now: float) -> None:
        """A store heard a renewal and took it."""
        one = self._leases.get(lease)
        if one is not None:
            one.received = max(one.received, now)

    def confirmed(self, lease: int, ttl_s: float, sent: float) -> None:
        """A client was told that a renewal, or a grant, that it had sent at a time was taken."""
        one = self._leases.get(lease)
        if one is not None and not one.ended:
            one.ttl_s = ttl_s
            one.sent = max(one.sent, sent)

    def given_up(self, lease: int) -> None:
        """Somebody asks for its end, or for another lease in its place: it may end at any time."""
        one = self._leases.get(lease)
        if one is not None:
            one.ended = True

    def expect_gone(self, lease: int) -> None:
        """Somebody was told that it has ended."""
        if lease in self._leases:
            self._trace.broken(guarantees.KEPT, f"the end of lease {lease:x} was acknowledged, and it is still there")

    def kept(self, lease: int) -> None:
        """It was not replaced after all."""
        one = self._leases.get(lease)
        if one is not None:
            one.ended = False

    def gone(self, lease: int, now: float) -> str:
        """Its record is gone; return how that came: "given up" or "expired"."""
        one = self._leases.pop(lease, None)
        if one is None or one.ended:
            return "given up"
        if one.sent >= 0.0:
            stalled_s = self._stalled_s(one.sent, now)
            lived_s = now - one.sent - stalled_s
            if lived_s < one.ttl_s - ROUNDING_S:
                self._trace.broken(
                    guarantees.LEASES,
                    f"lease {lease:x} of {one.ttl_s:g} s ended {lived_s:.3f} s after a renewal that was answered"
                    + (f", not counting stalls of {stalled_s:.3f} s" if stalled_s else ""),
                )
            if stalled_s:
                self._trace.count("expiry under stall")
        self._expect_in_time(lease, one, now)
        return "expired"

    def _expect_in_time(self, lease: int, one: _Lease, now: float) -> None:
        late_s = now - one.received - one.ttl_s - TICK_S - WRITING_S
        if late_s <= 0.0 or self._unwritable(one.received, now):
            return
        stalled_s = self._stalled_s(one.received, now)
        # A stall is noticed by the silence that it ends: a bucket and its lateness on top of the stall itself.
        if late_s > (stalled_s + 2 * BUCKET_S if stalled_s else 0.0):
            self._trace.broken(
                guarantees.LEASES,
                f"lease {lease:x} of {one.ttl_s:g} s ended {now - one.received:.3f} s after the last renewal received,"
                f" with stalls of {stalled_s:.3f} s",
            )

    def look(self, now: float) -> None:
        """No lease that stands is overdue."""
        for lease, one in self._leases.items():
            if not one.ended:
                self._expect_in_time(lease, one, now)

    def forget(self) -> None:
        """A registry that keeps nothing has started anew: no lease of before exists."""
        self._leases.clear()
