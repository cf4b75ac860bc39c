"""Prepared queries over HTTP: kept, found by name and by the longest template, and answered from the catalogue."""

from __future__ import annotations

import random
from typing import Any

import aiohttp
import pytest

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront
from tests.registry.http.conftest import Eventually, Http


async def _create(http: Http, **query: Any) -> str:
    reply = await http("POST", "/v1/query", query)
    assert reply.status == 200, reply.text
    id_: str = reply.json["ID"]
    return id_


async def _register(http: Http, name: str, id_: str, tags: list[str] | None = None, **more: Any) -> None:
    body = {"Name": name, "ID": id_, "Port": 80, "Tags": tags or [], **more}
    assert (await http("PUT", "/v1/agent/service/register", body)).status == 200


async def _ids(http: Http, path: str) -> list[str]:
    reply = await http("GET", path)
    assert reply.status == 200, reply.text
    return sorted(node["Service"]["ID"] for node in reply.json["Nodes"])


async def test_a_query_is_shown_as_it_was_kept_until_it_is_deleted(http: Http) -> None:
    query = {
        "Name": "db",
        "Service": {
            "Service": "postgres",
            "Tags": ["primary", "!old"],
            "Failover": {"NearestN": 2, "Datacenters": ["dc9"], "Targets": [{"Datacenter": "dc8"}]},
            "IgnoreCheckIDs": ["disk"],
            "NodeMeta": {"a": "b"},
            "ServiceMeta": {"c": "d"},
        },
        "DNS": {"TTL": "10s"},
    }
    id_ = await _create(http, **query)
    (shown,) = (await http("GET", f"/v1/query/{id_}")).json
    assert shown["Service"]["Failover"]["Datacenters"] == ["dc9"]
    assert shown["Service"]["IgnoreCheckIDs"] == ["disk"]
    assert shown["DNS"] == {"TTL": "10s"}
    assert (shown["ID"], shown["Name"], shown["CreateIndex"]) == (id_, "db", shown["ModifyIndex"])
    assert (await http("PUT", f"/v1/query/{id_}", {"Name": "db2", "Service": {"Service": "mysql"}})).status == 200
    (shown,) = (await http("GET", "/v1/query")).json
    assert (shown["Name"], shown["Service"]["Service"]) == ("db2", "mysql")
    assert (await http("GET", "/v1/query/db/explain")).status == 404  # its old name is free
    assert (await http("DELETE", f"/v1/query/{id_}")).status == 200
    assert (await http("GET", f"/v1/query/{id_}")).status == 404
    assert (await http("GET", "/v1/query")).json == []
    assert (await http("DELETE", f"/v1/query/{id_}")).status == 404


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"Name": "a", "Service": {}}, "Must provide a Service name"),
        ({"Service": {"Service": "a"}}, "Must be bound to a session"),
        ({"Name": "a", "Service": {"Service": "a"}, "Session": "none"}, "invalid session"),
        ({"Name": "a", "Service": {"Service": "a", "Connect": True}}, "Connect is not supported"),
        ({"Name": "a", "Service": {"Service": "a", "Failover": {"NearestN": -1}}}, "NearestN"),
        ({"Name": "a", "Service": {"Service": "a", "Failover": {"Targets": [{"Peer": "p"}]}}}, "no cluster peerings"),
        ({"Name": "a", "Service": {"Service": "a"}, "DNS": {"TTL": "soon"}}, "Bad DNS TTL"),
        ({"Name": "a", "Service": {"Service": "a"}, "DNS": {"TTL": "-1s"}}, "DNS TTL"),
        ({"Name": "a", "Service": {"Service": "a"}, "Template": {"Type": "other"}}, "allowed: name_prefix_match"),
        ({"Name": "a", "Service": {"Service": "a"}, "Template": {"Regexp": "x"}}, "needs its Type"),
        ({"Name": "a" * 254, "Service": {"Service": "a"}}, "allowed: 253"),
        ({"ID": "mine", "Name": "a", "Service": {"Service": "a"}}, "ID must be empty"),
        (
            {"Name": "a", "Service": {"Service": "${nope}"}, "Template": {"Type": "name_prefix_match"}},
            "allowed between ${ and }: match(N), name.full",
        ),
        (
            {"Name": "a", "Service": {"Service": "${name.full"}, "Template": {"Type": "name_prefix_match"}},
            "cannot be filled in",
        ),
        (
            {"Name": "a", "Service": {"Service": "a"}, "Template": {"Type": "name_prefix_match", "Regexp": "("}},
            "no regular expression",
        ),
    ],
)
async def test_a_query_that_cannot_be_is_refused_with_the_reason(http: Http, query: dict[str, Any], said: str) -> None:
    reply = await http("POST", "/v1/query", query)
    assert (reply.status, said in reply.text) == (400, True), reply.text
    assert (await http("GET", "/v1/query")).json == []


async def test_a_name_is_one_query_s_and_no_other_s_whatever_its_case(http: Http) -> None:
    id_ = await _create(http, Name="db", Service={"Service": "a"})
    for name in ("db", "DB", id_):
        assert (await http("POST", "/v1/query", {"Name": name, "Service": {"Service": "b"}})).status == 400
    template = {"Name": "db", "Service": {"Service": "b"}, "Template": {"Type": "name_prefix_match"}}
    await _create(http, **template)  # a template's name is a beginning of names, not one of them
    assert (await http("POST", "/v1/query", template)).status == 400
    assert (await http("GET", "/v1/query/Db/explain")).json["Query"]["Service"]["Service"] == "a"


