"""Hosts: which simulated machine a piece of code runs on.

All hosts share one loop. The host is a context variable, so that tasks and callbacks belong to the host of whoever made
them, and a whole host can be frozen (its callbacks are held) or crashed (they are held forever). A host that crashed
and starts again is a new `Host` of the same address.
"""

from __future__ import annotations

import asyncio
import contextvars

HOME = "127.0.0.1"
"""The address of the host that everything runs on unless told otherwise."""


class Host:
    """One incarnation of a simulated machine."""

    __slots__ = ("address", "crashed", "frozen", "held", "job_delay_s")

    def __init__(self, address: str) -> None:
        self.address: str = address
        self.frozen: bool = False
        self.crashed: bool = False
        self.job_delay_s: tuple[float, float] | None = None  # bounds, where its executor jobs are slower than others'
        self.held: list[asyncio.Handle] = []  # callbacks that fell due while it was frozen


HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("homeport_virtual_host", default=None)
"""The host that the running code belongs to; None is the home host."""
