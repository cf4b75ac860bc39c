"""The clock of a store's leases: one timer over a table, for every backend.

What a backend adds is how a lease is ended: `end` is given the lease's record and commits a transaction that compares
its mod revision. Leases that are due while nothing can be written are told as overdue, and ended when that is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from homeport.client.core.model import KeyValue
from homeport.registry.core.leases import BUCKET_S, LeaseTable
from homeport.registry.core.mass_expiry import WINDOW_S
from homeport.registry.store.contract import LeaseListener

_ENDS_AT_ONCE: Final = 256  # leases ended in one turn of the loop: some 20 ms


class LeaseClock:
    """Runs a `LeaseTable` on the running loop.

    Args:
        now: seconds of any clock that never goes back.
        standing: the record of a lease that nobody has ended or granted anew, durable or not; else None.
        end: ends the lease of such a record.
        bears: whether an instance stands on a lease that begins, so that its end is one of those that the guard against
            mass expiry counts.
        writable: whether leases can be ended now.
        tells: whether listeners hear of an end when it is decided; else the backend tells them when it comes about.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        standing: Callable[[int], KeyValue | None],
        end: Callable[[int, KeyValue], None],
        bears: Callable[[int], bool],
        writable: Callable[[], bool],
        tells: bool = True,
    ) -> None:
        self._now = now
        self._standing = standing
        self._end = end
        self._bears = bears
        self._writable = writable
        self._tells = tells
        self.waiting = 0  # leases of instances that are due, and whose turn to be ended has not come
        self._due: list[int] = []  # at the last tick; so many of them had their turn:
        self._ended = 0
        self._more: asyncio.Handle | None = None
        self._table = LeaseTable(now())
        self._overdue: dict[int, None] = {}  # leases whose end cannot be written, as far as that was told
        self._listeners: list[LeaseListener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at = now()
        self.late_s_max = 0.0
        self.renewals = 0  # heard of leases that are here

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tick()

    def stop(self) -> None:
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        if self._more is not None:
            self._more.cancel()

    def listen(self, listener: LeaseListener) -> None:
        self._listeners.append(listener)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, lease: int) -> bool:
        return lease in self._table

    def clear(self) -> None:
        """Begin anew, with no leases: whatever stands is granted again, here or elsewhere."""
        self._table = LeaseTable(self._now())
        for lease in tuple(self._overdue):
            self._not_overdue(lease)

    def granted(self, lease: int, ttl_s: float, grace_s: float = 0.0) -> None:
        """A lease begins, or begins anew, now; so much later than its TTL is the first time that it may end."""
        self._table.grant(self._now(), lease, ttl_s, bears=self._bears(lease), grace_s=grace_s)

    def ended(self, lease: int) -> None:
        """A lease is gone."""
        self._table.end(lease)
        self._overdue.pop(lease, None)

    def handed_over(self, lease: int) -> None:
        """A lease is another clock's now: that it was overdue by this one means nothing any more."""
        self._table.end(lease)
        self._not_overdue(lease)

    def renew(self, lease: int) -> float:
        """Start its TTL anew and return it in seconds, 0.0 if it is not here."""
        self.renewals += 1
        ttl_s = self._table.renew(self._now(), lease)
        if ttl_s:
            self._not_overdue(lease)
        return ttl_s

    def _not_overdue(self, lease: int) -> None:
        if lease in self._overdue:
            del self._overdue[lease]
            for listener in self._listeners:
                listener.renewed(lease)

    def remaining_s(self, lease: int) -> float | None:
        return self._table.remaining_s(self._now(), lease)

    def ids(self) -> list[int]:
        return self._table.ids()

    def resume_all(self) -> None:
        """What was being ended was not: it is due again."""
        self._table.resume_all()

    def resume(self, lease: int) -> None:
        """Its end was refused, because it changed at the last moment: it is due again."""
        self._table.resume(lease)

    def _tick(self) -> None:
        assert self._loop is not None
        now = self._now()
        self.late_s_max = max(self.late_s_max, now - self._ticked_at - BUCKET_S)
        self._ticked_at = now
        due = self._table.advance(now)
        if due and self._writable():
            self._end_due(due)
        elif due:
            self._tell_overdue(due)
        self._timer = self._loop.call_later(BUCKET_S, self._tick)

    def _tell_overdue(self, due: list[int]) -> None:
        new = [lease for lease in due if lease not in self._overdue]
        if new:
            self._overdue.update(dict.fromkeys(new))
            for listener in self._listeners:
                listener.overdue(new)

    def bears(self, lease: int) -> bool:
        """Whether a lease that is here bears an instance."""
        return self._table.bears(lease)

    def tell_ending(self, leases: Sequence[int], more: int, at: float, since: float) -> None:
        """Leases that were due end next; see `LeaseListener.ending`."""
        for listener in self._listeners:
            listener.ending(leases, more, at, since)

    def tell_let_go(self, node: str, id: str) -> None:  # noqa: A002 - the field's name everywhere else
        """Another replica has let go of an instance that was only kept."""
        for listener in self._listeners:
            listener.let_go(node, id)

    def _end_due(self, due: list[int]) -> None:
        """End leases that are due, some at a time, so that the end of very many does not hold the loop.

        What was left of those of the last tick is among them.
        """
        if self._more is not None:
            self._more.cancel()
        self._due, self._ended = due, 0
        self.waiting = sum(map(self._table.bears, due))
        self._end_some()

    def _end_some(self) -> None:
        self._more = None
        if self._loop is None or not self._writable():
            self.waiting = 0
            return
        some = self._due[self._ended : self._ended + _ENDS_AT_ONCE]
        self._ended += len(some)
        self.waiting -= sum(map(self._table.bears, some))
        now = self._now()
        ends = [
            (lease, record)
            for lease in some
            if self._table.is_due(now, lease) and (record := self._standing(lease)) is not None
        ]
        if ends and self._tells:
            self.tell_ending([lease for lease, _ in ends], self.waiting, now, now - WINDOW_S)
        for lease, record in ends:
            self._table.begin_end(lease)
            self._end(lease, record)
        if self._ended < len(self._due):
            self._more = self._loop.call_soon(self._end_some)
        else:
            self.waiting = 0
