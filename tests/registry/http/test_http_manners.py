"""What holds for every endpoint: routing, tokens, limits, headers, health of the registry itself, and a clean end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from homeport.registry import Registry
from homeport.registry.fronts.consul import kv
from homeport.registry.fronts.http import HttpFront
from homeport.registry.fronts.http_server import HEAD_FIELD_BYTES_MAX

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

WEB = {"Name": "web", "Check": {"TTL": "1h", "Status": "passing"}}


async def exchange(http: Http, request: bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the front closes."""
    host, port = http.at.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


# --- routing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v2/kv/a", 404),
        ("PUT", "/v1/agent/leave", 501),
        ("GET", "/v1/catalog/nodes/", 501),
        ("GET", "/v1/acl/tokens", 401),
        ("POST", "/v1/kv/a", 405),
        ("GET", "/v1/agent/service/register", 405),
        ("DELETE", "/v1/status/leader", 405),
    ],
)
async def test_what_is_not_there_is_never_an_empty_success(http: Http, method: str, path: str, status: int) -> None:
    reply = await http(method, path)
    assert reply.status == status
    assert path in reply.text or method in reply.text
    assert (status == 405) == ("Allow" in reply.headers)


async def test_the_root_says_what_this_is_so_that_a_check_of_it_passes(http: Http) -> None:
    """Many a check, and many a client's test of checks, is of the agent's own address."""
    reply = await http("GET", "/")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert "/v1" in reply.text


async def test_the_methods_of_a_path_can_be_asked_for(http: Http) -> None:
    reply = await http("OPTIONS", "/v1/kv/a")
    assert (reply.status, reply.headers["Allow"]) == (200, "DELETE, GET, PUT")


async def test_head_is_get_without_the_body(http: Http) -> None:
    await http("PUT", "/v1/kv/a", b"123")
    head = await http("HEAD", "/v1/kv/a?raw")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "3")
    assert (await http("HEAD", "/healthz")).status == 200


async def test_a_target_in_absolute_form_is_its_path(http: Http) -> None:
    reply = await exchange(http, b"GET http://elsewhere/v1/kv/?keys HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200 ")


# --- shared parameters ----------------------------------------------------------------------------------------------


async def test_pretty_is_the_same_json_for_people(http: Http) -> None:
    await http("PUT", "/v1/kv/a", b"1")
    plain, pretty = await http("GET", "/v1/kv/a"), await http("GET", "/v1/kv/a?pretty")
    assert pretty.json == plain.json
    assert pretty.text.count("\n") > 5


async def test_another_datacenter_cannot_be_reached(http: Http) -> None:
    assert (await http("GET", "/v1/catalog/services?dc=dc1")).status == 200
    for path in ("/v1/catalog/services", "/v1/kv/a", "/v1/health/service/x"):
        reply = await http("GET", f"{path}?dc=mars")
        assert (reply.status, "No path to datacenter" in reply.text) == (500, True)
    assert (await http("PUT", "/v1/kv/a?dc=mars", b"1")).status == 500
    assert (await http("GET", "/v1/kv/a")).status == 404


async def test_the_consistency_asked_for_is_the_one_that_is_named(http: Http) -> None:
    for query, named in (("", "leader"), ("?stale", "stale"), ("?consistent", "consistent")):
        assert (await http("GET", f"/v1/catalog/services{query}")).headers["X-Consul-Effective-Consistency"] == named
    assert (await http("GET", "/v1/catalog/services?stale&consistent")).status == 400


@pytest.mark.parametrize("query", ["ns=team", "partition=p", "peer=far"])
async def test_an_option_that_would_not_be_honoured_is_refused(http: Http, query: str) -> None:
    reply = await http("GET", f"/v1/kv/web?{query}")
    assert reply.status == 400
    assert query.partition("=")[0] in reply.text


async def test_too_many_parameters_are_refused(http: Http) -> None:
    assert (await http("GET", "/v1/kv/a?" + "&".join(["x=1"] * 1000))).status == 400


# --- who may call ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded() -> AsyncIterator[str]:
    async with Registry(token="open sesame") as registry:
        yield f"http://{(await registry.serve(http='127.0.0.1:0')).http}"


