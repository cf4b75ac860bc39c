"""The clock that ends leases: very many at once are ended without holding the loop."""

from __future__ import annotations

import asyncio

from homeport.client.core.model import KeyValue
from homeport.registry.core.leases import BUCKET_S
from homeport.registry.store.lease_clock import _ENDS_AT_ONCE, LeaseClock

COUNT = 20 * _ENDS_AT_ONCE


async def test_a_turn_of_the_loop_ends_no_more_however_many_ticks_it_takes_to_end_them_all() -> None:
    at_s = 0.0
    ended: list[int] = []
    clock = LeaseClock(
        now=lambda: at_s,
        standing=lambda lease: KeyValue(b"l", b"", 1, 1, 1, lease),
        end=lambda lease, _record: ended.append(lease),
        bears=lambda _lease: True,
        writable=lambda: True,
    )
    for lease in range(COUNT):
        clock.granted(lease, 1.0)
    clock.start()
    turns: list[int] = []
    for tick in range(40):  # each comes while the turns of those before it are still waiting
        at_s = (tick + 1) * BUCKET_S
        assert clock._timer is not None
        clock._timer.cancel()
        before = len(ended)
        clock._tick()
        await asyncio.sleep(0)
        turns.append(len(ended) - before)
        assert clock.waiting == (COUNT - len(ended) if ended else 0)
    assert sorted(ended) == list(range(COUNT)), "each once"
    assert max(turns) <= 2 * _ENDS_AT_ONCE, "those of a tick, and of the turn after it"
    clock.stop()
