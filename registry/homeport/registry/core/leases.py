"""The lease table: who is alive, decided by deadlines alone.

The promise: a lease never ends before its TTL after the last renewal *received*, and ends no later than its TTL plus
one tick (`TICK_S`) of a live process. A stall (a blocked loop, a paused process) extends every lease by its length,
since renewals could not be heard; that is one addition to a clock, not a walk over the leases. A grace extends one too:
it is granted with one where somebody else may still promise it (`store/etcd_ownership.py`).

Deadlines live in buckets of `BUCKET_S` (a timing wheel without a rim: a dict of ordered sets). A renewal only writes
the new deadline on the lease; its id stays in the bucket it was put in, and moves when that bucket comes up, once per
TTL at the most. So renewing costs the same with 200 leases as with 200,000, and expiry looks at due buckets only.
"""

from __future__ import annotations

from math import ceil, floor, inf
from typing import Final

TICK_S: Final = 0.25  # the promise's granularity
BUCKET_S: Final = 0.1  # the wheel's: well under a tick, so that a late loop and the commit fit in the rest
STALL_S: Final = 2 * BUCKET_S  # a pause in `advance` longer than this is a stall; shorter ones are ordinary lateness

# Leases that begin all at once (a restart, an adoption) are first looked at over this share of their TTL, and not all
# in one bucket: 200,000 of them took a turn of 255 ms. By then they have been renewed, so none costs another look.
_SPREAD: Final = 1 / 3
SLOW_AFTER: Final = 10  # stalls in a row: a loop that is late for two seconds on end is slow, not stalled


class _Lease:
    __slots__ = ("bears", "bucket", "deadline", "ending", "floor", "ttl_s")

    def __init__(self, ttl_s: float, deadline: float, bucket: int, bears: bool, floor: float) -> None:
        self.bears = bears  # an instance
        self.ttl_s = ttl_s
        self.deadline = deadline  # in lease time: the given clock less all stalls
        self.floor = floor  # no renewal brings the deadline before this
        self.bucket = bucket
        self.ending = False  # its end is decided, and not yet durable


class LeaseTable:
    """Leases by id. `now` is seconds of any clock that never goes back; `advance` must be called every `BUCKET_S`."""

    __slots__ = (
        "_advanced_at",
        "_buckets",
        "_horizon",
        "_leases",
        "_next_bucket",
        "_stall_at",
        "_stalled_s",
        "_stalls",
    )

    def __init__(self, now: float) -> None:
        self._leases: dict[int, _Lease] = {}
        self._buckets: dict[int, dict[int, None]] = {}
        self._advanced_at = now
        self._stalled_s = 0.0
        self._stalls = 0  # in a row, no call between them in time
        self._stall_at = -inf  # when the last stall was noticed
        self._horizon = now  # the lease time up to which leases may end
        self._next_bucket = floor(now / BUCKET_S)

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        return lease in self._leases

    def grant(self, now: float, lease: int, ttl_s: float, *, bears: bool = False, grace_s: float = 0.0) -> None:
        """Start, or start anew, a lease that ends `ttl_s` seconds from now unless renewed; it may bear an instance.

        With `grace_s` it ends so much later, and no renewal makes it end before that.
        """
        self._notice_stall(now)
        self.end(lease)
        deadline = now - self._stalled_s + ttl_s + grace_s
        entry = self._leases[lease] = _Lease(ttl_s, deadline, 0, bears, deadline if grace_s else -inf)
        self._place(lease, entry, early=lease % max(1, int(ttl_s * _SPREAD / BUCKET_S)))

    def renew(self, now: float, lease: int) -> float:
        """Start a lease's TTL anew and return it in seconds, or 0.0 if it is gone or its end is decided."""
        entry = self._leases.get(lease)
        if entry is None or entry.ending:
            return 0.0
        if now - self._advanced_at > STALL_S:
            self._notice_stall(now)  # first, or the stall that this renewal came after would extend it as well
        entry.deadline = max(entry.floor, now - self._stalled_s + entry.ttl_s)
        return entry.ttl_s

    def begin_end(self, lease: int) -> None:
        """Its end is decided: it is renewed no more, and no more returned by `advance`."""
        self._leases[lease].ending = True

    def resume_all(self) -> None:
        """What was decided did not happen: leases that were ending are due again."""
        for lease in self._leases:
            self.resume(lease)

    def resume(self, lease: int) -> None:
        """The same for one."""
        entry = self._leases[lease]
        if entry.ending:
            entry.ending = False
            self._buckets[entry.bucket].pop(lease)
            self._place(lease, entry)

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

    def bears(self, lease: int) -> bool:
        """Whether a lease is here and bears an instance."""
        entry = self._leases.get(lease)
        return entry is not None and entry.bears

    def ids(self) -> list[int]:
        return list(self._leases)

    def advance(self, now: float) -> list[int]:
        """Return the leases that are due, oldest deadline's bucket first; they stay until `end` or a new `grant`.

        Whoever ends one must still find it due (`is_due`) when the end takes effect, for a renewal may come between.
        """
        self._notice_stall(now)
        self._advanced_at = now
        lease_now = now - self._stalled_s
        if now - self._stall_at >= BUCKET_S / 2:  # else the loop has not yet read what came in during the stall
            self._stalls = 0
            self._horizon = lease_now
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
                if entry.deadline <= self._horizon and not entry.ending:
                    due.append(lease)  # and looked at again in the next bucket, if nobody ends it
                self._place(lease, entry)
        return due

    def is_due(self, now: float, lease: int) -> bool:
        """Whether a lease had outlived its TTL when `advance` last looked, and was not renewed since."""
        self._notice_stall(now)
        entry = self._leases.get(lease)
        return entry is not None and entry.deadline <= self._horizon and not entry.ending

    def _place(self, lease: int, entry: _Lease, early: int = 0) -> None:
        """Put a lease where it is looked at in time; so many buckets early it is not due, and only moves on."""
        entry.bucket = max(ceil(entry.deadline / BUCKET_S) - early, self._next_bucket)
        self._buckets.setdefault(entry.bucket, {})[lease] = None

    def _notice_stall(self, now: float) -> None:
        """Count time in which `advance` should have been called and was not as time that did not pass."""
        silence_s = now - self._advanced_at
        if silence_s > STALL_S:
            # The whole silence, not its excess over a bucket: the stall may have begun right after the last call. But a
            # loop that is late every time is no longer stalled, it is slow: then time goes on by a bucket each, or it
            # would end nothing. What ends is only what was due before, so the loop has read what came in meanwhile.
            self._horizon = self._advanced_at - self._stalled_s
            self._stalls += 1
            self._stalled_s += silence_s - (BUCKET_S if self._stalls > SLOW_AFTER else 0.0)
            self._stall_at = self._advanced_at = now
