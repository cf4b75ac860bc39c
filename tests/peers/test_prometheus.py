"""Prometheus, unmodified, scrapes what it discovers at `/sd/prometheus`, and stops with what goes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from homeport.registry import Registry
from homeport.sidecar import Sidecar
from tests.ports import free_port

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
    address = f"127.0.0.1:{free_port()}"
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
    async with registry.client() as client, looking(prometheus, "answer") as seen:

        async def register(id_: str, tag: str = "scraped", **meta: str) -> Any:
            one = client.register("web", port=app, id=id_, address="127.0.0.1", tags=(tag,), meta=meta)
            await one.start()
            return one

        first = await register("first")
        await register("second", path="/elsewhere")
        await register("silent", scrape="off")
        await register("other", tag="unscraped")
        expected = {"web/first": "42", "web/second": "43"}
        await eventually(lambda: seen == expected, within_s=DEADLINE_S)
        await first.stop()
        await eventually(lambda: seen == {"web/second": "43"}, within_s=DEADLINE_S)


async def test_it_scrapes_the_numbers_of_a_sidecar_and_computes_with_its_latencies(
    registry: Registry, prometheus: str, app: int, eventually: Eventually
) -> None:
    query = (
        'homeport_upstream_rq_total{code_class="2xx"} and on (service)'
        " histogram_quantile(0.99, homeport_upstream_rq_time_seconds_bucket) < 10"
    )
    static = {"web": [f"127.0.0.1:{app}"]}
    async with (
        Sidecar(outbound="127.0.0.1:0", admin="127.0.0.1:0", static=static, rng=random.Random(2)) as sidecar,
        registry.client() as client,
        looking(prometheus, query) as seen,
        aiohttp.ClientSession() as session,
        client.register(
            "sidecar", port=int(sidecar.at["admin"].split(":")[1]), id="ours", address="127.0.0.1", tags=("scraped",)
        ),
    ):
        for _ in range(3):
            async with session.get(f"http://{sidecar.at['outbound']}/metrics", headers={"host": "web"}) as response:
                assert response.status == 200
        await eventually(lambda: list(seen.values()) == ["3"], within_s=DEADLINE_S)


@asynccontextmanager
async def looking(prometheus: str, query: str) -> AsyncIterator[dict[str, str]]:
    """What Prometheus answers to a query, by service and id, always as of a moment ago."""
    seen: dict[str, str] = {}

    async def look(session: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, KeyError):
                async with session.get(f"http://{prometheus}/api/v1/query", params={"query": query}) as response:
                    found = (await response.json())["data"]["result"]
                seen.clear()
                seen.update({f"{one['metric']['service']}/{one['metric']['id']}": one["value"][1] for one in found})
            await asyncio.sleep(0.05)  # between two questions to a foreign server, which tells nobody of changes

    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(look(session))
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
