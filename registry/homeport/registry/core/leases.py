"""The lease table: who is alive, decided by deadlines alone.

The promise: a lease never ends before its TTL after the last renewal *received*, and ends no later than its TTL plus
one tick (`TICK_S`) of a live process. A stall (a blocked loop, a paused process) extends every lease by its length,
since renewals could not be heard; that is one addition to a clock, not a walk over the leases.

Deadlines live in buckets of `BUCKET_S` (a timing wheel without a rim: a dict of ordered sets). A renewal only writes
the new deadline on the lease; its id stays in the bucket it was put in, and moves when that bucket comes up, once per
TTL at the most. So renewing costs the same with 200 leases as with 200,000, and expiry looks at due buckets only.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Final

TICK_S: Final = 0.25  # the promise's granularity
BUCKET_S: Final = 0.1  # the wheel's: well under a tick, so that a late loop and the commit fit in the rest
STALL_S: Final = 2 * BUCKET_S  # a pause in `advance` longer than this is a stall; shorter ones are ordinary lateness


class _Lease:
    __slots__ = ("bucket", "deadline", "ttl_s")

    def __init__(self, ttl_s: float, deadline: float, bucket: int) -> None:
        self.ttl_s = ttl_s
        self.deadline = deadline  # in lease time: the given clock less all stalls
        self.bucket = bucket


class LeaseTable:
    """Leases by id. `now` is seconds of any clock that never goes back; `advance` must be called every `BUCKET_S`."""

    __slots__ = ("_advanced_at", "_buckets", "_leases", "_next_bucket", "_stalled_s")

    def __init__(self, now: float) -> None:
        self._leases: dict[int, _Lease] = {}
        self._buckets: dict[int, dict[int, None]] = {}
        self._advanced_at = now
        self._stalled_s = 0.0
        self._next_bucket = floor(now / BUCKET_S)

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        return lease in self._leases

    def grant(self, now: float, lease: int, ttl_s: float) -> None:
        """Start, or start anew, a lease that ends `ttl_s` seconds from now unless renewed."""
        self._notice_stall(now)
        self.end(lease)
        deadline = now - self._stalled_s + ttl_s
        entry = self._leases[lease] = _Lease(ttl_s, deadline, 0)
        self._place(lease, entry)

    def renew(self, now: float, lease: int) -> float:
        """Start a lease's TTL anew and return it in seconds, or 0.0 if there is no such lease."""
        entry = self._leases.get(lease)
        if entry is None:
            return 0.0
        self._notice_stall(now)  # first, or the stall that this renewal came after would extend it as well
        entry.deadline = now - self._stalled_s + entry.ttl_s
        return entry.ttl_s

    def end(self, lease: int) -> bool:
        """Forget a lease; False if it was not there."""
        entry = self._leases.pop(lease, None)
        if entry is None:
            return False
        bucket = self._buckets[entry.bucket]
        del bucket[lease]  # or leases that come and go would fill the far buckets of long TTLs
        if not bucket:
            del self._buckets[entry.bucket]
        return True

    def remaining_s(self, now: float, lease: int) -> float | None:
        """Seconds until a lease ends, None if it is not there."""
        self._notice_stall(now)
        entry = self._leases.get(lease)
        return None if entry is None else max(0.0, entry.deadline + self._stalled_s - now)

    def ttl_s(self, lease: int) -> float | None:
        entry = self._leases.get(lease)
        return None if entry is None else entry.ttl_s

    def ids(self) -> list[int]:
        return list(self._leases)

    def advance(self, now: float) -> list[int]:
        """Return the leases that are due, oldest deadline's bucket first; they stay until `end` or a new `grant`.

        Whoever ends one must still find it due (`is_due`) when the end takes effect, for a renewal may come between.
        """
        self._notice_stall(now)
        self._advanced_at = now
        lease_now = now - self._stalled_s
        last = floor(lease_now / BUCKET_S)
        due: list[int] = []
        if last - self._next_bucket > len(self._buckets):
            buckets = sorted(bucket for bucket in self._buckets if bucket <= last)
        else:
            buckets = [bucket for bucket in range(self._next_bucket, last + 1) if bucket in self._buckets]
        self._next_bucket = last + 1  # before anything is placed: nothing may go where nobody looks again
        for bucket in buckets:
            for lease in self._buckets.pop(bucket):
                entry = self._leases[lease]
                if entry.deadline <= lease_now:
                    due.append(lease)  # and looked at again in the next bucket, if nobody ends it
                self._place(lease, entry)
        return due

    def is_due(self, now: float, lease: int) -> bool:
        """Whether a lease has outlived its TTL and may be ended now."""
        self._notice_stall(now)
        entry = self._leases.get(lease)
        return entry is not None and entry.deadline <= now - self._stalled_s

    def _place(self, lease: int, entry: _Lease) -> None:
        entry.bucket = max(ceil(entry.deadline / BUCKET_S), self._next_bucket)
        self._buckets.setdefault(entry.bucket, {})[lease] = None

    def _notice_stall(self, now: float) -> None:
        """Count time in which `advance` should have been called and was not as time that did not pass."""
        silence_s = now - self._advanced_at
        if silence_s > STALL_S:
            # The whole silence, not its excess over a bucket: the stall may have begun right after the last call.
            self._stalled_s += silence_s
            self._advanced_at = now
