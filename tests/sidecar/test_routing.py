"""What each part of a route does, as clients and instances see it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter

import pytest

from homeport.client.core.balancing import Balancing, Subset
from homeport.client.core.model import Instance
from homeport.sidecar import (
    Destination,
    Fault,
    HeaderEdits,
    HeaderMatch,
    Match,
    Mirror,
    RateLimit,
    Redirect,
    Retries,
    Rewrite,
    Route,
    RouteRetries,
    Routing,
    ServiceSettings,
    Sidecar,
)
from tests.conftest import Eventually
from tests.sidecar.conftest import Net, Raw, Upstream

OLD = Destination(subset=Subset(version="1", fallback="none"))
NEW = Destination(subset=Subset(version="2", fallback="none"))


async def named(net: Net, name: bytes, **options: bytes) -> Upstream:
    return await net.answering(net.ok(name, **options))


async def two_versions(net: Net, *routes: Route, settings: ServiceSettings | None = None) -> Sidecar:
    """A service of which version 1 answers `old` and version 2 `new`."""
    old, new = await named(net, b"old"), await named(net, b"new")
    net.registrar.feed("orders").say(
        old.instance(version="1", tags=("stable",), zone="a"),
        new.instance(version="2", tags=("beta",), zone="b", meta={"track": "canary"}),
    )
    return await net.sidecar(routes={"orders": Routing(routes=routes, settings=settings)})


async def one(net: Net, *routes: Route) -> tuple[Sidecar, Upstream]:
    upstream = await named(net, b"hi", extra=b"Server: kitchen\r\n")
    net.registrar.feed("orders").say(upstream.instance())
    return await net.sidecar(routes={"orders": Routing(routes=routes)}), upstream


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def head(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[0] + b"\r\n"


@pytest.mark.parametrize(
    "subset",
    [Subset(version="2"), Subset(tag="beta"), Subset(zone="b"), Subset(meta={"track": "canary"})],
    ids=["version", "tag", "zone", "meta"],
)
async def test_a_subset_is_what_the_registry_says_of_instances(net: Net, subset: Subset) -> None:
    sidecar = await two_versions(net, Route(to=(Destination(subset=subset),)))
    assert {body(await net.ask(sidecar, net.get())) for _ in range(10)} == {b"new"}


@pytest.mark.parametrize(
    ("match", "request_of"),
    [
        (Match(path="/new"), {"path": "/new?x=1"}),
        (Match(prefix="/api"), {"path": "/api/x"}),
        (Match(prefix="/api"), {"path": "/api"}),
        (Match(prefix="/api/"), {"path": "/api/x"}),
        (Match(regex="/v[0-9]+/.*"), {"path": "/v12/x"}),
        (Match(methods=("PUT", "DELETE")), {"method": "DELETE"}),
        (Match(headers=(HeaderMatch(name="X-Beta", exact="yes"),)), {"extra": "x-beta:  yes \r\n"}),
        (Match(headers=(HeaderMatch(name="X-Beta", prefix="ye"),)), {"extra": "X-BETA: yes\r\n"}),
        (Match(headers=(HeaderMatch(name="X-Beta", regex="y.s"),)), {"extra": "X-Beta: yes\r\n"}),
        (Match(headers=(HeaderMatch(name="X-Beta", present=True),)), {"extra": "X-Beta: no\r\n"}),
        (Match(headers=(HeaderMatch(name="X-Old", present=True, invert=True),)), {}),
        (Match(prefix="/a", headers=(HeaderMatch(name="b", present=True),)), {"path": "/a", "extra": "B: c\r\n"}),
    ],
)
async def test_a_request_that_matches_takes_the_route(net: Net, match: Match, request_of: dict[str, str]) -> None:
    sidecar = await two_versions(net, Route(match=match, to=(NEW,)), Route(to=(OLD,)))
    path, method, extra = request_of.get("path", "/"), request_of.get("method", "GET"), request_of.get("extra", "")
    assert body(await net.ask(sidecar, net.get(path, method=method, extra=extra))) == b"new"


@pytest.mark.parametrize(
    ("match", "request_of"),
    [
        (Match(path="/new"), {"path": "/new/"}),
        (Match(prefix="/api"), {"path": "/apix"}),
        (Match(prefix="/api/"), {"path": "/api"}),
        (Match(regex="/v[0-9]+"), {"path": "/v12/x"}),
        (Match(methods=("PUT",)), {}),
        (Match(headers=(HeaderMatch(name="X-Beta", exact="yes"),)), {"extra": "X-Beta: yes!\r\n"}),
        (Match(headers=(HeaderMatch(name="X-Beta", regex="y"),)), {"extra": "X-Beta: yes\r\n"}),
        (Match(headers=(HeaderMatch(name="X-Old", present=True, invert=True),)), {"extra": "X-Old: 1\r\n"}),
        (Match(prefix="/a", headers=(HeaderMatch(name="b", present=True),)), {"path": "/a"}),
    ],
)
async def test_a_request_that_does_not_takes_the_next_one(net: Net, match: Match, request_of: dict[str, str]) -> None:
    sidecar = await two_versions(net, Route(match=match, to=(NEW,)), Route(to=(OLD,)))
    assert (
        body(await net.ask(sidecar, net.get(request_of.get("path", "/"), extra=request_of.get("extra", "")))) == b"old"
    )


async def test_what_no_route_is_for_goes_to_everyone(net: Net) -> None:
    sidecar = await two_versions(net, Route(match=Match(path="/never"), redirect=Redirect(path="/")))
    assert {body(await net.ask(sidecar, net.get())) for _ in range(40)} == {b"old", b"new"}


async def test_weights_are_shares(net: Net) -> None:
    sidecar = await two_versions(
        net, Route(to=(Destination(subset=OLD.subset, weight=3), Destination(subset=NEW.subset, weight=1)))
    )
    raw = await net.dial(sidecar)
    seen: Counter[bytes] = Counter()
    for _ in range(400):
        raw.send(net.get(close=False))
        await raw.head()
        seen[await raw.exactly(3)] += 1
    print(f"seed {net.seed}: {seen}")
    assert 60 <= seen[b"new"] <= 140


async def test_a_destination_of_weight_0_gets_nothing(net: Net) -> None:
    sidecar = await two_versions(
        net, Route(to=(Destination(subset=NEW.subset, weight=0), Destination(subset=OLD.subset, weight=1)))
    )
    assert {body(await net.ask(sidecar, net.get())) for _ in range(30)} == {b"old"}


async def test_an_empty_subset_falls_back_or_says_so(net: Net) -> None:
    anybody = Destination(subset=Subset(version="3"))
    nobody = Destination(subset=Subset(version="3", fallback="none"))
    sidecar = await two_versions(net, Route(match=Match(path="/any"), to=(anybody,)), Route(to=(nobody,)))
    assert body(await net.ask(sidecar, net.get("/any"))) in (b"old", b"new")
    assert b"503 " in head(await net.ask(sidecar, net.get()))


async def test_a_route_may_lead_to_another_service(net: Net) -> None:
    other = await named(net, b"other")
    net.registrar.feed("billing").say(other.instance("billing"))
    sidecar, _ = await one(net, Route(match=Match(prefix="/bills"), to=(Destination(service="billing"),)))
    assert body(await net.ask(sidecar, net.get("/bills"))) == b"other"
    assert body(await net.ask(sidecar, net.get())) == b"hi"


async def test_subsets_follow_the_registry(net: Net) -> None:
    sidecar = await two_versions(net, Route(to=(NEW,)))
    assert body(await net.ask(sidecar, net.get())) == b"new"
    newest = await named(net, b"newest")
    net.registrar.feed("orders").say(newest.instance(version="2"))
    assert body(await net.ask(sidecar, net.get())) == b"newest"


async def test_a_retry_stays_within_the_subset(net: Net) -> None:
    hosts = [await net.answering(net.ok(b"sick", status=b"503 Sick")), await named(net, b"well")]
    wrong = await named(net, b"wrong")
    net.registrar.feed("orders").say(*(host.instance(version="2") for host in hosts), wrong.instance(version="1"))
    sidecar = await net.sidecar(routes={"orders": Routing(routes=(Route(to=(NEW,)),))})
    assert {body(await net.ask(sidecar, net.get())) for _ in range(10)} == {b"well"}
    assert hosts[0].heads
    assert not wrong.heads


@pytest.mark.parametrize(
    ("match", "rewrite", "asked", "got"),
    [
        (Match(), Rewrite(path="/x"), "/a/b?q=1", "/x?q=1"),
        (Match(prefix="/api"), Rewrite(prefix="/"), "/api/b?q=1", "/b?q=1"),
        (Match(prefix="/api"), Rewrite(prefix="/"), "/api", "/"),
        (Match(prefix="/api/"), Rewrite(prefix="/v2/"), "/api/b", "/v2/b"),
        (Match(), Rewrite(regex="^/u/([0-9]+)", replacement=r"/users/\1"), "/u/7/x?a", "/users/7/x?a"),
        (Match(), Rewrite(host="inner.example"), "/a", "/a"),
    ],
)
async def test_a_rewritten_request_asks_for_something_else(
    net: Net, match: Match, rewrite: Rewrite, asked: str, got: str
) -> None:
    sidecar, upstream = await one(net, Route(match=match, rewrite=rewrite))
    await net.ask(sidecar, net.get(asked))
    assert upstream.heads[0].startswith(f"GET {got} HTTP/1.1\r\n".encode())
    assert f"Host: {rewrite.host or 'orders'}\r\n".encode() in upstream.heads[0]


async def test_headers_are_edited_both_ways(net: Net) -> None:
    edits = HeaderEdits(remove=("X-Secret",), set={"X-Team": "kitchen"}, add={"X-Via": "route"})
    answers = HeaderEdits(remove=("server",), add={"X-Served": "1"})
    sidecar, upstream = await one(net, Route(request_headers=edits, response_headers=answers))
    answer = await net.ask(sidecar, net.get(extra="x-secret: 1\r\nX-TEAM: other\r\nX-Via: me\r\n"))
    sent = upstream.heads[0]
    assert b"secret" not in sent.lower()
    assert sent.count(b"other") == 0
    assert b"X-Team: kitchen\r\n" in sent
    assert b"X-Via: me\r\n" in sent
    assert b"X-Via: route\r\n" in sent
    assert b"Server" not in head(answer)
    assert b"X-Served: 1\r\n" in head(answer)


@pytest.mark.parametrize(
    ("redirect", "location"),
    [
        (Redirect(path="/new"), b"/new?q=1"),
        (Redirect(prefix="/v2", status=308), b"/v2/x?q=1"),
        (Redirect(scheme="https"), b"https://orders/v1/x?q=1"),
        (Redirect(host="example.org:81", prefix="/"), b"http://example.org:81/x?q=1"),
    ],
)
async def test_a_redirect_sends_the_client_elsewhere(net: Net, redirect: Redirect, location: bytes) -> None:
    sidecar, upstream = await one(net, Route(match=Match(prefix="/v1"), redirect=redirect))
    answer = await net.ask(sidecar, net.get("/v1/x?q=1"))
    assert answer.startswith(b"HTTP/1.1 %d " % redirect.status)
    assert b"Location: %b\r\n" % location in head(answer)
    assert not upstream.heads


async def test_more_than_the_rate_is_turned_away_and_told_when_to_come_again(net: Net) -> None:
    sidecar, upstream = await one(net, Route(rate_limit=RateLimit(per_s=0.001, burst=3)))
    raw = await net.dial(sidecar)
    for _ in range(3):
        raw.send(net.get(close=False))
        assert (await raw.head()).startswith(b"HTTP/1.1 200 ")
        await raw.exactly(2)
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"x-homeport-response-flags: RL\r\n" in head(answer)
    assert b"Retry-After: " in head(answer)
    assert len(upstream.heads) == 3


async def test_an_aborted_request_reaches_nobody(net: Net) -> None:
    sidecar, upstream = await one(net, Route(fault=Fault(abort_status=503)))
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: FI\r\n" in head(answer)
    assert not upstream.heads


async def test_faults_hit_their_share_of_the_requests(net: Net) -> None:
    sidecar, upstream = await one(net, Route(fault=Fault(abort_status=500, abort_percent=50)))
    statuses = Counter([(await net.ask(sidecar, net.get()))[9:12] for _ in range(60)])
    print(f"seed {net.seed}: {statuses}")
    assert 15 <= statuses[b"500"] <= 45
    assert len(upstream.heads) == statuses[b"200"]


async def test_a_delayed_request_takes_longer(net: Net) -> None:
    sidecar, _ = await one(net, Route(fault=Fault(delay_s=0.05)))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert (await net.ask(sidecar, net.get())).startswith(b"HTTP/1.1 200 ")
    assert loop.time() - began_s >= 0.045


async def test_a_client_that_leaves_while_it_is_delayed_leaves_nothing_behind(net: Net, eventually: Eventually) -> None:
    sidecar, upstream = await one(net, Route(fault=Fault(delay_s=30)))
    outbound = sidecar.outbound
    assert outbound is not None
    raw = await net.dial(sidecar)
    raw.send(net.get())
    await eventually(lambda: outbound.active == 1)
    linger = struct.pack("ii", 1, 0)  # a reset; the mere end of what a client sends might leave it waiting
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raw.reset()
    await eventually(lambda: outbound.active == 0)
    assert not upstream.heads


async def test_a_mirror_gets_copies_and_nobody_waits_for_it(net: Net, eventually: Eventually) -> None:
    seen: list[bytes] = []

    async def silent(raw: Raw) -> None:
        request = await raw.head()
        seen.append(request + await raw.exactly(3))
        await raw.until_end()

    shadow = await net.upstream(silent)
    net.registrar.feed("shadow").say(shadow.instance("shadow"))

    async def real(raw: Raw) -> None:
        await raw.head()
        await raw.exactly(3)
        raw.send(net.ok(b"real"))

    upstream = await net.upstream(real)
    net.registrar.feed("orders").say(upstream.instance())
    sidecar = await net.sidecar(routes={"orders": Routing(routes=(Route(mirror=Mirror(service="shadow")),))})
    request = b"POST /x HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    raw = await net.dial(sidecar)
    raw.send(request + b"a")
    await eventually(lambda: upstream.connections == 1)
    raw.send(b"bc")
    assert (await raw.until_end()).endswith(b"real")
    await eventually(lambda: seen)
    assert seen[0].startswith(b"POST /x HTTP/1.1\r\nHost: orders\r\n")
    assert seen[0].endswith(b"abc")
    outbound = sidecar.outbound
    assert outbound is not None
    assert outbound.active == 0
    assert len(outbound.mirrors) == 1
    shadow_cluster = outbound.clusters["shadow"]
    outbound.close()
    assert not outbound.mirrors
    assert shadow_cluster.active == 0


async def test_a_mirror_that_is_not_there_disturbs_nobody(net: Net, eventually: Eventually) -> None:
    net.registrar.feed("shadow").say(Instance(service="shadow", id="x", port=1, address="127.0.0.1"))
    sidecar, _ = await one(net, Route(mirror=Mirror(service="shadow")))
    for _ in range(5):
        assert body(await net.ask(sidecar, net.get())) == b"hi"
    outbound = sidecar.outbound
    assert outbound is not None
    await eventually(lambda: not outbound.mirrors)
    assert outbound.refusals == {}


async def test_a_route_has_its_own_times_and_retries(net: Net) -> None:
    async def silent(raw: Raw) -> None:
        await raw.head()
        await raw.until_end()

    hosts = [await net.upstream(silent), await net.upstream(silent)]
    net.registrar.feed("orders").say(*(host.instance() for host in hosts))
    tries = Route(match=Match(path="/try"), per_try_s=0.1, retries=RouteRetries(retries_max=0))
    whole = Route(match=Match(path="/whole"), timeout_s=0.1)
    sidecar = await net.sidecar(routes={"orders": Routing(routes=(tries, whole))})
    assert b"no answer within 0.1 s" in await net.ask(sidecar, net.get("/try"))
    assert sum(host.connections for host in hosts) == 1
    assert b"not finished within 0.1 s" in await net.ask(sidecar, net.get("/whole"))


async def test_a_document_says_how_the_service_is_called(net: Net) -> None:
    settings = ServiceSettings(balancing=Balancing(subset=NEW.subset), retries=Retries(retries_max=1))
    sidecar = await two_versions(net, settings=settings)
    assert {body(await net.ask(sidecar, net.get())) for _ in range(10)} == {b"new"}
    assert sidecar.outbound is not None
    assert sidecar.outbound.clusters["orders"].router is None


@pytest.mark.parametrize("outbound", ["off", "127.0.0.1:0"])
async def test_a_local_port_stands_for_a_service(net: Net, outbound: str) -> None:
    upstream, other = await named(net, b"hi"), await named(net, b"other")
    net.registrar.feed("orders").say(upstream.instance())
    net.registrar.feed("billing").say(other.instance("billing"))
    routes = {"orders": Routing(routes=(Route(match=Match(path="/x"), fault=Fault(abort_status=501)),))}
    sidecar = await net.sidecar(outbound=outbound, http={"orders": "127.0.0.1:0"}, routes=routes)
    at = "http:orders"
    host = sidecar.at[at]
    assert body(await net.ask(sidecar, net.get(host=host), at)) == b"hi"
    assert f"Host: {host}\r\n".encode() in upstream.heads[0]  # as the client said
    assert b"501 " in head(await net.ask(sidecar, net.get("/x", host), at))
    # Whoever names a service otherwise means it.
    assert body(await net.ask(sidecar, net.get("http://billing/", host), at)) == b"other"
    assert body(await net.ask(sidecar, net.get(host=host, extra="x-homeport-service: billing\r\n"), at)) == b"other"


async def test_connect_goes_by_routes_too(net: Net) -> None:
    sidecar = await two_versions(net, Route(match=Match(methods=("CONNECT",)), to=(NEW,)), Route(to=(OLD,)))
    for _ in range(4):
        raw = await net.dial(sidecar)
        raw.send(b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n")
        assert b" 200 " in await raw.head()
        raw.send(net.get(close=False))
        await raw.head()
        assert await raw.exactly(3) == b"new"
        raw.writer.close()
