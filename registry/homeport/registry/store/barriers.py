"""One question for all who ask the same while another is under way, which may have been put too early for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

_BEHIND_S: Final = 0.25  # behind a question that is not answered; then the next one is put beside it


class Shared:
    """Puts a question, for any number of callers at once.

    Args:
        ask: puts it; what it returns is known to be true at some moment after it was called.
    """

    __slots__ = ("_ask", "_asking", "_next")

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        self._ask = ask
        self._asking: asyncio.Future[None] | None = None  # put last
        self._next: asyncio.Future[None] | None = None  # still to be put

    async def answered(self) -> None:
        """Return when a question that is put from now on is answered; raises what it raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._put_behind(self._asking))
            self._next.add_done_callback(_heard)
        await asyncio.shield(self._next)

    async def _put_behind(self, before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,), timeout=_BEHIND_S)
        self._asking, self._next = self._next, None
        await self._ask()


def _heard(asked: asyncio.Future[None]) -> None:
    """Whoever asked may have gone; then nobody need be warned."""
    if not asked.cancelled():
        asked.exception()
