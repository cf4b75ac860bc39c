"""When a change is acted upon: once it is quiet, and not later than promised."""

from __future__ import annotations

import asyncio

from homeport.mesh.following import settled
from homeport.mesh.testing import virtual_now, virtual_time


async def _acted_at(*changes_s: float) -> list[float]:
    """When changes at these times are acted upon, with a quiet time of 1 s and 3 s at most."""
    changed = asyncio.Event()
    began = virtual_now()
    loop = asyncio.get_running_loop()
    for at in changes_s:
        loop.call_later(at, changed.set)
    acted: list[float] = []

    async def act() -> None:
        while True:
            await settled(changed, 1.0, 3.0)
            acted.append(round(virtual_now() - began, 2))

    acting = asyncio.ensure_future(act())
    await asyncio.sleep(60)
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    return acted


@virtual_time()
async def test_changes_that_come_together_are_one() -> None:
    assert await _acted_at(5.0, 5.5, 6.2) == [7.2]


@virtual_time()
async def test_changes_that_never_end_are_acted_upon_in_time() -> None:
    assert await _acted_at(*(5 + number / 2 for number in range(10))) == [8.0, 10.5]


@virtual_time()
async def test_changes_apart_are_two() -> None:
    assert await _acted_at(5.0, 10.0) == [6.0, 11.0]
