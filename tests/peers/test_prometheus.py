"""Prometheus, unmodified, scrapes what it discovers at `/sd/prometheus`, and stops with what goes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually

DEADLINE_S = 60.0
TOKEN = "prometheus may read"
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 200ms}}
scrape_configs:
- job_name: discovered
  http_sd_configs:
  - url: http://{registry}/sd/prometheus?tag=scraped&filter=Service.Meta.scrape+!%3D+off
    refresh_interval: 250ms
    authorization: {{type: Bearer, credentials: {token}}}
  relabel_configs:
  - {{source_labels: [__meta_consul_service], target_label: service}}
  - {{source_labels: [__meta_consul_service_id], target_label: id}}
  - {{source_labels: [__meta_consul_service_metadata_path], regex: (.+), target_label: __metrics_path__}}
"""


@pytest.fixture
async def app() -> AsyncIterator[int]:
    """The port of an app with two pages of numbers."""

    def page(text: str) -> Any:
        async def answer(_request: web.Request) -> web.Response:
            return web.Response(text=text)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", page("answer 42\n"))
    app.router.add_get("/elsewhere", page("answer 43\n"))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    yield site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    await runner.cleanup()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(node="home", token=TOKEN, rng=random.Random(1)) as registry:
        yield registry


@pytest.fixture
async def prometheus(registry: Registry, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a Prometheus that discovers at the registry."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    at = await registry.serve(http="127.0.0.1:0")
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(registry=at.http, token=TOKEN))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    yield address
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def test_it_scrapes_what_it_discovers_and_forgets_what_goes(
    registry: Registry, prometheus: str, app: int, eventually: Eventually
) -> None:
    seen: dict[str, str] = {}

    async def look(session: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, KeyError):
                async with session.get(f"http://{prometheus}/api/v1/query", params={"query": "answer"}) as response:
                    found = (await response.json())["data"]["result"]
                seen.clear()
                seen.update({f"{one['metric']['service']}/{one['metric']['id']}": one["value"][1] for one in found})
            await asyncio.sleep(0.05)  # between two questions to a foreign server, which tells nobody of changes

    async with registry.client() as client, aiohttp.ClientSession() as session:
        looking = asyncio.create_task(look(session))

        async def register(id_: str, tag: str = "scraped", **meta: str) -> Any:
            one = client.register("web", port=app, id=id_, address="127.0.0.1", tags=(tag,), meta=meta)
            await one.start()
            return one

        try:
            first = await register("first")
            await register("second", path="/elsewhere")
            await register("silent", scrape="off")
            await register("other", tag="unscraped")
            expected = {"web/first": "42", "web/second": "43"}
            await eventually(lambda: seen == expected, within_s=DEADLINE_S)
            await first.stop()
            await eventually(lambda: seen == {"web/second": "43"}, within_s=DEADLINE_S)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
