"""Sidecars that are replaced under load, whole or in part: nobody notices, or only who was connected to what died."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homeport.mesh.demo.processes import Process
from tests.resilience.site import CLIENTS, Site

if TYPE_CHECKING:
    from tests.conftest import Eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections among processes")


def workers_of(process: Process) -> list[int]:
    pid = process.child.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_killed_worker_loses_its_own_connections_only(site: Site, eventually: Eventually) -> None:
    await site.fill(2)
    edge = await site.start_edge("--workers", "2")
    load = site.load()
    async with load.running():
        await load.more(150)
        os.kill(workers_of(edge)[0], signal.SIGKILL)
        await load.more(300)
    failures = load.tally.failures
    assert len(failures) < CLIENTS, "one user was connected to one worker, and each lost one request at most"
    assert all("IncompleteReadError" in each.reason or "ConnectionReset" in each.reason for each in failures)
    await eventually(lambda: len(workers_of(edge)) == 2)


@pytest.mark.parametrize(
    ("before", "after"),
    [((), ()), (("--workers", "2"), ("--workers", "2"))],
    ids=["one process by another", "workers by workers"],
)
async def test_nobody_notices_a_takeover(site: Site, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    await _take_over(site, before, after)


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "after"),
    [((), ("--workers", "2")), (("--workers", "2"), ()), (("--workers", "2"), ("--workers", "3"))],
    ids=["one by two", "two by one", "two by three"],
)
async def test_nobody_notices_a_takeover_by_more_or_fewer(
    site: Site, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    await _take_over(site, before, after)


async def _take_over(site: Site, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    await site.fill(2)
    edge = await site.start_edge(*before)
    load = site.load()
    async with load.running():
        await load.more(150)
        await site.replace_edge(edge, *after)
        await load.more(300)
    assert load.judge() == []


async def test_an_instance_whose_sidecar_has_workers_drains_like_any_other(site: Site) -> None:
    await site.add("orders-1", options=("--workers", "2"))
    await site.add("orders-2")
    await site.available("orders-1", "orders-2")
    await site.start_edge()
    load = site.load()
    async with load.running():
        await load.more(150)
        site.members["orders-1"].signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await site.members["orders-1"].child.wait()
        await load.more(100)
    assert load.judge() == []
    assert site.witness("orders-1")
