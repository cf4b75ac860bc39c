"""Whether another event loop turns: what may be renewed on its behalf only as long as it does."""

from __future__ import annotations

import asyncio


class Pulse:
    """The pulse of a loop, felt from a thread that is not its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unanswered = False
        self.beats()

    def beats(self) -> bool:
        """Whether the loop has turned since this was asked before; a loop that was closed never does."""
        if self._unanswered:
            return False
        self._unanswered = True
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            return False
        return True

    def _answer(self) -> None:
        self._unanswered = False
