"""What `explain` says: every reason for which an instance may be in or out is named, by RPC and over HTTP."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp

from homeport.client import Check, Client
from homeport.client.core.messages import Explain, Explained
from homeport.mesh.testing import connector_factory, virtual_time
from homeport.registry import Registry


async def _one(client: Client, id_: str = "web") -> Explained:
    return await client.call(Explain(id=id_, node="home"))


def _says(found: Explained, *words: str) -> None:
    text = "\n".join(found.reasons)
    for each in words:
        assert each in text, f"{each!r} is not in:\n{text}"


async def _until(client: Client, words: str) -> None:
    for _ in range(240):
        found = await _one(client)
        if any(words in reason for reason in found.reasons):
            return
        await asyncio.sleep(0.25)
    _says(found, words)


@virtual_time(seed=1)
async def test_checks_leases_thresholds_and_deadlines_are_told(tmp_path: Path) -> None:
    async with Registry(node="home", rng=random.Random(1)) as registry, registry.client() as client:
        app = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 8080)
        checks = [
            Check(name="up", kind="tcp", address="127.0.0.1:8080", interval_s=10.0, critical_after=4, warning_after=2),
            Check(name="own", kind="ttl", ttl_s=3600.0, initial="passing", deregister_after_s=60.0),
            Check(name="db", kind="alias", alias_id="postgres"),
        ]
        await client.register("postgres", id="postgres", port=1, ttl_s=0).start()
        registration = client.register("web", id="web", port=8080, ttl_s=30.0, checks=checks)
        await registration.start()
        found = await _one(client)
        assert not found.available
        _says(found, "out of rotation: critical", "check up (tcp) is critical: no verdict yet")
        _says(found, "no result yet: 0 of the 2 in a row that make it passing; the next look is in")
        await asyncio.sleep(30)
        found = await _one(client)
        assert found.available
        _says(found, "in rotation: up, and passing", "its lease of 30 s ends in 2", "unless it is renewed")
        _says(found, "check db (alias) is passing: alias: 'postgres' on node 'home' is passing")
        app.close()
        await app.wait_closed()
        for expected in (
            "check up (tcp) is passing: TCP connect 127.0.0.1:8080: connected; last results passing",
            "critical: 1 of the 4 in a row that make it critical (2 for a warning); the next look is in",
            "check up (tcp) is warning: TCP connect 127.0.0.1:8080: connection refused",
            "critical, critical: 2 of the 4 in a row that make it critical; the next look is in",
            "critical, critical, critical: 3 of the 4 in a row that make it critical; the next look is in",
        ):
            await _until(client, expected)
        await registration.report("own", "critical", "out of disk")
        await asyncio.sleep(1)
        _says(await _one(client), "check own (ttl) is critical: out of disk", "it is deregistered in 59 s unless")
        await registration.set_state("draining")
        _says(await _one(client), "out of rotation: draining")


@virtual_time(seed=2)
async def test_maintenance_has_its_reason_and_the_node_its_checks() -> None:
    async with Registry(node="home", rng=random.Random(1)) as registry, registry.client() as client:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        async with aiohttp.ClientSession(connector=connector_factory()) as session:

            async def put(path: str, body: object = None) -> None:
                async with session.put(f"http://{at}{path}", json=body) as response:
                    assert response.status == 200, await response.text()

            await put("/v1/agent/service/register", {"Name": "web"})
            _says(await _one(client), "in rotation", "no checks: that counts as passing", "no lease")
            await put("/v1/agent/check/register", {"Name": "disk", "TTL": "1h"})
            _says(await _one(client), "out of rotation", "node home, check disk (ttl) is critical")
            await put("/v1/agent/service/maintenance/web?enable=true&reason=new+disk")
            _says(await _one(client), "somebody took it out (new disk)")
            await put("/v1/agent/maintenance?enable=true&reason=move")
            _says(await _one(client), "its node home is in maintenance (move)")
            async with session.get(f"http://{at}/explain/web?id=web") as response:
                body = await response.json()
                assert (response.status, body[0]["available"]) == (200, False)
            async with session.get(f"http://{at}/explain/none") as response:
                assert response.status == 404


@virtual_time(seed=3)
async def test_an_instance_kept_after_a_mass_expiry_says_so() -> None:
    async with Registry(node="home", rng=random.Random(1)) as registry, registry.client() as watching:
        client = registry.client()
        await client.start()
        for number in range(25):
            await client.register("web", id=f"web{number}", port=1, ttl_s=5.0).start()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("registration of"):
                task.cancel()
        await client.close()
        await asyncio.sleep(6.0)
        _says(await _one(watching, "web3"), "it is kept for one more TTL at most", "are left; fewer than half")
