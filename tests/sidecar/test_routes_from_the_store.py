"""Routes live in the registry's store: what is written there takes effect, and what is wrong there does not."""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec
import pytest

from homeport.client import Client
from homeport.registry import Registry
from homeport.sidecar import Route, Routing, Sidecar, Workers
from homeport.sidecar.core.routing import parsed
from tests.conftest import Eventually
from tests.sidecar.conftest import Net

COMMAND = [sys.executable, "-m", "homeport.mesh.worker", "warning"]
KEY = "homeport/routes/orders"


def aborting(status: int) -> bytes:
    """Routes by whose answers a test sees that they are in force."""
    return json.dumps({"routes": [{"name": "all", "fault": {"abort_status": status}}]}).encode()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Registry() as registry, registry.client() as client:
        yield client


async def status_of(net: Net, sidecar: Sidecar | Workers) -> int:
    return int((await net.ask(sidecar, net.get()))[9:12])


async def see(net: Net, sidecar: Sidecar | Workers, status: int) -> None:
    """Return once the answers have this status."""
    while await status_of(net, sidecar) != status:
        pass


async def admin(sidecar: Sidecar | Workers, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{sidecar.at['admin']}{path}") as answer:
        return await answer.text()


async def test_what_is_written_takes_effect_and_what_is_deleted_ends(net: Net, client: Client) -> None:
    upstream = await net.answering(net.ok())
    async with client.register("orders", address="127.0.0.1", port=upstream.port):
        await client.kv.put(KEY, aborting(501))
        sidecar = await net.sidecar(client=client)
        assert await status_of(net, sidecar) == 501  # from the first request on
        await client.kv.put(KEY, aborting(502))
        await see(net, sidecar, 502)
        await client.kv.delete(KEY)
        await see(net, sidecar, 200)


async def test_a_bad_document_is_refused_aloud_and_the_last_good_one_stays(
    net: Net, client: Client, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = await net.sidecar(client=client, admin="127.0.0.1:0")
    good = await client.kv.put(KEY, aborting(501))
    await see(net, sidecar, 501)
    with caplog.at_level(logging.ERROR, "homeport.sidecar"):
        bad = await client.kv.put(KEY, b'{"routes": [{"fault": {"abort_status": 200}}]}')
        await eventually(lambda: caplog.messages)
    reason = "fault.abort_status is 200; allowed: 400 to 599"
    assert reason in caplog.text
    assert await status_of(net, sidecar) == 501
    (entry,) = json.loads(await admin(sidecar, "/routes"))["documents"]
    assert (entry["revision"], entry["refused_revision"], entry["error"]) == (good, bad, reason)
    assert json.loads(entry["document"]) == json.loads(aborting(501))
    assert entry["requests"][0]["requests"] >= 2
    metrics = await admin(sidecar, "/metrics")
    assert "homeport_routes_refused_total 1.0" in metrics
    assert 'homeport_routes_error_held{service="orders"} 1.0' in metrics
    assert 'homeport_route_rq_total{route="all",service="orders"}' in metrics


@pytest.mark.parametrize("key", [b"homeport/routes/", b"homeport/routes/Orders", b"homeport/routes/\xff"])
async def test_a_key_that_names_no_service_is_said_aloud_and_changes_nothing(
    net: Net, client: Client, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = await net.sidecar(client=client)
    await client.kv.put(key, aborting(501))
    await client.kv.put("homeport/routes/billing", aborting(502))
    while (await net.ask(sidecar, net.get(host="billing")))[9:12] != b"502":
        pass
    assert "holds routes of no service" in caplog.text
    assert await status_of(net, sidecar) == 404


async def test_settings_take_effect_on_a_service_in_use(net: Net, client: Client) -> None:
    hosts = [await net.answering(net.ok(status=b"503 Sick")) for _ in range(2)]
    async with (
        client.register("orders", id="a", address="127.0.0.1", port=hosts[0].port),
        client.register("orders", id="b", address="127.0.0.1", port=hosts[1].port),
    ):
        sidecar = await net.sidecar(client=client)
        assert await status_of(net, sidecar) == 503
        assert sum(len(host.heads) for host in hosts) > 1
        await client.kv.put(KEY, b'{"settings": {"retries": null, "circuit": {"requests_max": 7}}}')
        assert sidecar.outbound is not None
        cluster = sidecar.outbound.clusters["orders"]
        while cluster.retry_settings is not None:
            await status_of(net, sidecar)
        before = sum(len(host.heads) for host in hosts)
        assert await status_of(net, sidecar) == 503
        assert sum(len(host.heads) for host in hosts) == before + 1
        assert cluster.circuit is not None
        assert (cluster.circuit.requests, cluster.circuit.requests_max) == (0, 7)


async def test_the_configuration_holds_while_the_store_says_nothing(net: Net, client: Client) -> None:
    static = {"orders": Routing(routes=(Route(name="file"),))}
    sidecar = await net.sidecar(client=client, routes=static)
    assert await status_of(net, sidecar) == 404
    await client.kv.put(KEY, aborting(501))
    await see(net, sidecar, 501)
    await client.kv.delete(KEY)
    await see(net, sidecar, 404)


async def test_a_changed_configuration_takes_effect(net: Net) -> None:
    sidecar = await net.sidecar(static={"orders": ["127.0.0.1:1"]}, routes={"orders": parsed(aborting(501))})
    assert await status_of(net, sidecar) == 501
    sidecar.reconfigure(msgspec.structs.replace(sidecar.options, routes={"orders": parsed(aborting(502))}))
    assert await status_of(net, sidecar) == 502
    sidecar.reconfigure(msgspec.structs.replace(sidecar.options, routes={}))
    assert await status_of(net, sidecar) == 503


async def test_routes_outlive_the_sidecar_and_the_registry(net: Net, tmp_path: Path) -> None:
    state = tmp_path / "endpoints"
    upstream = await net.answering(net.ok())
    async with (
        Registry() as registry,
        registry.client() as client,
        client.register("orders", address="127.0.0.1", port=upstream.port),
    ):
        await client.kv.put(KEY, aborting(501))
        async with Sidecar(client, outbound="127.0.0.1:0", state_file=state, rng=random.Random(1)) as sidecar:
            assert await status_of(net, sidecar) == 501
    async with Client("127.0.0.1:1") as lost:
        sidecar = await net.sidecar(client=lost, state_file=state)
        assert await status_of(net, sidecar) == 501


async def test_a_registry_without_its_data_takes_no_routes_away(net: Net) -> None:
    async with AsyncExitStack() as first:
        registry = await first.enter_async_context(Registry())
        address = (await registry.serve(rpc="127.0.0.1:0")).rpc
        assert address is not None
        async with Client(address) as client:
            await client.kv.put(KEY, aborting(501))
            sidecar = await net.sidecar(client=client)
            assert await status_of(net, sidecar) == 501
            await first.aclose()
            async with Registry() as empty:
                await empty.serve(rpc=address)
                assert await client.kv.get(KEY) is None
                assert await status_of(net, sidecar) == 501
                await client.kv.put(KEY, aborting(502))
                await see(net, sidecar, 502)
                await client.kv.delete(KEY)
                await see(net, sidecar, 404)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")
async def test_every_worker_hears_of_routes_before_it_accepts(net: Net, client: Client) -> None:
    await client.kv.put(KEY, aborting(501))
    async with Workers(client, count=2, command=COMMAND, outbound="127.0.0.1:0", admin="127.0.0.1:0") as workers:
        assert [await status_of(net, workers) for _ in range(10)] == [501] * 10
        await client.kv.put(KEY, aborting(502))
        for _ in range(10):
            await see(net, workers, 502)
        (entry,) = json.loads(await admin(workers, "/routes"))["documents"]
        assert json.loads(entry["document"]) == json.loads(aborting(502))
        assert entry["requests"][0]["requests"] >= 20
