"""Each part of a route once more, on a network of memory: which requests it is for, where they go, and as what."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from homeport.client.core.balancing import Subset
from homeport.client.core.model import Instance
from homeport.mesh.testing import run_virtual, virtual_time
from homeport.sidecar import (
    Destination,
    Fault,
    HeaderEdits,
    HeaderMatch,
    Match,
    Mirror,
    Redirect,
    Rewrite,
    Route,
    RouteRetries,
)
from tests.sidecar.conftest import Registrar
from tests.sidecar.test_routing_in_virtual_time import NEW, OLD, mesh

SEED = 20_260_402


@pytest.mark.parametrize(
    ("match", "method", "path", "extra", "taken"),
    [
        (Match(path="/new"), "GET", "/new?x=1", "", True),
        (Match(path="/new"), "GET", "/new/", "", False),
        (Match(prefix="/api"), "GET", "/api/x", "", True),
        (Match(prefix="/api"), "GET", "/apix", "", False),
        (Match(regex="/v[0-9]+/.*"), "GET", "/v12/x", "", True),
        (Match(regex="/v[0-9]+"), "GET", "/v12/x", "", False),
        (Match(methods=("PUT", "DELETE")), "DELETE", "/", "", True),
        (Match(methods=("PUT", "DELETE")), "GET", "/", "", False),
        (Match(headers=(HeaderMatch(name="x-beta", exact="yes"),)), "GET", "/", "X-Beta: yes\r\n", True),
        (Match(headers=(HeaderMatch(name="x-beta", exact="yes"),)), "GET", "/", "X-Beta: yes!\r\n", False),
        (Match(headers=(HeaderMatch(name="x-beta", prefix="y"),)), "GET", "/", "X-Beta: yes\r\n", True),
        (Match(headers=(HeaderMatch(name="x-beta", prefix="y"),)), "GET", "/", "X-Beta: no\r\n", False),
        (Match(headers=(HeaderMatch(name="x-beta", regex="y.s"),)), "GET", "/", "X-Beta: yes\r\n", True),
        (Match(headers=(HeaderMatch(name="x-beta", regex="y"),)), "GET", "/", "X-Beta: yes\r\n", False),
        (Match(headers=(HeaderMatch(name="x-beta", present=True),)), "GET", "/", "X-Beta: 0\r\n", True),
        (Match(headers=(HeaderMatch(name="x-beta", present=True),)), "GET", "/", "", False),
        (Match(headers=(HeaderMatch(name="x-old", present=True, invert=True),)), "GET", "/", "", True),
        (Match(headers=(HeaderMatch(name="x-old", present=True, invert=True),)), "GET", "/", "X-Old: 1\r\n", False),
        (Match(prefix="/a", methods=("PUT",), headers=(HeaderMatch(name="b", present=True),)), "PUT", "/a", "b: c\r\n",
         True),
        (Match(prefix="/a", methods=("PUT",), headers=(HeaderMatch(name="b", present=True),)), "PUT", "/a", "", False),
    ],
)  # fmt: skip
def test_a_route_takes_what_it_is_for_and_nothing_else(
    match: Match, method: str, path: str, extra: str, taken: bool
) -> None:
    async def scenario() -> None:
        async with mesh(Route(match=match, to=(Destination(subset=NEW),)), Route(to=(Destination(subset=OLD),))) as (
            ask,
            *_,
        ):
            assert await ask(path, method=method, extra=extra) == (200, f"{'new' if taken else 'old'} {path}")

    run_virtual(scenario(), seed=SEED)


@pytest.mark.parametrize(
    "subset", [Subset(version="2"), Subset(tag="tag-new"), Subset(zone="zone-new"), Subset(meta={"track": "new"})]
)
def test_a_subset_is_what_the_registry_says_of_instances(subset: Subset) -> None:
    async def scenario() -> None:
        async with mesh(Route(to=(Destination(subset=subset),))) as (ask, old, new, _):
            for _ in range(10):
                assert (await ask("/"))[0] == 200
            assert (len(old.asked), len(new.asked)) == (0, 10)

    run_virtual(scenario(), seed=SEED)


@virtual_time(seed=SEED)
async def test_an_empty_subset_falls_back_or_says_so() -> None:
    nobody, anybody = Subset(version="3", fallback="none"), Subset(version="3")
    routes = (
        Route(match=Match(path="/nobody"), to=(Destination(subset=nobody),)),
        Route(to=(Destination(subset=anybody),)),
    )
    async with mesh(*routes) as (ask, *_):
        assert (await ask("/nobody"))[0] == 503
        assert "x-homeport-response-flags: UH" in ask.answer
        assert {(await ask("/"))[1] for _ in range(30)} == {"old /", "new /"}


@virtual_time(seed=SEED)
async def test_subsets_follow_the_registry() -> None:
    async with mesh(Route(to=(Destination(subset=Subset(version="2", fallback="none")),))) as (
        ask,
        old,
        _new,
        outbound,
    ):
        assert (await ask("/"))[1] == "new /"
        discovery = outbound._discovery
        assert isinstance(discovery, Registrar)
        discovery.feed("orders").say(Instance(service="orders", id="old", address=old.address, port=80, version="2"))
        assert (await ask("/"))[1] == "old /"


@virtual_time(seed=SEED)
async def test_weights_are_shares_and_0_is_nothing() -> None:
    split = (
        Destination(subset=OLD, weight=3),
        Destination(subset=NEW, weight=1),
        Destination(service="prices", weight=0),
    )
    async with mesh(Route(to=split)) as (ask, *_):
        names = Counter([(await ask("/"))[1] for _ in range(400)])
        print(f"seed {SEED}: {names}")
        assert 260 <= names["old /"] <= 340
        assert names["old /"] + names["new /"] == 400


@virtual_time(seed=SEED)
async def test_a_route_may_lead_to_another_service() -> None:
    async with mesh(Route(match=Match(prefix="/prices"), to=(Destination(service="prices"),))) as (
        ask,
        _,
        new,
        _outbound,
    ):
        assert (await ask("/prices/1")) == (200, "new /prices/1")
        assert "Host: orders\r\n" in new.heads[-1]


@pytest.mark.parametrize(
    ("rewrite", "match", "path", "becomes", "host"),
    [
        (Rewrite(path="/all"), Match(), "/some?q", "/all?q", "orders"),
        (Rewrite(prefix="/v2"), Match(prefix="/api"), "/api/x?q", "/v2/x?q", "orders"),
        (Rewrite(regex="/u/([0-9]+)", replacement=r"/users/\1"), Match(), "/u/7", "/users/7", "orders"),
        (Rewrite(host="inner.example:81"), Match(), "/", "/", "inner.example:81"),
    ],
)
def test_a_rewritten_request_asks_for_something_else(
    rewrite: Rewrite, match: Match, path: str, becomes: str, host: str
) -> None:
    async def scenario() -> None:
        async with mesh(Route(match=match, rewrite=rewrite, to=(Destination(subset=OLD),))) as (ask, old, *_):
            assert await ask(path) == (200, f"old {becomes}")
            assert f"\r\nHost: {host}\r\n" in old.heads[0]

    run_virtual(scenario(), seed=SEED)


@virtual_time(seed=SEED)
async def test_headers_are_edited_both_ways() -> None:
    route = Route(
        request_headers=HeaderEdits(remove=("X-Debug",), set={"X-From": "mesh"}, add={"X-Hop": "2"}),
        response_headers=HeaderEdits(remove=("server",), set={"Cache-Control": "no-store"}),
        to=(Destination(subset=OLD),),
    )
    async with mesh(route) as (ask, old, *_):
        assert (await ask("/", extra="X-Debug: 1\r\nx-from: client\r\nX-Hop: 1\r\n"))[0] == 200
        head = old.heads[0]
        assert "X-Debug" not in head
        assert "client" not in head
        assert head.count("X-From: mesh\r\n") == 1
        assert "X-Hop: 1\r\n" in head
        assert "X-Hop: 2\r\n" in head
        assert "kitchen" not in ask.answer
        assert "Cache-Control: no-store\r\n" in ask.answer


@pytest.mark.parametrize(
    ("redirect", "match", "location"),
    [
        (Redirect(path="/there"), Match(), "/there?q=1"),
        (Redirect(status=308, prefix="/new"), Match(prefix="/a"), "/new/b?q=1"),
        (Redirect(scheme="https"), Match(), "https://orders/a/b?q=1"),
        (Redirect(host="www.example"), Match(), "http://www.example/a/b?q=1"),
    ],
)
def test_a_redirect_sends_the_client_elsewhere(redirect: Redirect, match: Match, location: str) -> None:
    async def scenario() -> None:
        async with mesh(Route(match=match, redirect=redirect)) as (ask, old, new, _):
            assert (await ask("/a/b?q=1"))[0] == redirect.status
            assert f"\r\nLocation: {location}\r\n" in ask.answer
            assert not old.asked + new.asked

    run_virtual(scenario(), seed=SEED)


@virtual_time(seed=SEED)
async def test_faults_hit_their_share_and_aborts_reach_nobody() -> None:
    async with mesh(Route(fault=Fault(abort_status=418, abort_percent=25))) as (ask, old, new, _):
        statuses = Counter([(await ask("/"))[0] for _ in range(400)])
        print(f"seed {SEED}: {statuses}")
        assert 70 <= statuses[418] <= 130
        assert len(old.asked) + len(new.asked) == statuses[200]
    async with mesh(Route(fault=Fault(delay_s=3, delay_percent=50))) as (ask, *_):
        loop = asyncio.get_running_loop()
        slow = 0
        for _ in range(100):
            began_s = loop.time()
            await ask("/")
            slow += loop.time() - began_s >= 3
        assert 30 <= slow <= 70


@virtual_time(seed=SEED)
async def test_a_mirror_gets_its_share_of_copies() -> None:
    route = Route(to=(Destination(subset=OLD),), mirror=Mirror(service="prices", percent=50))
    async with mesh(route) as (ask, old, new, _):
        for _ in range(100):
            assert (await ask("/x"))[1] == "old /x"
        await asyncio.sleep(1)
        assert len(old.asked) == 100
        assert 30 <= len(new.asked) <= 70


@virtual_time(seed=SEED)
async def test_a_retry_stays_within_the_subset() -> None:
    route = Route(to=(Destination(subset=OLD),), retries=RouteRetries(retries_max=2))
    async with mesh(route) as (ask, old, new, _):
        old.status = "503 Service Unavailable"
        assert (await ask("/"))[0] == 503
        assert not new.asked


@virtual_time(seed=SEED)
async def test_connect_goes_by_routes_too() -> None:
    async with mesh(Route(to=(Destination(subset=NEW),))) as (_ask, old, new, _):
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", 15_001)
            writer.write(b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"GET /through HTTP/1.1\r\nHost: orders\r\n\r\n")
            await reader.readuntil(b"new /through")
            writer.close()
        assert (len(old.asked), len(new.asked)) == (0, 5)
