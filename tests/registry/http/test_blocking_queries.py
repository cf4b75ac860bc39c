"""Blocking queries: woken by exactly what they wait for, freed when their client goes, on time when nothing happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from homeport.client.core.messages import SetState
from homeport.mesh.testing import connector_factory, virtual_now, virtual_time
from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

WEB = {"ID": "web1", "Name": "web", "Check": {"TTL": "1h", "Status": "passing"}}


@pytest.mark.parametrize("path", ["/v1/kv/k?index=&wait=", "/v1/kv/k?wait=&index="])
async def test_an_empty_index_and_wait_are_as_none(http: Http, path: str) -> None:
    """A script that fills in variables which it has not set yet asks so, and Consul answers."""
    await http("PUT", "/v1/kv/k", b"1")
    async with asyncio.timeout(10):
        assert (await http("GET", path)).json[0]["Key"] == "k"


async def index(http: Http, path: str) -> int:
    return (await http("GET", path)).index


async def test_a_key_wakes_when_it_is_written_and_when_it_is_deleted(http: Http) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    waiting = await http.blocked(f"/v1/kv/k?index={await index(http, '/v1/kv/k')}")
    await http("PUT", "/v1/kv/k", b"2")
    woken = await waiting
    assert woken.json[0]["ModifyIndex"] == woken.index
    waiting = await http.blocked(f"/v1/kv/k?index={woken.index}")
    await http("DELETE", "/v1/kv/k")
    gone = await waiting
    assert gone.status == 404
    assert gone.index > woken.index
    waiting = await http.blocked(f"/v1/kv/k?index={gone.index}")
    await http("PUT", "/v1/kv/k", b"3")
    assert (await waiting).status == 200


async def test_an_index_in_the_past_is_answered_at_once(http: Http) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    now = await index(http, "/v1/kv/k")
    assert (await http("GET", f"/v1/kv/k?index={now - 1}&wait=10m")).index == now
    assert (await http("GET", "/v1/kv/k?index=0&wait=10m")).index == now


async def test_an_index_of_another_history_is_answered_at_once(http: Http) -> None:
    """A registry that restarted without its data: clients see the index go back, and start anew."""
    await http("PUT", "/v1/agent/service/register", WEB)
    for path in ("/v1/kv/k", "/v1/kv/?recurse", "/v1/health/service/web", "/v1/catalog/services"):
        assert 1 <= (await http("GET", f"{path}{'&' if '?' in path else '?'}index=1000000&wait=10m")).index < 1000, path


async def test_nothing_else_wakes_a_query(http: Http) -> None:
    await http("PUT", "/v1/kv/a/k", b"1")
    await http("PUT", "/v1/agent/service/register", WEB)
    paths = {
        "/v1/kv/a/k?": ("PUT", "/v1/kv/a/k", b"2"),
        "/v1/kv/a/?recurse&": ("PUT", "/v1/kv/a/new", b"2"),
        "/v1/kv/a/?keys&": ("DELETE", "/v1/kv/a/new", None),
        "/v1/kv/none?": ("PUT", "/v1/kv/none", b"2"),
        "/v1/kv/nothing/?recurse&": ("PUT", "/v1/kv/nothing/x", b"2"),
        "/v1/health/service/web?": ("PUT", "/v1/agent/check/warn/service:web1", None),
        "/v1/health/service/none?": ("PUT", "/v1/agent/service/register", {"Name": "none"}),
        "/v1/catalog/services?": ("PUT", "/v1/agent/service/register", {"Name": "fresh"}),
    }
    noise = [
        ("PUT", "/v1/kv/b", b"1"),
        ("PUT", "/v1/kv/a/", b"no: this is a/ itself"),
        ("DELETE", "/v1/kv/b", None),
        ("PUT", "/v1/agent/service/register", {"Name": "other", "Check": {"TTL": "1h"}}),
        ("PUT", "/v1/agent/check/pass/service:other", None),
    ]
    for path, (method, target, body) in paths.items():
        waiting = await http.blocked(f"{path}index={await index(http, path.rstrip('?&'))}&wait=9m")
        wakes = http.front.numbers.wakes
        for noise_method, noise_target, noise_body in noise:
            concerns = noise_target.startswith("/v1/agent/") and "catalog" in path
            concerns = concerns or (noise_target == "/v1/kv/a/" and path.startswith("/v1/kv/a/?"))
            if not concerns:
                assert (await http(noise_method, noise_target, noise_body)).status == 200
        assert not waiting.done(), path
        assert http.front.numbers.wakes == wakes, path
        await http(method, target, body)
        assert (await waiting).index > 0
        await http("PUT", "/v1/agent/service/deregister/other")


async def test_an_identical_put_wakes_nobody(http: Http) -> None:
    await http("PUT", "/v1/kv/k?flags=1", b"1")
    await http("PUT", "/v1/agent/service/register", WEB)
    key = await http.blocked(f"/v1/kv/k?index={await index(http, '/v1/kv/k')}")
    service = await http.blocked(f"/v1/health/service/web?index={await index(http, '/v1/health/service/web')}")
    await http("PUT", "/v1/kv/k?flags=1", b"1")
    await http("PUT", "/v1/agent/service/register", WEB)
    assert not key.done()
    assert not service.done()
    assert http.front.numbers.wakes == 0
    await http("PUT", "/v1/kv/k?flags=2", b"1")
    await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 1})
    assert (await key).json[0]["Flags"] == 2
    assert (await service).json[0]["Service"]["Port"] == 1


async def test_a_deletion_moves_the_index_of_its_prefix_and_the_index_never_goes_back(http: Http) -> None:
    for key in ("p/a", "p/b", "q"):
        await http("PUT", f"/v1/kv/{key}", b"")
    before = await index(http, "/v1/kv/p/?recurse")
    waiting = await http.blocked(f"/v1/kv/p/?recurse&index={before}")
    await http("DELETE", "/v1/kv/p/b")
    after = await waiting
    assert [entry["Key"] for entry in after.json] == ["p/a"]
    assert after.index > before
    await http("PUT", "/v1/kv/q", b"1")
    assert await index(http, "/v1/kv/p/?recurse") == after.index
    assert await index(http, "/v1/kv/p/b") == after.index


async def test_a_service_wakes_for_its_checks_its_state_and_its_end(http: Http, registry: Registry) -> None:
    path = "/v1/health/service/web?passing"
    await http("PUT", "/v1/agent/service/register", WEB)
    waiting = await http.blocked(f"{path}&index={await index(http, path)}")
    await http("PUT", "/v1/agent/check/fail/service:web1?note=broken")
    seen = await waiting
    assert seen.json == []
    waiting = await http.blocked(f"{path}&index={seen.index}")
    await http("PUT", "/v1/agent/check/pass/service:web1")
    seen = await waiting
    assert len(seen.json) == 1
    waiting = await http.blocked(f"{path}&index={seen.index}")
    async with registry.client() as client:
        await client.call(SetState("web1", "draining"))
    seen = await waiting
    assert seen.json == []
    waiting = await http.blocked(f"{path}&index={seen.index}")
    await http("PUT", "/v1/agent/service/deregister/web1")
    assert (await waiting).index > seen.index


async def test_the_list_of_services_wakes_for_names_and_tags_alone(http: Http) -> None:
    path = "/v1/catalog/services"
    await http("PUT", "/v1/agent/service/register", WEB)
    waiting = await http.blocked(f"{path}?index={await index(http, path)}")
    await http("PUT", "/v1/agent/check/warn/service:web1")
    await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 5})
    assert not waiting.done()
    assert http.front.numbers.wakes == 0
    await http("PUT", "/v1/agent/service/register", {**WEB, "Tags": ["t"]})
    assert (await waiting).json == {"consul": [], "web": ["t"]}


async def test_one_change_wakes_all_who_wait_for_it(http: Http) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    at = await index(http, "/v1/kv/k")
    waiting = [await http.blocked(f"/v1/kv/k?index={at}") for _ in range(20)]
    await http("PUT", "/v1/kv/k", b"2")
    assert {reply.index for reply in await asyncio.gather(*waiting)} == {at + 1}


async def test_a_client_that_hangs_up_frees_its_waiter_at_once(
    http: Http, registry: Registry, eventually: Eventually
) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    watchers = registry.store.numbers()["watchers"]
    host, port = http.at.split(":")
    writers = []
    for path in (f"/v1/kv/k?index={await index(http, '/v1/kv/k')}", "/v1/health/service/x?index=1"):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writers.append(writer)
    await eventually(lambda: http.front.numbers.blocked == 2)
    for writer in writers:
        writer.close()
    await eventually(lambda: http.front.numbers.blocked == 0)
    assert registry.store.numbers()["watchers"] == watchers


@pytest.mark.parametrize("path", ["/v1/kv/k", "/v1/kv/k?raw", "/v1/kv/k?recurse", "/v1/health/service/x"])
async def test_closing_answers_those_who_wait(http: Http, path: str) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    at = await index(http, path)
    waiting = await http.blocked(f"{path}{'&' if '?' in path else '?'}index={at}&wait=10m")
    closing = asyncio.create_task(http.front.close())
    reply = await waiting
    assert (reply.status, reply.index) == (200, at)
    await closing
    await http.front.close()


async def test_beyond_its_limit_of_blocked_queries_the_front_says_429_and_when_to_return(
    registry: Registry, http: Http
) -> None:
    front = HttpFront(registry.operations, rng=random.Random(1), blocked_max=2)
    http.at, http.front = await front.listen("127.0.0.1:0"), front
    try:
        waiting = [await http.blocked(f"/v1/kv/k?index=1&n={number}") for number in range(2)]
        crowded = await http("GET", "/v1/kv/k?index=1")
        assert crowded.status == 429
        assert int(crowded.headers["Retry-After"]) >= 1
        assert (await http("GET", "/v1/kv/k")).status == 404, "reads that need not wait go on"
        await http("PUT", "/v1/kv/k", b"1")
        assert [reply.status for reply in await asyncio.gather(*waiting)] == [200, 200]
    finally:
        await front.close()


# --- on time: in virtual time ---------------------------------------------------------------------------------------


@asynccontextmanager
async def virtual_front() -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with Registry(node="home", rng=random.Random(3)) as registry:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector_factory(), timeout=timeout) as session:
            yield f"http://{at}", session


@pytest.mark.parametrize(
    ("wait", "least_s"),
    [("", 300), ("&wait=0s", 300), ("&wait=10s", 10), ("&wait=1m30s", 90), ("&wait=500ms", 0.5), ("&wait=3h", 600)],
)
def test_a_wait_ends_after_its_time_and_at_most_a_sixteenth_more(wait: str, least_s: float) -> None:
    @virtual_time(seed=5)
    async def run() -> None:
        async with virtual_front() as (at, session):
            for path in ("/v1/kv/none", "/v1/health/service/none"):
                began = virtual_now()
                async with session.get(f"{at}{path}?index=1{wait}") as response:
                    assert response.headers["X-Consul-Index"] == "1"
                took_s = virtual_now() - began
                assert least_s <= took_s <= least_s * (1 + 1 / 16) + 0.1

    run()


def test_those_who_came_together_do_not_come_back_together() -> None:
    @virtual_time(seed=6)
    async def run() -> None:
        async with virtual_front() as (at, session):

            async def ask() -> float:
                async with session.get(f"{at}/v1/kv/none?index=1&wait=160s"):
                    return virtual_now()

            ends = await asyncio.gather(*[ask() for _ in range(20)])
            assert max(ends) - min(ends) > 5

    run()
