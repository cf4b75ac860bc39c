"""py-consul, unmodified: registers, finds, reports, keeps keys and waits, as against Consul."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually

consul = pytest.importorskip("consul", reason="py-consul is not installed (make peers)")

DEADLINE_S = 20.0


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the client, which blocks, from a thread of its own."""
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.to_thread(function, *args, **kwargs)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(node="home", rng=random.Random(1)) as registry:
        yield registry


@pytest.fixture
async def front(registry: Registry) -> AsyncIterator[HttpFront]:
    front = HttpFront(registry.operations, rng=random.Random(1))
    yield front
    await front.close()


@pytest.fixture
async def client(front: HttpFront) -> AsyncIterator[Any]:
    host, port = (await front.listen("127.0.0.1:0")).split(":")
    with consul.Consul(host=host, port=int(port)) as client:
        yield client


async def test_it_finds_its_agent(client: Any) -> None:
    assert (await call(client.agent.self))["Config"]["NodeName"] == "home"
    assert await call(client.status.leader)


async def test_it_registers_finds_and_deregisters_a_service(client: Any) -> None:
    assert await call(
        client.agent.service.register,
        "web",
        service_id="web1",
        address="10.0.0.7",
        port=8080,
        tags=["v1"],
        meta={"rack": "7"},
        check=consul.Check.ttl("30s"),
    )
    _, services = await call(client.catalog.services)
    assert services == {"consul": [], "web": ["v1"]}
    _, found = await call(client.health.service, "web")
    (one,) = found
    assert one["Service"]["Address"] == "10.0.0.7"
    assert one["Service"]["Port"] == 8080
    assert one["Service"]["Meta"] == {"rack": "7"}
    statuses = {check["CheckID"]: check["Status"] for check in one["Checks"]}
    assert statuses == {"serfHealth": "passing", "service:web1": "critical"}
    assert (await call(client.health.service, "web", passing=True))[1] == []
    assert await call(client.agent.service.deregister, "web1")
    assert (await call(client.health.service, "web"))[1] == []


async def test_its_http_and_tcp_checks_are_run(client: Any, eventually: Eventually, registry: Registry) -> None:
    host, _, port = client.http.base_uri.removeprefix("http://").partition(":")
    url = f"{client.http.base_uri}/healthz"
    for name, check in (
        ("by-http", consul.Check.http(url, "1s", timeout="1s", header={"X-A": ["b", "c"]})),
        ("by-tcp", consul.Check.tcp(host, int(port), "1s", timeout="1s", deregister="1m")),
    ):
        assert await call(client.agent.service.register, name, check=check)
    for name in ("by-http", "by-tcp"):
        service = registry.catalogue.services[name]
        await eventually(lambda service=service: len(service.instances(passing=True)) == 1)
        assert len((await call(client.health.service, name, passing=True))[1]) == 1


async def test_it_reports_a_ttl_check(client: Any) -> None:
    await call(client.agent.service.register, "web", service_id="web1", check=consul.Check.ttl("30s"))
    for report, status in (("ttl_pass", "passing"), ("ttl_warn", "warning"), ("ttl_fail", "critical")):
        assert await call(getattr(client.agent.check, report), "service:web1", notes=f"said {status}")
        _, (one,) = await call(client.health.service, "web")
        told = next(check for check in one["Checks"] if check["CheckID"] == "service:web1")
        assert (told["Status"], told["Output"]) == (status, f"said {status}")


async def test_what_this_registry_does_not_do_is_an_error_it_shows(client: Any) -> None:
    with pytest.raises(consul.exceptions.BadRequest, match="remote code execution"):
        await call(client.agent.service.register, "web", check=consul.Check.script(["true"], "10s"))
    with pytest.raises(consul.ConsulException, match="501"):
        await call(client.connect.ca.roots)


