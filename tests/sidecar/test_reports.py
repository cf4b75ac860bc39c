"""What the admin port tells: plain values that are right, in JSON and in text, and why an instance gets no traffic."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from homeport.sidecar import (
    Balancing,
    Circuit,
    Destination,
    HeaderMatch,
    Match,
    Redirect,
    Route,
    Routing,
    ServiceSettings,
    Subset,
)
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.explain import explained
from homeport.sidecar.core.explain_routes import Question, explained_routes
from homeport.sidecar.core.plain_text import plain_text
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.router import Router
from tests.sidecar.endpoints import Pooled, cluster_of, instance

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net


def told(cluster: Cluster[Pooled], now: float = 0.0) -> dict[str, Any]:
    return explained(cluster, now, random.Random(1))


def whys(cluster: Cluster[Pooled], now: float = 0.0) -> dict[str, str]:
    return {endpoint["id"]: endpoint["why"] for endpoint in told(cluster, now)["endpoints"]}


def cluster_with(*instances: Any, settings: ServiceSettings | None = None) -> Cluster[Pooled]:
    cluster = cluster_of(0, settings)
    cluster.update({each.key: each for each in instances})
    return cluster


def test_each_reason_to_leave_an_instance_out_is_told() -> None:
    cluster = cluster_with(
        instance(1),
        instance(2, state="draining"),
        instance(3, status="critical"),
        instance(4, weight=0),
        instance(5, state="maintenance"),
    )
    said = whys(cluster)
    assert said["1"] == "candidate"
    assert said["2"] == "excluded: it is draining"
    assert said["3"] == "excluded: the registry says it is critical"
    assert said["4"] == "excluded: its weight is 0, and others have one"
    assert said["5"] == "excluded: it is in maintenance"
    assert told(cluster)["would_pick"] == "1"


def test_an_ejection_says_how_long_it_lasts() -> None:
    cluster = cluster_of(3)
    host = next(iter(cluster.endpoints.values()))
    for _ in range(5):
        cluster.failed(host, Failure.REFUSED, 0, 100.0, random.Random(1))
    said = whys(cluster, 101.0)["1"]
    assert said.startswith("excluded: ejected for ")
    assert said.endswith(" s more, for the 1st time; a second try at best")


def test_subset_panic_and_zone_are_told() -> None:
    by_version = ServiceSettings(balancing=Balancing(subset=Subset(version="2", fallback="none")))
    said = whys(cluster_with(instance(1, version="1"), instance(2, version="2"), settings=by_version))
    assert said == {"1": "excluded: it is not in the subset that takes traffic", "2": "candidate"}
    few = [instance(number, status="passing" if number == 1 else "critical") for number in range(1, 6)]
    panicking = cluster_with(*few)
    assert told(panicking)["panic"]
    assert whys(panicking)["2"] == "candidate: although critical: too few are healthy, so all are asked"
    doubted = cluster_with(*[instance(number) for number in range(1, 6)])
    for endpoint in list(doubted.endpoints.values())[:3]:
        endpoint.ejected = True
    assert told(doubted)["panic"]
    assert whys(doubted)["1"] == "candidate: although ejected: too few are healthy, so all are asked"
    at_home = ServiceSettings(balancing=Balancing(zone="a"))
    said = whys(cluster_with(instance(1, zone="a"), instance(2, zone="b"), settings=at_home))
    assert said == {"1": "candidate: own zone, which gets 100%", "2": "candidate: another zone, which gets 0%"}


@pytest.mark.parametrize("policy", ["least-request", "peak-ewma", "round-robin"])
def test_shares_add_up_and_asking_changes_no_turn(policy: Any) -> None:
    settings = ServiceSettings(balancing=Balancing(policy=policy))
    asked, unasked = (cluster_with(instance(1, weight=3), instance(2), settings=settings) for _ in range(2))
    here, there = random.Random(3), random.Random(3)
    for _ in range(20):
        shares = [endpoint["share"] for endpoint in told(asked)["endpoints"]]
        assert sum(shares) == pytest.approx(1.0, abs=0.02)
        picked, expected = asked.pick(here), unasked.pick(there)
        assert picked is not None
        assert expected is not None
        assert picked.name == expected.name
    assert asked.active == 0


def test_a_service_without_instances_is_explained_too() -> None:
    answer = told(cluster_with(settings=ServiceSettings(circuit=Circuit(requests_max=7))))
    assert answer["endpoints"] == []
    assert answer["would_pick"] is None
    assert answer["circuit"]["requests_max"] == 7


async def test_the_admin_port_explains_in_json_and_in_text(net: Net) -> None:
    upstream = await net.answering(net.ok())
    sidecar = await net.proxy_to(upstream, admin="127.0.0.1:0", tcp={"orders": "127.0.0.1:0"})
    await net.ask(sidecar, net.get())

    async def shown(path: str, extra: str = "") -> bytes:
        answer = await net.ask(sidecar, net.get(path, extra=extra), "admin")
        return answer.partition(b"\r\n\r\n")[2]

    explained = json.loads(await shown("/explain?service=orders"))
    (endpoint,) = explained["endpoints"]
    assert (explained["direction"], endpoint["candidate"], endpoint["share"]) == ("outbound", True, 1.0)
    text = (await shown("/explain?service=orders&format=text")).decode()
    assert "policy: least-request\n" in text
    assert f"{upstream.address}  yes        candidate" in text
    assert b"which one" in await shown("/explain")
    assert b"nobody has asked for 'unheard-of'" in await shown("/explain?service=unheard-of")
    routes = json.loads(await shown("/routes"))
    assert routes["tcp"] == {"orders": sidecar.at["tcp:orders"]}
    assert [(each["service"], each["source"]) for each in routes["services"]] == [("orders", "registry")]
    assert (await shown("/clusters", "Accept: text/plain\r\n")).startswith(b"service: orders\n")


def test_text_is_for_people() -> None:
    value = {"a": 1, "b": [], "c": {"d": True}, "list": [{"x": 1, "y": "long"}, {"x": 100, "y": None}]}
    assert plain_text(value) == "a: 1\nb: none\nc:\n  d: yes\nlist:\n  x    y\n  1    long\n  100  -\n"


ROUTES = Routing(
    routes=(
        Route(name="old", match=Match(path="/moved"), redirect=Redirect(path="/")),
        Route(
            name="beta",
            match=Match(prefix="/api", methods=("GET",), headers=(HeaderMatch(name="x-beta", exact="1"),)),
            to=(Destination(subset=Subset(version="2", fallback="none")),),
        ),
        Route(
            match=Match(prefix="/api"),
            to=(
                Destination(subset=Subset(version="1", fallback="none"), weight=3),
                Destination(subset=Subset(version="2", fallback="none"), weight=1),
                Destination(service="elsewhere", weight=0),
            ),
        ),
    )
)


def routes_told(**question: Any) -> dict[str, Any]:
    cluster = cluster_with(
        instance(1, version="1"), instance(2, version="2", state="draining"), instance(3, version="2")
    )
    next(iter(cluster.endpoints.values())).active = 7
    asked = Question(service="a", **question)
    others: dict[str, Cluster[Pooled]] = {}
    return explained_routes(Router(ROUTES), cluster, others.get, asked, 0.0, random.Random(1))


def test_candidates_are_told_for_each_subset_of_each_route() -> None:
    told = routes_told()
    assert "taken" not in told
    old, beta, split = told["routes"]
    assert (old["route"], old["redirect"]) == ("old", "302")
    (new,) = beta["to"]
    assert new["destination"] == "a version=2"
    assert {each["id"]: each["why"] for each in new["endpoints"]} == {
        "1": "excluded: it is not in the subset that takes traffic",
        "2": "excluded: it is draining",
        "3": "candidate",
    }
    assert new["would_pick"] == "3"
    first, second, elsewhere = split["to"]
    assert [each["chance"] for each in split["to"]] == [0.75, 0.25, 0.0]
    assert [(each["id"], each["share"], each["active"]) for each in first["endpoints"] if each["candidate"]] == [
        ("1", 1.0, 7)
    ]
    assert second["would_pick"] == "3"
    assert (elsewhere["destination"], elsewhere["known"]) == ("elsewhere", False)


@pytest.mark.parametrize(
    ("question", "taken", "whys_of_routes"),
    [
        (
            {"path": "/api/x?y", "headers": ("X-Beta: 1",)},
            "beta",
            ["does not match: its path is /moved", "takes it", "matches, but comes later"],
        ),
        (
            {"path": "/api"},
            "route 2",
            ["does not match: its path is /moved", "does not match: its header x-beta must be 1", "takes it"],
        ),
        (
            {"path": "/api", "method": "POST", "headers": ("x-beta: 1",)},
            "route 2",
            ["does not match: its path is /moved", "does not match: its methods are GET", "takes it"],
        ),
        (
            {"path": "/"},
            "no route: it goes to any instance",
            ["does not match: its path is /moved", *["does not match: its prefix is /api"] * 2],
        ),
    ],
)
def test_the_route_of_a_request_is_told_and_why_not_the_others(
    question: dict[str, Any], taken: str, whys_of_routes: list[str]
) -> None:
    told = routes_told(**question)
    assert told["taken"] == taken
    assert [route["why"] for route in told["routes"]] == whys_of_routes


@pytest.mark.parametrize(
    ("match", "word"),
    [
        (HeaderMatch(name="x-a", present=True), "be there"),
        (HeaderMatch(name="x-a", prefix="b"), "begin with b"),
        (HeaderMatch(name="x-a", regex="b.*"), "match b.*"),
        (HeaderMatch(name="x-b", exact="c", invert=True), "not be c"),
    ],
)
def test_a_header_that_does_not_match_is_told(match: HeaderMatch, word: str) -> None:
    plan = Router(Routing(routes=(Route(match=Match(headers=(match,))),))).plans[0]
    assert plan.why_not(b"GET", "/", [b"X-B: c"]) == f"its header {match.name} must {word}"


def test_what_is_said_of_a_mismatch_is_what_decides() -> None:
    rng = random.Random(7)
    for _ in range(500):
        method, path = rng.choice([b"GET", b"POST"]), rng.choice(["/", "/moved", "/api", "/api/x", "/apix"])
        lines = rng.choice([[], [b"x-beta: 1"], [b"X-BETA: 2"]])
        for plan in Router(ROUTES).plans:
            assert plan.matches(method, path, lines) == (not plan.why_not(method, path, lines))


async def test_the_admin_port_explains_routes(net: Net) -> None:
    upstream = await net.answering(net.ok())
    sidecar = await net.proxy_to(upstream, admin="127.0.0.1:0", routes={"orders": ROUTES})
    await net.ask(sidecar, net.get())

    async def shown(query: str) -> bytes:
        return (await net.ask(sidecar, net.get(f"/explain?service=orders{query}"), "admin")).partition(b"\r\n\r\n")[2]

    told = json.loads(await shown("&path=/api&header=x-beta:1&header=accept:x"))
    assert told["taken"] == "beta"
    assert [route["route"] for route in told["routes"]] == ["old", "beta", ""]
    assert json.loads(await shown("&path=/api&header=x-beta:1&method=PUT"))["taken"] == "route 2"
    assert b"would_pick" in await shown("&format=text")
    for wrong, says in (("&path=x", b"begins with /"), ("&path=/&header=x", b"NAME:VALUE"), ("&method=PUT", b"path?")):
        assert says in await shown(wrong)