async def test_a_token_is_asked_for_and_taken_however_it_is_carried(guarded: str) -> None:
    carried: list[tuple[str, dict[str, str]]] = [
        ("", {"X-Consul-Token": "open sesame"}),
        ("", {"Authorization": "Bearer open sesame"}),
        ("?token=open%20sesame", {}),
    ]
    wrong: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        ("", {"X-Consul-Token": "open"}),
        ("?token=x", {"X-Consul-Token": "open sesame"}),
        ("", {"Authorization": "Basic open sesame"}),
    ]
    async with aiohttp.ClientSession() as session:
        for query, headers in carried:
            async with session.get(f"{guarded}/v1/catalog/services{query}", headers=headers) as response:
                assert response.status == 200, (query, headers)
        for query, headers in wrong:
            for method, path in (("GET", "/v1/kv/a"), ("PUT", "/v1/kv/a"), ("GET", "/metrics")):
                async with session.request(method, f"{guarded}{path}{query}", headers=headers) as response:
                    assert response.status == 403, (query, headers)
                    assert "Permission denied" in await response.text()
        async with session.get(f"{guarded}/v1/kv/a", headers={"X-Consul-Token": "open sesame"}) as response:
            assert response.status == 404, "nothing was written by those who may not"
        for path in ("/healthz", "/readyz", "/v1/status/leader"):
            async with session.get(f"{guarded}{path}") as response:
                assert response.status == 200


async def test_a_web_page_may_not_write_to_a_registry_without_a_token(http: Http, guarded: str) -> None:
    page = {"Origin": "http://elsewhere.example"}
    for method, path in (("PUT", "/v1/kv/a"), ("DELETE", "/v1/kv/a"), ("PUT", "/v1/agent/service/register")):
        reply = await http(method, path, b"{}", **page)
        assert reply.status == 403, (method, path)
        assert "Origin" in reply.text
    assert (await http("GET", "/v1/kv/a", **page)).status == 404, "nothing was written, and reading is no matter"
    headers = page | {"X-Consul-Token": "open sesame"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.put(f"{guarded}/v1/kv/a", data=b"x") as response,
    ):
        assert response.status == 200, "who has the token is no page of anybody's"


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_a_value_may_have_512_kib_and_not_a_byte_more(http: Http) -> None:
    assert (await http("PUT", "/v1/kv/big", b"x" * kv.KV_BYTES_MAX)).status == 200
    assert (await http("PUT", "/v1/kv/big", b"y" * (kv.KV_BYTES_MAX + 1))).status == 413
    assert (await http("GET", "/v1/kv/big?raw")).body == b"x" * kv.KV_BYTES_MAX


