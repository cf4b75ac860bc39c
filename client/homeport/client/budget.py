"""How long a call may take that asks the registry more than once: one budget for all that it asks."""

from __future__ import annotations

import asyncio

from homeport.client.core.limits import CALL_S


class Budget:
    """What is left of a call's time.

    Args:
        timeout_s: for all requests together; None: each of them has `CALL_S`, however many there are.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._until = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds for the next request; 0.0 when none are left."""
        return CALL_S if self._until is None else max(0.0, self._until - asyncio.get_running_loop().time())