async def test_it_registers_nodes_services_and_checks_with_the_catalogue(client: Any) -> None:
    service = {"Service": "db", "ID": "db1", "Port": 5432, "Tags": ["primary"], "Address": "10.0.0.9"}
    check = {"Name": "disk", "CheckID": "disk", "Status": "passing", "Notes": "n"}
    assert await call(client.catalog.register, "far", "10.0.0.9", service=service, check=check)
    _, nodes = await call(client.catalog.nodes)
    assert [node["Node"] for node in nodes] == ["far", "home"]
    assert (await call(client.catalog.nodes, node_meta={"os": "bsd"}))[1] == []
    index, found = await call(client.catalog.node, "far")
    assert list(found["Services"]) == ["db1"]
    assert (await call(client.catalog.node, "none"))[1] is None
    _, (row,) = await call(client.catalog.service, "db", tag="primary")
    assert (row["ServicePort"], row["NodeMeta"]) == (5432, {})
    assert [one["CheckID"] for one in (await call(client.health.node, "far"))[1]] == ["disk"]
    assert (await call(client.health.checks, "db"))[1] == []
    waiting = asyncio.create_task(call(client.catalog.node, "far", index=index, wait="1m"))
    assert await call(client.catalog.register, "far", "10.0.0.9", check={**check, "Status": "critical"})
    assert int((await waiting)[0]) > int(index)
    assert [one["Node"] for one in (await call(client.health.state, "critical"))[1]] == ["far"]
    assert (await call(client.health.service, "db", passing=True))[1] == []
    assert await call(client.catalog.deregister, "far", check_id="disk")
    assert len((await call(client.health.service, "db", passing=True))[1]) == 1
    assert await call(client.catalog.deregister, "far", service_id="db1")
    assert await call(client.catalog.deregister, "far")
    assert [node["Node"] for node in (await call(client.catalog.nodes))[1]] == ["home"]


async def test_it_puts_its_node_in_maintenance_and_adds_checks_to_it(client: Any) -> None:
    await call(client.agent.service.register, "web")
    await call(client.agent.maintenance, True, "moving")
    assert (await call(client.agent.checks))["_node_maintenance"]["Notes"] == "moving"
    assert (await call(client.health.service, "web", passing=True))[1] == []
    await call(client.agent.maintenance, False)
    assert await call(client.agent.check.register, "disk", consul.Check.ttl("30s"), check_id="disk")
    assert await call(client.agent.check.ttl_pass, "disk")
    assert len((await call(client.health.service, "web", passing=True))[1]) == 1
    assert await call(client.agent.check.deregister, "disk")
    assert await call(client.agent.checks) == {}


async def test_it_keeps_keys(client: Any) -> None:
    index, missing = await call(client.kv.get, "a")
    assert missing is None
    assert int(index) >= 1
    assert await call(client.kv.put, "a", b"\x00value", flags=7) is True
    _, found = await call(client.kv.get, "a")
    assert (found["Value"], found["Flags"]) == (b"\x00value", 7)
    assert await call(client.kv.put, "a", "other", cas=0) is False
    assert await call(client.kv.put, "a", "other", cas=found["ModifyIndex"]) is True
    for key in ("d/1", "d/2", "d/e/3"):
        await call(client.kv.put, key, "")
    assert (await call(client.kv.get, "d/", keys=True, separator="/"))[1] == ["d/1", "d/2", "d/e/"]
    assert [one["Key"] for one in (await call(client.kv.get, "d/", recurse=True))[1]] == ["d/1", "d/2", "d/e/3"]
    assert (await call(client.kv.get, "d/1"))[1]["Value"] is None
    assert await call(client.kv.delete, "d/", recurse=True) is True
    assert (await call(client.kv.get, "d/", recurse=True))[1] is None


async def test_it_waits_for_a_key_and_for_a_service(client: Any, front: HttpFront, eventually: Eventually) -> None:
    async def blocked(function: Callable[..., Any], name: str) -> asyncio.Task[Any]:
        index, _ = await call(function, name)
        before = front.numbers.blocked
        task = asyncio.create_task(call(function, name, index=index, wait="15s"))
        await eventually(lambda: front.numbers.blocked > before)
        return task

    waiting = await blocked(client.kv.get, "a")
    await call(client.kv.put, "a", "1")
    index, found = await waiting
    assert found["Value"] == b"1"
    assert int(index) == found["ModifyIndex"]
    waiting = await blocked(client.health.service, "web")
    await call(client.agent.service.register, "web")
    assert len((await waiting)[1]) == 1
    index, _ = await call(client.kv.get, "a")
    assert (await call(client.kv.get, "a", index=index, wait="100ms"))[0] == index


async def test_it_locks_with_sessions(client: Any) -> None:
    first = await call(client.session.create, name="first", ttl=10, lock_delay=0)
    second = await call(client.session.create, behavior="delete", lock_delay=0)
    assert (await call(client.session.info, first))[1]["Name"] == "first"
    assert len((await call(client.session.list))[1]) == 2
    assert len((await call(client.session.node, "home"))[1]) == 2
    assert (await call(client.session.renew, first))["ID"] == first
    assert await call(client.kv.put, "lock", "1", acquire=first) is True
    assert await call(client.kv.put, "lock", "2", acquire=second) is False
    assert (await call(client.kv.get, "lock"))[1]["Session"] == first
    assert await call(client.kv.put, "lock", "1", release=first) is True
    assert await call(client.kv.put, "lock", "2", acquire=second) is True
    assert await call(client.session.destroy, second) is True
    assert (await call(client.kv.get, "lock"))[1] is None
    with pytest.raises(consul.ConsulException, match="invalid session"):
        await call(client.kv.put, "lock", "2", acquire=second)


