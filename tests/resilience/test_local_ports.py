"""Local ports that stand for a service, TCP and HTTP, while workers are killed and a successor takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.resilience.site import SERVICE, Site
from tests.resilience.test_workers_and_takeovers import workers_of

if TYPE_CHECKING:
    from homeport.mesh.demo.processes import Process
    from tests.conftest import Eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections among processes")

PATIENCE_S = 90.0
TALKS = 8


class Ports:
    """Users of a TCP port, each with a connection that it keeps, and of an HTTP port, with one for every request."""

    def __init__(self, site: Site) -> None:
        self.tcp, self.http = (f"127.0.0.1:{site.ports.take()}" for _ in range(2))
        self.failures: list[str] = []
        self.asked = 0

    @property
    def options(self) -> list[str]:
        return ["--tcp", f"{self.tcp}={SERVICE}", "--http", f"{self.http}={SERVICE}"]

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(TALKS):
                group.create_task(self._talk(stop, f"t{number}"))
                group.create_task(self._ask(stop, f"h{number}"))
            try:
                yield
            finally:
                stop.set()

    async def more(self, count: int) -> None:
        """Return when so many more answers have come."""
        until = self.asked + count
        async with asyncio.timeout(PATIENCE_S):
            while self.asked < until:  # noqa: ASYNC110 - asked by all users
                await asyncio.sleep(0.01)

    async def _talk(self, stop: asyncio.Event, name: str) -> None:
        """Ask again and again over one connection; what breaks it is written down, and the next one is made."""
        while not stop.is_set():
            reader, writer = await asyncio.open_connection(*self.tcp.split(":"))
            try:
                while not stop.is_set():
                    await self._one(reader, writer, name)
                    await asyncio.sleep(0.01)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{name}: {type(error).__name__}")
            finally:
                writer.close()

    async def _ask(self, stop: asyncio.Event, name: str) -> None:
        """Ask again and again, each time over a connection of its own."""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(*self.http.split(":"))
                try:
                    await self._one(reader, writer, name)
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{name}: {type(error).__name__}")
            await asyncio.sleep(0.01)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        writer.write(f"GET / HTTP/1.1\r\nHost: anything\r\nx-request-id: {name}\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        if not head.startswith(b"http/1.1 200") or body != name.encode():
            self.failures.append(f"{name}: {head[:80]!r} {body[:80]!r}")
        self.asked += 1


async def test_a_killed_worker_costs_the_connections_it_had_and_no_other(site: Site, eventually: Eventually) -> None:
    await site.fill(2)
    ports = Ports(site)
    edge = await site.start_edge("--workers", "2", *ports.options)
    async with ports.in_use():
        await ports.more(200)
        os.kill(workers_of(edge)[0], signal.SIGKILL)
        await ports.more(400)
        await eventually(lambda: len(workers_of(edge)) == 2)
        await ports.more(100)
    assert len(ports.failures) <= 2 * TALKS, "each user had one connection, and loses it once"
    assert all("IncompleteRead" in each or "Reset" in each or "BrokenPipe" in each for each in ports.failures)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_takeover_costs_nothing(site: Site, workers: str) -> None:
    await site.fill(2)
    ports = Ports(site)
    edge: Process = await site.start_edge("--workers", workers, *ports.options)
    async with ports.in_use():
        await ports.more(200)
        leaving = asyncio.create_task(site.replace_edge(edge, "--workers", workers, *ports.options))
        await ports.more(600)
    await leaving  # which the old one does when the last connection that it had ends
    assert ports.failures == []
