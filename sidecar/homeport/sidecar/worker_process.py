"""A worker as its parent sees it: one process, what it was asked, and what it has not answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeport.sidecar.channel import Channel, Drain, Report, ToParent, to_parent
from homeport.sidecar.options import DEFAULT


class WorkerProcess:
    """One process, from its start to its end."""

    def __init__(self, index: int, received: Callable[[WorkerProcess, ToParent], None]) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | None = None
        self.options = DEFAULT  # as it was told at its start
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.drains: dict[int, tuple[Drain, asyncio.Future[bool]]] = {}
        self.reports: dict[int, asyncio.Future[Report]] = {}
        self.channel = Channel(to_parent, lambda message: received(self, message), self.ended)

    def ended(self) -> None:
        """It is gone, or never was there."""
        self.gone.set()
        for number in list(self.drains):
            self.drained(number, True)  # nothing is left of what it did
        for report in self.reports.values():
            report.cancel()

    def drain(self, how: Drain) -> asyncio.Future[bool]:
        """Have it drain; if it is still starting, as soon as it is there. The result is whether nothing was left."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.drains[how.number] = how, done
        if self.ready.is_set():
            self.channel.send(how)
        return done

    def drained(self, number: int, whole: bool) -> None:
        """A drain has come to its end."""
        _how, done = self.drains.pop(number, (None, None))
        if done is not None and not done.done():
            done.set_result(whole)

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
