"""`python -m tests.soak [MINUTES] [SEED]`: real processes under load and random faults; flat at the end (`make soak`).

A registry on disk and an edge sidecar live through all of it; instances are killed, stopped, replaced and ill-mannered,
the registry is stopped in its tracks, strangers send garbage and say nothing, keys are written, services watched.
Before and after, with the load paused and everything settled, the two that lived are looked at: their memory, their
file descriptors, their tasks. What grew is a leak, and a failed request that could have been tried again is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from benchmarks import proc
from homeport.client import Client, HomeportError
from homeport.mesh.demo.processes import Process
from tests.resilience.site import SERVICE, Site

_MINUTES: Final = 60.0
_INSTANCES: Final = 4
_WARM_UP_S: Final = 60.0  # of load and faults before the first look: caches and pools have their sizes then
_SETTLE_S: Final = 20.0  # without load: past every idle time, and a collection of garbage
_PAUSE_S: Final = (0.5, 4.0)  # between two faults
_STRANGERS: Final = 50  # connections of one visit
_CROWD: Final = 100  # watchers that come and go together
_FDS_MORE: Final = 8  # that may be open beyond the first look: what happens to be under way
_TASKS_MORE: Final = 8
_MEMORY_FACTOR: Final = 1.2  # by which resident memory may have grown,
_MEMORY_MORE_BYTES: Final = 16 * 1024 * 1024  # and this: the allocator's arenas do not shrink


@dataclass(frozen=True)
class Look:
    """What a process holds."""

    memory_bytes: int
    fds: int
    tasks: int

    def leaks_since(self, before: Look) -> list[str]:
        """What has grown too much."""
        found = []
        if self.memory_bytes > before.memory_bytes * _MEMORY_FACTOR + _MEMORY_MORE_BYTES:
            found.append(f"memory: {before.memory_bytes} -> {self.memory_bytes} bytes")
        if self.fds > before.fds + _FDS_MORE:
            found.append(f"file descriptors: {before.fds} -> {self.fds}")
        if self.tasks > before.tasks + _TASKS_MORE:
            found.append(f"tasks: {before.tasks} -> {self.tasks}")
        return found


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Soak:
    """One run."""

    def __init__(self, site: Site, edge: Process, at_http: str, at_admin: str, rng: random.Random) -> None:
        assert site.registry is not None
        self.site = site
        self.edge = edge
        self.rng = rng
        self.done: Counter[str] = Counter()
        self.killed: list[str] = []
        self._registry = site.registry
        self._at_http = at_http
        self._at_admin = at_admin
        self._names = [f"orders-{number}" for number in range(1, _INSTANCES + 1)]
        self._next = _INSTANCES + 1

    async def look(self) -> dict[str, Look]:
        """What the two that live through all of it hold now."""
        found = {}
        for name, process, at in (("registry", self._registry, self._at_http), ("edge", self.edge, self._at_admin)):
            tasks = 0
            async with aiohttp.ClientSession() as session, session.get(f"http://{at}/metrics") as answer:
                for line in (await answer.text()).splitlines():
                    if line.startswith("homeport_tasks"):
                        tasks = round(float(line.rpartition(" ")[2]))
            assert tasks > 0, "it counts its tasks"
            found[name] = Look(proc.rss_bytes(process.child.pid), _fds(process.child.pid), tasks)
        return found

    async def faults(self, duration_s: float) -> None:
        """One fault after another."""
        faults: list[Callable[[], Awaitable[None]]] = [
            *(self.kill, self.stop, self.roll, self.misbehave, self.stall_registry),
            *(self.strangers, self.crowd, self.write_keys),
        ]
        until = time.monotonic() + duration_s
        while time.monotonic() < until:
            fault = self.rng.choice(faults)
            await fault()
            self.done[fault.__name__] += 1
            await asyncio.sleep(self.rng.uniform(*_PAUSE_S))

    async def _replace(self, name: str) -> None:
        self._names.remove(name)
        new = f"orders-{self._next}"
        self._next += 1
        await self.site.add(new)
        self._names.append(new)
        await self.site.available(*self._names)

    async def kill(self) -> None:
        name = self.rng.choice(self._names)
        self.killed.append(name)
        await self.site.members[name].kill()
        await self._replace(name)

    async def stop(self) -> None:
        name = self.rng.choice(self._names)
        self.killed.append(name)  # what was delivered there may have been tried elsewhere
        process = self.site.members[name]
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.1, 4.0))
        process.signal(signal.SIGCONT)
        await self.site.available(*self._names)

    async def roll(self) -> None:
        name = self.rng.choice(self._names)
        self.site.members[name].signal(signal.SIGTERM)
        await self.site.members[name].child.wait()
        await self._replace(name)

    async def misbehave(self) -> None:
        name = f"orders-bad-{self._next}"
        self._next += 1
        self.killed.append(name)
        process = await self.site.add(name, manners=self.rng.choice(["resets", "slow", "long"]))
        await self.site.available(*self._names, name)
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        process.signal(signal.SIGTERM)
        await process.child.wait()
        await self.site.available(*self._names)

    async def stall_registry(self) -> None:
        self._registry.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.1, 3.0))
        self._registry.signal(signal.SIGCONT)
        await self.site.available(*self._names)

    async def strangers(self) -> None:
        """Connections that say nothing, or garbage, or half of something, to every listener."""
        for address in (self.site.rpc, self.site.edge, self._at_http, self._at_admin):
            host, port = address.split(":")
            writers = []
            for _ in range(_STRANGERS):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(self.rng.choice([b"", self.rng.randbytes(200), b"GET / HTTP/1.1\r\nHost: or"]))
                    writers.append(writer)
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))
            for writer in writers:
                if self.rng.random() < 0.5:
                    writer.transport.abort()
                else:
                    writer.close()

    async def crowd(self) -> None:
        """Many clients that follow the service for a moment."""
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(_CROWD):
                client = await stack.enter_async_context(Client(self.site.rpc, name="crowd"))
                client.subscribe(SERVICE)
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))

    async def write_keys(self) -> None:
        async with Client(self.site.rpc, name="writer") as client:
            for _ in range(200):
                with contextlib.suppress(HomeportError):
                    await client.kv.put(f"soak/{self.rng.randrange(500)}", self.rng.randbytes(200))


async def soak(minutes: float, seed: int) -> int:
    """Run one; 0: nothing leaked, nothing failed that could have been tried again."""
    print(f"seed {seed}, {minutes:g} minutes", flush=True)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="homeport-soak-") as folder:
        async with Site.opened(Path(folder), durable=True) as site:
            admin = f"127.0.0.1:{site.ports.take()}"
            await site.fill(_INSTANCES)
            edge = await site.start_edge("--admin", admin)
            run = Soak(site, edge, site.http, admin, rng)
            load = site.load()
            async with load.running():
                await run.faults(_WARM_UP_S)
            await asyncio.sleep(_SETTLE_S)
            before = await run.look()
            async with load.running():
                await run.faults(minutes * 60.0)
            await asyncio.sleep(_SETTLE_S)
            after = await run.look()
            unsafe = load.judge([one for name in run.killed for one in site.witness(name)])
    print(f"faults: {dict(sorted(run.done.items()))}; {len(unsafe)} requests that nobody could have repeated")
    leaks = []
    for name, look in after.items():
        print(f"{name}: {before[name]} -> {look}")
        leaks += [f"{name}: {each}" for each in look.leaks_since(before[name])]
    for leak in leaks:
        print(f"LEAK {leak}")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(
        asyncio.run(
            soak(
                float(sys.argv[1]) if len(sys.argv) > 1 else _MINUTES,
                int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32),
            )
        )
    )