async def test_a_body_that_is_too_long_is_refused_before_it_is_sent(http: Http) -> None:
    said = b"PUT /v1/kv/big HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n"
    host, port = http.at.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_chunked_body_that_grows_too_long_is_refused(http: Http) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(kv.KV_BYTES_MAX // 65_536 + 1):
            yield b"z" * 65_536

    assert (await http("PUT", "/v1/kv/big", chunks())).status == 413
    assert (await http("GET", "/v1/kv/big")).status == 404


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(http: Http) -> None:
    host, port = http.at.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
        assert await reader.readline() == b"\r\n"
        writer.write(b"abc")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert (await http("GET", "/v1/kv/a?raw")).body == b"abc"


async def test_a_header_that_is_too_long_is_refused(http: Http) -> None:
    field = b"x" * (HEAD_FIELD_BYTES_MAX + 1)
    reply = await exchange(http, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + field + b"\r\n\r\n")
    assert reply.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


async def test_a_connection_too_many_is_told_so_and_a_freed_place_is_taken(
    registry: Registry, http: Http, eventually: Eventually
) -> None:
    front = HttpFront(registry.operations, rng=random.Random(1), connections_max=2)
    http.at = await front.listen("127.0.0.1:0")
    host, port = http.at.split(":")
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    for reader, writer in held:
        writer.write(ask)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    refused = await exchange(http, ask)
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"Retry-After: " in refused
    assert refused.endswith(b"Too many connections")
    assert front.numbers.connections_refused == 1
    held[0][1].close()
    await eventually(lambda: front.numbers.connections == 1)
    assert (await exchange(http, ask.replace(b"x\r\n", b"x\r\nConnection: close\r\n", 1))).startswith(b"HTTP/1.1 200 ")
    held[1][1].close()
    await front.close()


# --- the registry itself --------------------------------------------------------------------------------------------


async def test_the_agent_says_what_clients_need_to_know_of_it(http: Http) -> None:
    one = (await http("GET", "/v1/agent/self")).json
    assert one["Config"]["Datacenter"] == "dc1"
    assert one["Config"]["NodeName"] == "home"
    assert one["Config"]["Server"] is True
    assert one["Config"]["AdvertiseAddr"] == "127.0.0.1"
    assert len(one["Config"]["NodeID"]) == 36
    assert int(one["Config"]["Version"].split(".")[0]) >= 1
    assert (one["Member"]["Name"], one["Member"]["Status"]) == ("home", 1)
    assert {"Addr", "Port"} <= one["Member"].keys()
    assert (await http("GET", "/v1/status/leader")).json == "127.0.0.1:8300"


async def test_the_metrics_are_what_prometheus_reads_and_true(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    await http("GET", "/v1/kv/none")
    await http("GET", "/v1/kv/none")
    await http("GET", "/v1/unheard/of")
    waiting = await http.blocked("/v1/kv/none?index=1")
    page = await http("GET", "/metrics")
    assert page.headers["Content-Type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    assert samples["homeport_store_revision",] == registry.store.mvcc.revision
    assert samples["homeport_services",] == 1
    assert samples["homeport_instances", "passing"] == 1
    assert samples["homeport_instances", "critical"] == 0
    assert samples["homeport_http_blocked_queries",] == 1
    assert samples["homeport_http_connections",] >= 2
    assert samples["homeport_http_requests_total", "GET /v1/kv/{key}", "404"] == 2
    assert samples["homeport_http_requests_total", "none", "404"] == 1
    await http("PUT", "/v1/kv/none", b"")
    await waiting


async def test_readiness_tells_whether_anything_can_be_written_to_who_asks(http: Http, registry: Registry) -> None:
    assert (await http("GET", "/readyz?writable")).status == 200
    registry.store.read_only = "no quorum"
    try:
        reading, writing = await http("GET", "/readyz"), await http("GET", "/readyz?writable")
    finally:
        registry.store.read_only = None
    assert (reading.status, reading.text) == (200, "ready, read only: no quorum\n")
    assert (writing.status, writing.text) == (503, "read only: no quorum\n")


async def test_a_closing_front_is_not_ready_first_then_finishes_what_is_under_way_and_is_gone(http: Http) -> None:
    assert (await http("GET", "/readyz")).status == 200
    host, port = http.at.split(":")
    idle_reader, idle = await asyncio.open_connection(host, int(port))
    slow_reader, slow = await asyncio.open_connection(host, int(port))
    try:
        # A request that is under way: its body has still to come.
        slow.write(b"PUT /v1/kv/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert (await slow_reader.readline()).startswith(b"HTTP/1.1 100 ")
        closing = asyncio.create_task(http.front.close())
        async with asyncio.timeout(30):
            idle.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            said = await idle_reader.read()  # to the end: an answer of a closing front ends its connection
            assert said.startswith(b"HTTP/1.1 503 ")
            assert not closing.done()
            slow.write(b"abc")
            assert b"HTTP/1.1 200 " in await slow_reader.read(), "what was under way is answered"
            await closing
    finally:
        idle.close()
        slow.close()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http("GET", "/healthz")


async def test_logs_are_silent_unless_asked_for(http: Http, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await http("GET", "/v1/kv/none")
        await http("GET", "/v1/unheard/of")
        assert caplog.records == []
    with caplog.at_level("DEBUG", logger="homeport.registry.http"):
        await http("GET", "/v1/kv/none")
        assert any("/v1/kv/none" in record.getMessage() for record in caplog.records)
