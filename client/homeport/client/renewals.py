"""Renewals of one client's leases, those that fall together in one call.

Each registration renews in its own time, but at the ticks of a clock that those of equal TTL share: at the last tick
before it is due, so early by less than a tenth of its period and never late. The clock's phase is the client's own, so
that many clients do not come in step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import HomeportError, again
from homeport.client.core.limits import RENEW_LEASES_MAX
from homeport.client.core.messages import Renew, Renewed

TICKS_PER_PERIOD: Final = 10
_GATHER_S: Final = 0.002  # timers of one tick fire a hair apart


class Renewals:
    """Gathers what wants to be renewed at one tick.

    Args:
        call: makes the call; it is given the shortest TTL of those leases.
        rng: where the phase is drawn from.
    """

    def __init__(self, call: Callable[[Renew, float], Awaitable[Renewed]], rng: Rng) -> None:
        self._call = call
        self._asking: set[asyncio.Task[None]] = set()
        self._phase = rng.random()  # of the clock, in ticks
        self._waiting: dict[int, list[asyncio.Future[float]]] = {}
        self._shortest_s = inf  # TTL of those that wait
        self._moved = False  # whether any of them comes from another connection

    def delay_s(self, now: float, period_s: float, due_s: float) -> float:
        """Seconds to wait, for a renewal that is due in `due_s` and has a period of about `period_s`."""
        tick_s = period_s / TICKS_PER_PERIOD
        due = (now + due_s) / tick_s - self._phase
        early_s = (due % 1.0) * tick_s
        return max(0.0, due_s - early_s)

    async def renew(self, lease: int, ttl_s: float, *, moved: bool = False) -> float:
        """Start a lease's TTL, `ttl_s` as far as is known, anew and return it in seconds; 0.0 if the lease is gone.

        Args:
            moved: whether the instance on it was last heard of over another connection.

        Raises:
            Unavailable: no registry answered in time.
            Closed: the client is closed.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        if not self._waiting:
            loop.call_later(_GATHER_S, self._flush)
        self._waiting.setdefault(lease, []).append(answer)
        self._shortest_s = min(self._shortest_s, ttl_s)
        self._moved |= moved
        return await answer

    def _flush(self) -> None:
        waiting, shortest_s, moved = list(self._waiting.items()), self._shortest_s, self._moved
        self._waiting.clear()
        self._shortest_s, self._moved = inf, False
        for at in range(0, len(waiting), RENEW_LEASES_MAX):
            some = waiting[at : at + RENEW_LEASES_MAX]
            asking = asyncio.create_task(self._ask(some, shortest_s, moved), name="renewals")
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def _ask(
        self, waiting: list[tuple[int, list[asyncio.Future[float]]]], shortest_s: float, moved: bool
    ) -> None:
        """Renew these, and tell all who wait for each; those who have given up do not keep the others from it."""
        error: HomeportError | None = None
        ttls_s: tuple[float, ...] = ()
        try:
            request = Renew(leases=tuple([lease for lease, _ in waiting]), moved=moved)
            ttls_s = (await self._call(request, shortest_s)).ttls_s
        except HomeportError as failed:
            error = failed
        for at, (_, answers) in enumerate(waiting):
            for answer in answers:
                if answer.done():
                    continue
                if error is None:
                    answer.set_result(ttls_s[at])
                else:
                    answer.set_exception(again(error))
