"""Keeps an eye on the application behind an inbound, and tells the registry when it stops or starts being well.

The look itself is the caller's: an HTTP request, a connection, anything. When to look is `core/app_health.py`'s to say.
Changes are told, and told again until the registry has heard; that the sidecar lives is what its lease is for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from homeport.client.core.errors import HomeportError
from homeport.client.core.model import Status
from homeport.sidecar.core.app_health import AppHealth

_log = logging.getLogger("homeport.sidecar")

REPORT_AGAIN_S: Final = 1.0  # after a report that did not reach the registry
REPORT_EVERY_S: Final = 3600.0  # also without news, so that a `ttl` check of a day, the longest there is, never ends


class AppWatch:
    """Run it in a task, cancel it when the application leaves.

    Args:
        look: Returns None if the application is well, else what is wrong with it. Bounds its own time.
        report: Tells the registry a status and the reason.
        interval_s: Between two looks while nothing happens.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[str | None]],
        report: Callable[[Status, str], Awaitable[None]],
        *,
        interval_s: float,
    ) -> None:
        self._look = look
        self._report = report
        self._interval_s = interval_s
        self._health: AppHealth | None = None
        self._woken = asyncio.Event()

    @property
    def status(self) -> Status:
        return "passing" if self._health is None else self._health.status

    def evidence(self) -> None:
        """Requests to the application failed: look at it soon."""
        if self._health is not None:
            self._health.evidence(asyncio.get_running_loop().time())
            self._woken.set()

    async def run(self) -> None:
        """Look and report, for ever."""
        loop = asyncio.get_running_loop()
        health = self._health = AppHealth(loop.time(), interval_s=self._interval_s)
        told: Status = health.status
        tell_at_s = loop.time() + REPORT_EVERY_S
        wrong: str | None = None
        while True:
            due_s = min(health.due_s, tell_at_s)
            self._woken.clear()
            try:
                async with asyncio.timeout_at(due_s):
                    await self._woken.wait()
                continue  # when to look may have changed
            except TimeoutError:
                pass
            if loop.time() >= health.due_s:
                wrong = await self._look()
                if health.looked(wrong is None, loop.time()):
                    _log.warning("the app is %s: %s", health.status, wrong or "its check passes again")
            if told != health.status or loop.time() >= tell_at_s:
                try:
                    await self._report(health.status, wrong or "")
                    told = health.status
                    tell_at_s = loop.time() + REPORT_EVERY_S
                except HomeportError as error:
                    tell_at_s = loop.time() + REPORT_AGAIN_S
                    _log.warning("the registry was not told that the app is %s: %s", health.status, error)
