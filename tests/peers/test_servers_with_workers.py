"""uvicorn and gunicorn with several workers, under `homeport run`: one instance, however many processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from homeport.mesh.one_try import Connection
from tests.resilience.site import SERVICE, Site

WORKERS = 4
PROGRAMS = Path(__file__).parent / "programs"
SERVERS = {
    "uvicorn": ["--app-dir", str(PROGRAMS), "--port", "{port}", "--workers", str(WORKERS), "served:asgi"],
    "gunicorn": ["--chdir", str(PROGRAMS), "--bind", "127.0.0.1:{port}", "--workers", str(WORKERS), "served:wsgi"],
}


@pytest.fixture(params=SERVERS)
def command(request: pytest.FixtureRequest) -> list[str]:
    pytest.importorskip(request.param)
    return [sys.executable, "-m", request.param, *SERVERS[request.param]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Site.opened(tmp_path) as opened:
        yield opened


async def answering(site: Site) -> set[int]:
    """The processes that answer when the edge is asked again and again, over new connections."""
    pids: set[int] = set()
    for number in range(10 * WORKERS):
        connection = Connection(site.edge)
        answer = await connection.request("GET", f"/{number}", host=SERVICE, timeout_s=10.0)
        assert answer.status == 200, answer
        pids.add(int(answer.body))
        connection.close()
    return pids


async def test_a_server_with_workers_is_one_instance_for_as_long_as_it_lives(site: Site, command: list[str]) -> None:
    member = await site.add("orders-1", command=command)
    await site.available("orders-1")
    await site.start_edge()
    pids = await answering(site)
    assert member.child.pid not in pids

    os.kill(min(pids), signal.SIGKILL)  # the server replaces its worker; nobody else needs to know
    async with asyncio.timeout(30):
        while not await answering(site) - pids:
            pass
    await site.available("orders-1")

    member.signal(signal.SIGTERM)
    async with asyncio.timeout(40):
        assert await member.child.wait() == 0
    await site.available()


async def test_gunicorn_reloads_on_a_sighup_that_homeport_passes_on(site: Site) -> None:
    pytest.importorskip("gunicorn")
    member = await site.add("orders-1", command=[sys.executable, "-m", "gunicorn", *SERVERS["gunicorn"]])
    await site.available("orders-1")
    await site.start_edge()
    before = await answering(site)
    member.signal(signal.SIGHUP)
    async with asyncio.timeout(30):
        while await answering(site) & before:
            pass
    assert member.running
    await site.available("orders-1")