async def test_the_longest_template_answers_filled_in_for_the_name(http: Http) -> None:
    kind = {"Type": "name_prefix_match"}
    await _create(http, Name="", Service={"Service": "${name.full}"}, Template=kind)
    await _create(
        http,
        Name="geo-",
        Service={
            "Service": "${match(1)}",
            "Tags": ["${match(2)}", "", "$${name.full}", "${ name.prefix }${name.suffix}", "${match(9)}"],
            "NodeMeta": {"k-${match(2)}": "v"},
        },
        Template={**kind, "Regexp": "^geo-(.*?)-([^-]*)$", "RemoveEmptyTags": True},
    )
    asked = (await http("GET", "/v1/query/geo-web-v1/explain")).json["Query"]["Service"]
    assert (asked["Service"], asked["Tags"]) == ("web", ["v1", "${name.full}", "geo-web-v1"])
    assert asked["NodeMeta"] == {"k-v1": "v"}
    assert (await http("GET", "/v1/query/anything/explain")).json["Query"]["Service"]["Service"] == "anything"
    await _register(http, "anything", "one")
    assert await _ids(http, "/v1/query/anything/execute") == ["one"]


async def test_a_query_admits_by_tags_and_health_and_metadata(http: Http) -> None:
    failing = {"CheckID": "disk", "TTL": "10m", "Status": "critical"}
    await _register(http, "web", "good", ["v1", "Blue"], Meta={"zone": "a"})
    await _register(http, "web", "warned", ["v1"], Check={"CheckID": "w", "TTL": "10m", "Status": "warning"})
    await _register(http, "web", "failing", ["v2"], Check=failing)
    for id_, status in (("w", "warn"), ("disk", "fail")):
        assert (await http("PUT", f"/v1/agent/check/{status}/{id_}")).status == 200
    expected: dict[str, tuple[dict[str, Any], list[str]]] = {
        "all": ({}, ["good", "warned"]),
        "passing": ({"OnlyPassing": True}, ["good"]),
        "ignoring": ({"IgnoreCheckIDs": ["disk"]}, ["failing", "good", "warned"]),
        "tagged": ({"Tags": ["BLUE"]}, ["good"]),
        "untagged": ({"Tags": ["v1", "!blue"]}, ["warned"]),
        "meta": ({"ServiceMeta": {"zone": "a"}}, ["good"]),
        "elsewhere": ({"NodeMeta": {"rack": "9"}}, []),
    }
    for name, (more, ids) in expected.items():
        await _create(http, Name=name, Service={"Service": "web", **more})
        assert await _ids(http, f"/v1/query/{name}/execute") == ids, name
    assert (await http("PUT", "/v1/agent/service/maintenance/good?enable=true")).status == 200
    assert await _ids(http, "/v1/query/all/execute") == ["warned"]


async def test_an_answer_is_shuffled_and_limited_and_tells_of_itself(http: Http) -> None:
    for number in range(8):
        await _register(http, "web", f"web-{number}")
    await _create(http, Name="web", Service={"Service": "web", "Near": "_agent"}, DNS={"TTL": "3s"})
    orders = set()
    for _ in range(10):
        reply = await http("GET", "/v1/query/web/execute?near=_ip")
        orders.add(tuple(node["Service"]["ID"] for node in reply.json["Nodes"]))
    assert len(orders) > 5
    assert {key: reply.json[key] for key in ("Service", "DNS", "Datacenter", "Failovers")} == {
        "Service": "web",
        "DNS": {"TTL": "3s"},
        "Datacenter": "dc1",
        "Failovers": 0,
    }
    assert len(await _ids(http, "/v1/query/web/execute?limit=3")) == 3
    assert (await http("GET", "/v1/query/web/execute?limit=many")).status == 400
    assert (await http("GET", "/v1/query/web/execute?connect")).status == 200  # no value: as if not given
    assert (await http("GET", "/v1/query/none/execute")).status == 404


async def test_a_query_of_a_session_goes_with_it_and_its_name_too(http: Http) -> None:
    session = (await http("PUT", "/v1/session/create", {})).json["ID"]
    id_ = await _create(http, Name="bound", Session=session, Service={"Service": "web"})
    waiting = await http.blocked(f"/v1/query?index={(await http('GET', '/v1/query')).index}")
    assert (await http("PUT", f"/v1/session/destroy/{session}")).status == 200
    assert (await waiting).json == []
    assert (await http("GET", f"/v1/query/{id_}")).status == 404
    await _create(http, Name="bound", Service={"Service": "web"})


async def test_a_name_may_hold_anything_but_is_never_taken_for_an_ending(http: Http) -> None:
    await _create(http, Name="a/execute", Service={"Service": "odd"})
    assert (await http("GET", "/v1/query/a/execute/execute")).json["Service"] == "odd"
    assert (await http("GET", "/v1/query/a%2Fexecute/explain")).json["Query"]["Name"] == "a/execute"
    assert (await http("PUT", "/v1/query/x/execute", {})).status == 405


async def test_a_query_s_token_may_be_the_caller_s_and_is_never_kept(eventually: Eventually) -> None:
    async with Registry(node="home", token="secret", rng=random.Random(1)) as registry:
        front = HttpFront(registry.operations)
        at = await front.listen("127.0.0.1:0")
        async with aiohttp.ClientSession(headers={"X-Consul-Token": "secret"}) as session:
            http = Http(session, at, front, eventually)
            query = {"Name": "a", "Service": {"Service": "a"}}
            assert (await http("POST", "/v1/query", {**query, "Token": "other"})).status == 403
            assert (await http("POST", "/v1/query", {**query, "Token": "secret"})).status == 200
            assert [one["Token"] for one in (await http("GET", "/v1/query")).json] == [""]
        await front.close()
