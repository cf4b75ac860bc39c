"""One performance: the site comes up, users come in, the script plays, and what the users saw is counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from homeport.client import HomeportError
from homeport.mesh.demo.load import Load
from homeport.mesh.demo.progress import Progress, View
from homeport.mesh.demo.report import Failure, percentile, split_failures
from homeport.mesh.demo.script import Script
from homeport.mesh.demo.site import SERVICES, Site, SiteError

TOTAL_S_MAX: Final = 56.0  # the demo promises to end within a minute, its own exit included
MENDING_S: Final = 30.0  # what the script may need besides its pauses, twice what two idle cores need
SHOW_INTERVAL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `error` says what kept the performance from its end, if anything did."""

    counts: dict[str, object]
    failures: list[Failure]
    error: str

    @property
    def good(self) -> bool:
        return not self.failures and not self.error

    def line(self) -> str:
        """The one line of JSON."""
        return msgspec.json.encode(self.counts | ({"error": self.error} if self.error else {})).decode()


async def perform(site: Site, progress: Progress, seed: int, seconds: float) -> Outcome:
    """Play on `site`, which this starts, with a load of about `seconds`; never longer than `TOTAL_S_MAX`."""
    started = time.monotonic()
    load = Load(site.edge, random.Random(f"load {seed}"))
    load.ledger.page_sizes |= {site.settings.page_size, site.settings.results_max}
    script = Script(site, load.ledger, random.Random(f"script {seed}"), progress.tell, seconds)
    error = ""
    try:
        async with asyncio.timeout(TOTAL_S_MAX):
            await site.start()
            async with _shown(site, load, progress):
                progress.tell("users sign up, follow each other and upload their first photos")
                await load.seed()
                progress.tell("users are there")
                # A slow machine gets shorter pauses, not less of the script.
                script.seconds = min(seconds, max(1.0, TOTAL_S_MAX - MENDING_S - (time.monotonic() - started)))
                await _under_load(load, script, script.seconds)
                if not await load.feeds_go_by(site.settings.page_size):
                    raise SiteError(f"feeds do not go by the page size of {site.settings.page_size} that was set")
    except TimeoutError:  # before OSError, of which it is one
        error = f"did not end within {TOTAL_S_MAX:.0f} s"
    except (SiteError, HomeportError, OSError) as problem:
        error = str(problem) or repr(problem)
    delivered = site.delivered({failure.request_id for failure in load.tally.failures})
    failed, unsafe = split_failures(load.tally.failures, delivered)
    latencies_ms = load.tally.latencies_ms
    counts: dict[str, object] = {
        "requests": load.tally.requests,
        "failed": len(failed),
        "unsafe_failed": len(unsafe),
        "instances_killed": script.instances_killed,
        "registry_restarts": script.registry_restarts,
        "rolled": script.rolled,
        "p50_ms": round(percentile(latencies_ms, 0.50), 1),
        "p99_ms": round(percentile(latencies_ms, 0.99), 1),
        "max_ms": round(percentile(latencies_ms, 1.0), 1),
        "instances": len(site.members),
        "photos": len(load.ledger.kept),
        "seconds": round(time.monotonic() - started, 1),
        "seed": seed,
    }
    return Outcome(counts, failed, error)


async def _under_load(load: Load, script: Script, seconds: float) -> None:
    """Play the script while users are there, and keep them for `seconds` at least."""
    stop = asyncio.Event()
    users = asyncio.create_task(load.run(stop))
    try:
        await asyncio.gather(script.play(), asyncio.sleep(seconds))
    finally:
        stop.set()
        await users


@contextlib.asynccontextmanager
async def _shown(site: Site, load: Load, progress: Progress) -> AsyncIterator[None]:
    """Keep `progress` informed meanwhile."""

    async def look() -> View:
        try:
            return {service: await site.instances(service, SHOW_INTERVAL_S) for service in SERVICES}
        except HomeportError:
            return None

    async def show() -> None:
        while True:
            progress.show(load.tally, await look())
            await asyncio.sleep(SHOW_INTERVAL_S)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        progress.show(load.tally, await look())
