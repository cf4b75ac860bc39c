"""DeregisterCriticalServiceAfter, in virtual time: a service that stays critical goes, no earlier than it asked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from homeport.client import Check
from homeport.client.core.messages import Register
from homeport.client.core.model import Instance
from homeport.mesh.testing import connector_factory, virtual_now, virtual_time
from homeport.registry import Registry

Put = Callable[..., Awaitable[None]]


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Registry, Put]]:
    async with Registry(node="home", rng=random.Random(3)) as registry:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        async with aiohttp.ClientSession(connector=connector_factory()) as session:

            async def put(path: str, body: object = None) -> None:
                async with session.put(f"http://{at}{path}", json=body) as response:
                    assert response.status == 200, await response.text()

            yield registry, put


def definition(after: str, ttl: str = "20s") -> dict[str, object]:
    return {"Name": "web", "Check": {"TTL": ttl, "Status": "passing", "DeregisterCriticalServiceAfter": after}}


@virtual_time()
async def test_a_service_that_stays_critical_is_deregistered_within_a_sweep_of_its_time() -> None:
    async with serving() as (registry, put):
        await put("/v1/agent/service/register", definition("2m"))
        began = virtual_now()
        while registry.catalogue.find("home", "web"):
            assert virtual_now() - began < 1000
            await asyncio.sleep(1)
        # 20 s until its TTL is over, 2 minutes of grace, 30 s until the next sweep.
        assert 140 <= virtual_now() - began <= 20 + 120 + 30 + 2


@virtual_time()
async def test_a_service_that_recovers_in_time_starts_its_time_anew() -> None:
    async with serving() as (registry, put):
        await put("/v1/agent/service/register", definition("2m"))
        for _ in range(10):
            await asyncio.sleep(20 + 110)
            entry = registry.catalogue.find("home", "web")
            assert entry is not None
            assert entry.seen.status == "critical"
            await put("/v1/agent/check/pass/service:web")


@virtual_time()
async def test_reporting_critical_again_and_again_does_not_start_the_time_anew() -> None:
    async with serving() as (registry, put):
        await put("/v1/agent/service/register", definition("2m"))
        for number in range(11):
            await put(f"/v1/agent/check/fail/service:web?note={number}")
            await asyncio.sleep(10)
        assert registry.catalogue.find("home", "web") is not None
        await asyncio.sleep(60)
        assert registry.catalogue.find("home", "web") is None


@virtual_time()
async def test_a_time_under_a_minute_is_raised_to_one() -> None:
    async with serving() as (registry, put):
        await put("/v1/agent/service/register", definition("1s", ttl="1s"))
        await asyncio.sleep(60)
        assert registry.catalogue.find("home", "web") is not None
        await asyncio.sleep(35)
        assert registry.catalogue.find("home", "web") is None


@virtual_time()
async def test_a_service_that_asked_for_nothing_stays() -> None:
    async with serving() as (registry, put):
        await put("/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1s"}})
        await asyncio.sleep(1_000)
        assert registry.catalogue.find("home", "web") is not None


@virtual_time()
async def test_a_check_that_others_look_after_has_its_time_enforced_too() -> None:
    async with serving() as (registry, put):
        definition = {"TCP": "10.0.0.9:1", "DeregisterCriticalServiceAfter": "2m"}
        told = {"CheckID": "up", "ServiceID": "db", "Status": "critical", "Definition": definition}
        far = {"Node": "far", "Address": "10.0.0.9", "Service": {"Service": "db"}}
        await put(
            "/v1/catalog/register", {**far, "Check": {**told, "Definition": {"DeregisterCriticalServiceAfter": "2m"}}}
        )
        await asyncio.sleep(119)
        assert registry.catalogue.find("far", "db") is not None
        await asyncio.sleep(35)
        assert registry.catalogue.find("far", "db") is None
        assert registry.catalogue.find("far", "") is not None, "its node stays"


@virtual_time()
async def test_no_front_needs_to_be_open_for_it_and_a_restart_starts_the_time_anew(tmp_path: Path) -> None:
    check = Check(name="up", kind="tcp", address="127.0.0.1:9", interval_s=1.0, deregister_after_s=60.0)
    kept = Check(name="up", kind="tcp", address="127.0.0.1:9", interval_s=1.0)
    async with Registry(tmp_path, node="home") as registry, registry.client() as client:
        await client.call(Register(instance=Instance(service="web", id="goes", port=9, checks=(check,))))
        await client.call(Register(instance=Instance(service="web", id="stays", port=9, checks=(kept,))))
        await asyncio.sleep(59)
        assert registry.catalogue.find("home", "goes") is not None
    async with Registry(tmp_path, node="home") as registry:
        await asyncio.sleep(59)
        assert registry.catalogue.find("home", "goes") is not None
        await asyncio.sleep(35)
        assert registry.catalogue.find("home", "goes") is None
        assert registry.catalogue.find("home", "stays") is not None