async def test_it_transacts(client: Any) -> None:
    write = {"KV": {"Verb": "set", "Key": "a", "Value": "MQ=="}}
    done = await call(client.txn.put, [write, {"KV": {"Verb": "get", "Key": "a"}}])
    assert [one["KV"]["Key"] for one in done["Results"]] == ["a", "a"]
    with pytest.raises(consul.ConsulException, match="index is stale"):
        await call(client.txn.put, [{"KV": {"Verb": "cas", "Key": "a", "Value": "Mg==", "Index": 1}}])


async def test_it_keeps_asks_and_deletes_prepared_queries(client: Any) -> None:
    """Whatever it makes is a template, so its name is asked for with something after it."""
    for id_, tags in (("web1", ["v1"]), ("web2", ["v2"])):
        await call(client.agent.service.register, "web", service_id=id_, port=80, tags=tags)
    made = await call(client.query.create, "web", name="shop-", tags=["v1"], ttl="10s", regexp="^shop-(.*)$", token="t")
    executed = await call(client.query.execute, "shop-a", near="_agent", limit=1)
    assert [node["Service"]["ID"] for node in executed["Nodes"]] == ["web1"]
    assert executed["DNS"] == {"TTL": "10s"}
    assert await call(client.query.update, made["ID"], "${match(1)}", name="shop-", regexp="^shop-(.*)$")
    assert (await call(client.query.explain, "shop-web"))["Query"]["Service"]["Service"] == "web"
    assert len((await call(client.query.execute, "shop-web"))["Nodes"]) == 2
    assert [one["ID"] for one in await call(client.query.list)] == [made["ID"]]
    assert await call(client.query.delete, made["ID"])
    assert await call(client.query.list) == []


async def test_it_finds_coordinates(client: Any) -> None:
    _index, found = await call(client.coordinate.nodes)
    assert [one["Node"] for one in found] == ["home"]
    assert (await call(client.coordinate.datacenters))[0]["Datacenter"] == "dc1"


async def test_it_chooses_by_filter_expressions(client: Any) -> None:
    for id_, port in (("web1", 80), ("web2", 81)):
        await call(client.agent.service.register, "web", service_id=id_, port=port, tags=["v1"])
    assert list(await call(client.agent.services, filter_expr='Port == 81 and "v1" in Tags')) == ["web2"]
    _index, found = await call(client.health.service, "web", filter_expr="not Service.Port == 81")
    assert [one["Service"]["ID"] for one in found] == ["web1"]
    with pytest.raises(consul.ConsulException, match="column 6: expected an operator"):
        await call(client.agent.checks, filter_expr="Name = x")


@pytest.mark.filterwarnings("ignore:ssl_context is deprecated:DeprecationWarning")  # its own way with aiohttp
async def test_its_asyncio_client_registers_waits_locks_and_transacts(front: HttpFront) -> None:
    aio = importlib.import_module("consul.aio")
    host, port = (await front.listen("127.0.0.1:0")).split(":")
    client = aio.Consul(host=host, port=int(port))
    async with asyncio.timeout(DEADLINE_S):
        assert await client.agent.service.register("orders", service_id="orders-1", port=8080, tags=["blue"])
        index, nodes = await client.health.service("orders", passing=True)
        assert [node["Service"]["ID"] for node in nodes] == ["orders-1"]
        waiting = asyncio.ensure_future(client.health.service("orders", passing=True, index=index, wait="10s"))
        assert await client.agent.service.deregister("orders-1")
        later, nodes = await waiting
        assert (int(later) > int(index), nodes) == (True, [])
        session = await client.session.create(name="one", lock_delay=0)
        assert await client.kv.put("lock", "mine", acquire=session)
        other = await client.session.create(name="other", lock_delay=0)
        assert not await client.kv.put("lock", "mine", acquire=other)
        _, held = await client.kv.get("lock")
        assert held["Session"] == session
        results = await client.txn.put([{"KV": {"Verb": "get", "Key": "lock"}}])
        assert results["Results"][0]["KV"]["Key"] == "lock"
        assert await client.session.destroy(session)
    await client.http.close()
