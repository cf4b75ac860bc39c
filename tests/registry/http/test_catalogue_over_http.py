"""Nodes, services and checks that are registered with the catalogue, by whoever looks after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest

from homeport.client.core.messages import Deregister, Register
from homeport.client.core.model import Instance
from homeport.registry import Registry
from homeport.registry.core.limits import BLOCKING_WAIT_S_MAX

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http

FAR: dict[str, Any] = {
    "ID": "9f5a3c1e-0000-4000-8000-0000000000aa",
    "Node": "far",
    "Address": "10.0.0.9",
    "TaggedAddresses": {"wan": "192.0.2.9"},
    "NodeMeta": {"os": "bsd", "rack": "7"},
}
DB: dict[str, Any] = {
    "ID": "db1",
    "Service": "db",
    "Tags": ["Primary", "v1"],
    "Port": 5432,
    "Meta": {"version": "16"},
    "TaggedAddresses": {"lan": {"Address": "10.0.0.9", "Port": 5433}},
    "Weights": {"Passing": 10, "Warning": 2},
}


async def put(http: Http, **more: Any) -> None:
    reply = await http("PUT", "/v1/catalog/register", {**FAR, **more})
    assert (reply.status, reply.json) == (200, True), reply


async def names(http: Http, path: str, field: str) -> list[str]:
    return [row[field] for row in (await http("GET", path)).json]


async def test_a_node_is_shown_as_it_was_registered(http: Http) -> None:
    await put(http)
    nodes = (await http("GET", "/v1/catalog/nodes")).json
    assert [node["Node"] for node in nodes] == ["far", "home"]
    far = nodes[0]
    assert far["ID"] == FAR["ID"]
    assert (far["Address"], far["Datacenter"]) == ("10.0.0.9", "dc1")
    assert far["TaggedAddresses"] == {"lan": "10.0.0.9", "wan": "192.0.2.9"}
    assert far["Meta"] == FAR["NodeMeta"]
    assert far["CreateIndex"] == far["ModifyIndex"] > 1
    assert (await http("GET", "/v1/catalog/node/far")).json == {"Node": far, "Services": {}}
    assert (await http("GET", "/v1/catalog/node/none")).json is None
    assert (await http("GET", "/v1/catalog/node-services/none")).json == {"Node": None, "Services": []}
    assert (await http("GET", "/v1/health/node/none")).json == []


async def test_a_service_stands_in_every_list_that_may_hold_it(http: Http) -> None:
    await put(http, Service=DB)
    (row,) = (await http("GET", "/v1/catalog/service/db")).json
    assert (row["Node"], row["Address"], row["NodeMeta"]) == ("far", "10.0.0.9", FAR["NodeMeta"])
    assert (row["ServiceID"], row["ServiceName"], row["ServiceTags"]) == ("db1", "db", ["Primary", "v1"])
    assert (row["ServiceAddress"], row["ServicePort"]) == ("", 5432)
    assert row["ServiceWeights"] == {"Passing": 10, "Warning": 2}
    assert row["ServiceTaggedAddresses"] == DB["TaggedAddresses"]
    (entry,) = (await http("GET", "/v1/health/service/db?passing")).json
    assert entry["Node"]["ID"] == row["ID"] == FAR["ID"]
    assert entry["Checks"] == []
    found = (await http("GET", "/v1/catalog/node/far")).json
    assert found["Services"] == {"db1": entry["Service"]}
    assert (await http("GET", "/v1/catalog/node-services/far")).json["Services"] == [entry["Service"]]
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], "db": ["Primary", "v1"]}


async def test_the_same_again_changes_nothing(http: Http, registry: Registry) -> None:
    checks = [{"Name": "disk", "Status": "passing"}, {"CheckID": "up", "ServiceID": "db1", "Status": "passing"}]
    await put(http, Service=DB, Checks=checks)
    revision = registry.store.mvcc.revision
    await put(http, Service=DB, Checks=checks)
    await put(http)
    own = {"Node": "home", "Address": "127.0.0.1"}
    assert (await http("PUT", "/v1/catalog/register", own)).json is True
    assert registry.store.mvcc.revision == revision


async def test_a_nodes_check_counts_for_every_instance_on_it_and_no_other(http: Http) -> None:
    await put(http, Service=DB)
    await put(http, Service={"Service": "cache"})
    await http("PUT", "/v1/catalog/register", {"Node": "near", "Address": "10.0.0.8", "Service": {"Service": "db"}})
    await put(http, Check={"CheckID": "disk", "Name": "Disk", "Status": "critical", "Output": "full"})
    assert [entry["Node"]["Node"] for entry in (await http("GET", "/v1/health/service/db?passing")).json] == ["near"]
    assert (await http("GET", "/v1/health/service/cache?passing")).json == []
    (cache,) = (await http("GET", "/v1/health/service/cache")).json
    (check,) = cache["Checks"]
    assert (check["CheckID"], check["Name"], check["Status"], check["Output"]) == ("disk", "Disk", "critical", "full")
    assert (check["Node"], check["ServiceID"], check["ServiceName"], check["ServiceTags"]) == ("far", "", "", [])
    assert await names(http, "/v1/health/checks/cache", "CheckID") == [], "a service's own alone"
    assert await names(http, "/v1/health/node/far", "CheckID") == ["disk"]
    assert await names(http, "/v1/health/state/critical", "CheckID") == ["disk"]
    assert await names(http, "/v1/health/state/any", "CheckID") == ["disk", "serfHealth"]
    await http("PUT", "/v1/catalog/deregister", {"Node": "far", "CheckID": "disk"})
    assert len((await http("GET", "/v1/health/service/db?passing")).json) == 2


async def test_a_services_check_counts_for_it_alone_and_shows_what_it_looks_at(http: Http) -> None:
    definition = {"TCP": "10.0.0.9:5432", "Interval": "5s", "Timeout": 1_000_000_000}
    told = {"CheckID": "up", "Name": "Up", "ServiceID": "db1", "Status": "warning", "Type": "tcp"}
    await put(http, Service=DB, Check={**told, "Definition": definition})
    await put(http, Service={"Service": "cache"})
    (check,) = (await http("GET", "/v1/health/checks/db")).json
    assert (check["ServiceName"], check["ServiceTags"], check["Type"]) == ("db", DB["Tags"], "tcp")
    assert check["Definition"] == {"TCP": "10.0.0.9:5432", "Interval": "5s", "Timeout": "1s"}
    assert len((await http("GET", "/v1/health/service/cache?passing")).json) == 1
    assert (await http("GET", "/v1/health/service/db?passing")).json == []


async def test_maintenance_is_a_check_with_that_id_and_a_state_of_what_it_is_of(http: Http) -> None:
    await put(http, Service=DB)
    await put(http, Check={"CheckID": "_node_maintenance", "Status": "critical", "Notes": "moving"})
    (entry,) = (await http("GET", "/v1/health/service/db")).json
    assert [(one["CheckID"], one["Notes"]) for one in entry["Checks"]] == [("_node_maintenance", "moving")]
    assert (await http("GET", "/v1/health/service/db?passing")).json == []
    await http("PUT", "/v1/catalog/deregister", {"Node": "far", "CheckID": "_node_maintenance"})
    assert len((await http("GET", "/v1/health/service/db?passing")).json) == 1
    await put(http, Check={"CheckID": "_service_maintenance:db1", "ServiceID": "db1", "Status": "critical"})
    assert (await http("GET", "/v1/health/service/db?passing")).json == []
    await put(http, Service={**DB, "Port": 5433})
    assert (await http("GET", "/v1/health/service/db?passing")).json == [], "a registration leaves the state"
    await http("PUT", "/v1/catalog/deregister", {"Node": "far", "CheckID": "_service_maintenance:db1"})
    assert len((await http("GET", "/v1/health/service/db?passing")).json) == 1


async def test_the_agents_own_node_goes_into_maintenance_with_all_that_is_on_it(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web"})
    assert (await http("PUT", "/v1/agent/maintenance")).status == 400
    assert (await http("PUT", "/v1/agent/maintenance?enable=false")).status == 200
    assert (await http("PUT", "/v1/agent/maintenance?enable=true&reason=upgrade")).status == 200
    assert (await http("GET", "/v1/health/service/web?passing")).json == []
    (check,) = (await http("GET", "/v1/agent/checks")).json.values()
    assert (check["CheckID"], check["Notes"]) == ("_node_maintenance", "upgrade")
    reply = await http("GET", "/v1/agent/health/service/id/web?format=text")
    assert (reply.status, reply.text) == (503, "maintenance")
    assert (await http("PUT", "/v1/agent/maintenance?enable=false")).status == 200
    assert len((await http("GET", "/v1/health/service/web?passing")).json) == 1


async def test_nodes_are_chosen_by_their_metadata(http: Http) -> None:
    await put(http, Service=DB, Check={"Name": "disk", "Status": "passing"})
    await http("PUT", "/v1/catalog/register", {"Node": "near", "Address": "10.0.0.8", "Service": DB})
    for query, found in (
        ("node-meta=os:bsd", ["far"]),
        ("node-meta=os:bsd&node-meta=rack:7", ["far"]),
        ("node-meta=os:bsd&node-meta=rack:8", []),
        ("node-meta=os", []),
    ):
        assert await names(http, f"/v1/catalog/nodes?{query}", "Node") == found, query
        assert await names(http, f"/v1/catalog/service/db?{query}", "Node") == found, query
        assert await names(http, f"/v1/health/state/any?{query}", "Node") == found, query
        entries = (await http("GET", f"/v1/health/service/db?{query}")).json
        assert [entry["Node"]["Node"] for entry in entries] == found, query
        assert list((await http("GET", f"/v1/catalog/services?{query}")).json) == ["db"][: len(found)], query


async def test_a_node_that_is_near_comes_first(http: Http) -> None:
    for name in ("a", "b", "c"):
        await http("PUT", "/v1/catalog/register", {"Node": name, "Address": "10.0.0.1", "Service": DB})
    assert await names(http, "/v1/catalog/service/db", "Node") == ["a", "b", "c"]
    assert await names(http, "/v1/catalog/service/db?near=b", "Node") == ["b", "a", "c"]
    assert await names(http, "/v1/catalog/nodes?near=_agent", "Node") == ["home", "a", "b", "c"]
    entries = (await http("GET", "/v1/health/service/db?near=c")).json
    assert [entry["Node"]["Node"] for entry in entries] == ["c", "a", "b"]


async def test_several_tags_must_all_be_there_in_any_case(http: Http) -> None:
    await put(http, Service=DB)
    for query, count in (("tag=primary", 1), ("tag=V1&tag=PRIMARY", 1), ("tag=v1&tag=v2", 0)):
        assert len((await http("GET", f"/v1/catalog/service/db?{query}")).json) == count, query
        assert len((await http("GET", f"/v1/health/service/db?{query}")).json) == count, query


async def test_a_node_that_is_removed_takes_all_with_it(http: Http, registry: Registry) -> None:
    await put(http, Service=DB, Checks=[{"Name": "disk"}, {"Name": "up", "ServiceID": "db1"}])
    await registry.operations.registrations.register(
        Register(Instance(service="db", id="leased", node="far", ttl_s=30)), _peer(registry)
    )
    await http("PUT", "/v1/catalog/deregister", {"Node": "far"})
    assert await names(http, "/v1/catalog/nodes", "Node") == ["home"]
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": []}
    for prefix in (b"c/", b"s/", b"i/", b"h/", b"l/"):
        assert not list(registry.store.mvcc.keys(prefix, prefix[:-1] + b"0")), prefix
    for asked in ({"Node": "far"}, {"Node": "far", "ServiceID": "x"}, {"Node": "far", "CheckID": "x"}):
        assert (await http("PUT", "/v1/catalog/deregister", asked)).json is True


async def test_a_node_that_others_only_put_things_on_is_there_as_long_as_they_are(
    http: Http, registry: Registry
) -> None:
    one = Instance(service="db", id="x", node="theirs", address="10.1.1.1", port=1)
    await registry.operations.registrations.register(Register(one), _peer(registry))
    nodes = (await http("GET", "/v1/catalog/nodes")).json
    assert [(node["Node"], node["Address"]) for node in nodes] == [("home", "127.0.0.1"), ("theirs", "10.1.1.1")]
    told = {"Node": "theirs", "SkipNodeUpdate": True, "Check": {"Name": "disk", "Status": "critical"}}
    assert (await http("PUT", "/v1/catalog/register", told)).status == 200
    assert (await http("GET", "/v1/health/service/db?passing")).json == []
    await http("PUT", "/v1/catalog/deregister", {"Node": "theirs", "ServiceID": "x"})
    assert await names(http, "/v1/catalog/nodes", "Node") == ["home", "theirs"], "its check registered it"
    assert (await http("PUT", "/v1/catalog/register", {**told, "Node": "none"})).status == 500


async def test_services_without_an_address_move_with_their_node(http: Http, registry: Registry) -> None:
    await put(http, Service=DB)
    await put(http, Service={"Service": "fixed", "Address": "10.9.9.9"})
    await put(http, Address="10.0.0.10")
    assert registry.catalogue.services["db"].instances(passing=True)[0].address == "10.0.0.10"
    assert registry.catalogue.services["fixed"].instances(passing=True)[0].address == "10.9.9.9"


async def test_registering_leaves_what_the_registry_looks_after(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1h", "Status": "passing"}})
    asked = {"Node": "home", "Address": "127.0.0.1", "Service": {"Service": "web", "Tags": ["new"]}}
    assert (await http("PUT", "/v1/catalog/register", asked)).status == 200
    (entry,) = (await http("GET", "/v1/health/service/web?passing&tag=new")).json
    assert [check["CheckID"] for check in entry["Checks"]] == ["serfHealth", "service:web"]
    assert (await http("PUT", "/v1/agent/check/fail/service:web")).status == 200
    assert (await http("GET", "/v1/health/service/web?passing")).json == []


async def test_what_others_say_of_an_instance_stays_when_it_is_registered_anew(http: Http, registry: Registry) -> None:
    one = Instance(service="db", id="x", node="home", address="10.1.1.1", port=1, ttl_s=60)
    await registry.operations.registrations.register(Register(one), _peer(registry))
    told = {"CheckID": "up", "ServiceID": "x", "Status": "warning"}
    assert (await http("PUT", "/v1/catalog/register", {"Node": "home", "SkipNodeUpdate": True, "Check": told})).json
    revision = registry.store.mvcc.revision
    again = msgspec.structs.replace(one, port=2)
    await registry.operations.registrations.register(Register(again), _peer(registry))
    (check,) = (await http("GET", "/v1/health/checks/db")).json
    assert (check["CheckID"], check["Status"]) == ("up", "warning")
    assert registry.store.mvcc.revision == revision + 1
    await registry.operations.registrations.deregister(Deregister("x"), _peer(registry))
    assert not [*registry.store.mvcc.keys(b"h/", b"h0"), *registry.store.mvcc.keys(b"l/", b"l0")]


async def test_where_the_request_comes_from_can_come_first(http: Http) -> None:
    for name, address in (("a", "10.0.0.1"), ("b", "127.0.0.1")):
        await http("PUT", "/v1/catalog/register", {"Node": name, "Address": address, "Service": DB})
    assert await names(http, "/v1/catalog/service/db?near=_ip", "Node") == ["b", "a"]


@pytest.mark.parametrize("override", [True, False])
async def test_tags_that_others_changed_stay_where_they_may_be_overridden(http: Http, override: bool) -> None:
    own = {"Name": "web", "Tags": ["old"], "EnableTagOverride": override}
    await http("PUT", "/v1/agent/service/register", own)
    told = {"Service": "web", "Tags": ["new"], "EnableTagOverride": override}
    await http("PUT", "/v1/catalog/register", {"Node": "home", "Address": "127.0.0.1", "Service": told})
    await http("PUT", "/v1/agent/service/register", own)
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], "web": ["new" if override else "old"]}


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({}, 400, "Must provide node and address"),
        ({"Node": "far"}, 400, "Must provide node and address"),
        ({**FAR, "Datacenter": "mars"}, 500, "No path to datacenter"),
        ({**FAR, "Partition": "p"}, 400, "Partition"),
        ({**FAR, "Service": {"ID": "x"}}, 500, "service name"),
        ({**FAR, "Service": {**DB, "Kind": "connect-proxy"}}, 400, "Kind is not supported"),
        ({**FAR, "Service": {**DB, "Connect": {"Native": True}}}, 400, "Connect is not supported"),
        ({**FAR, "Check": {"Status": "passing"}}, 500, "CheckID"),
        ({**FAR, "Check": {"Name": "x", "Status": "fine"}}, 400, "'fine'"),
        ({**FAR, "Check": {"Name": "x", "Node": "other"}}, 400, "does not match"),
        ({**FAR, "Check": {"Name": "x", "ServiceID": "none"}}, 500, "Missing service registration"),
        ({**FAR, "Check": {"Name": "x", "Definition": {"Interval": "soon"}}}, 400, "Interval"),
        ({**FAR, "Check": {"Name": "x", "Definition": {"DeregisterCriticalServiceAfter": "90s"}}}, 400, "ServiceID"),
        ({**FAR, "NodeMeta": {"key": "x" * 5000}}, 400, "meta"),
    ],
)
async def test_what_cannot_be_registered_is_refused_whole(
    http: Http, registry: Registry, asked: dict[str, Any], status: int, said: str
) -> None:
    revision = registry.store.mvcc.revision
    reply = await http("PUT", "/v1/catalog/register", asked)
    assert (reply.status, said in reply.text) == (status, True), reply
    assert registry.store.mvcc.revision == revision


async def test_two_nodes_cannot_have_one_id(http: Http) -> None:
    await put(http)
    reply = await http("PUT", "/v1/catalog/register", {**FAR, "Node": "other"})
    assert (reply.status, "far" in reply.text) == (500, True)


# --- waiting --------------------------------------------------------------------------------------------------------

FIRST: dict[str, Any] = {**FAR, "Service": DB, "Checks": [{"Name": "disk", "Status": "passing"}]}
NODES = "/v1/catalog/nodes"
ANY = "/v1/health/state/any"
READS = (
    NODES,
    "/v1/catalog/node/far",
    "/v1/catalog/node-services/far",
    "/v1/catalog/service/db",
    "/v1/catalog/services",
    "/v1/health/node/far",
    "/v1/health/checks/db",
    "/v1/health/service/db",
    ANY,
)
# What each change may alter, and so wakes; nobody else.
CHANGES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("register", {**FAR, "NodeMeta": {"os": "linux"}}, tuple(path for path in READS if path != "/v1/catalog/services")),
    (
        "register",
        {**FAR, "Service": {**DB, "Port": 1}},
        tuple(path for path in READS if path not in (NODES, "/v1/catalog/services", ANY)),
    ),
    (
        "register",
        {**FAR, "Service": {**DB, "Tags": ["v2"]}},
        tuple(path for path in READS if path not in (NODES, ANY)),
    ),
    (
        "register",
        {**FAR, "Check": {"Name": "disk", "Status": "warning"}},
        tuple(path for path in READS if path not in (NODES, "/v1/catalog/services")),
    ),
    ("register", {"Node": "else", "Address": "10.0.0.2"}, (NODES, ANY)),
    (
        "register",
        {"Node": "else", "Address": "10.0.0.2", "Service": {"Service": "other"}},
        (NODES, "/v1/catalog/services", ANY),
    ),
    ("deregister", {"Node": "far"}, READS),
)


@pytest.mark.parametrize(("verb", "change", "woken"), CHANGES)
async def test_a_read_wakes_for_what_may_alter_it_and_for_nothing_else(
    http: Http, verb: str, change: dict[str, Any], woken: tuple[str, ...]
) -> None:
    assert (await http("PUT", "/v1/catalog/register", FIRST)).json is True
    indexes = {path: (await http("GET", path)).index for path in READS}
    absent = ("/v1/catalog/node/none", "/v1/health/service/none", "/v1/health/connect/db")
    indexes |= {path: (await http("GET", path)).index for path in absent}
    waiting = {
        path: await http.blocked(f"{path}?index={index}&wait={BLOCKING_WAIT_S_MAX:.0f}s")
        for path, index in indexes.items()
    }
    assert (await http("PUT", f"/v1/catalog/{verb}", change)).json is True
    for path in woken:
        reply = await waiting.pop(path)
        assert reply.index > indexes[path], path
    assert {path for path, task in waiting.items() if task.done()} == set()
    for path, task in waiting.items():
        assert (await http("GET", path)).index == indexes[path], path
        task.cancel()


async def test_an_index_of_a_node_never_goes_back_when_it_goes(http: Http) -> None:
    await put(http, Service=DB)
    before = (await http("GET", "/v1/catalog/node/far")).index
    await http("PUT", "/v1/catalog/deregister", {"Node": "far"})
    gone = (await http("GET", "/v1/catalog/node/far")).index
    assert gone > before
    await put(http)
    assert (await http("GET", "/v1/catalog/node/far")).index > gone


async def test_a_service_of_the_agent_is_waited_for_by_its_hash(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 1})
    reply = await http("GET", "/v1/agent/service/web")
    known = reply.json["ContentHash"]
    assert reply.headers["X-Consul-ContentHash"] == known
    waiting = await http.blocked(f"/v1/agent/service/web?hash={known}&wait=5m")
    await http("PUT", "/v1/agent/service/register", {"Name": "other"})
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 2})
    woken = await waiting
    assert (woken.json["Port"], woken.json["ContentHash"] != known) == (2, True)
    waiting = await http.blocked(f"/v1/agent/service/web?hash={woken.json['ContentHash']}")
    await http("PUT", "/v1/agent/service/deregister/web")
    assert (await waiting).status == 404


# --- odd names ------------------------------------------------------------------------------------------------------

ODD = ("a/b", "a%2Fb", "http://x:80/y?z#f", "größe", "a b", "100%", "..", "名前/一", "a//b/", "q?x=1&y")


@pytest.mark.parametrize("name", ODD)
async def test_odd_names_of_nodes_services_and_checks_survive(http: Http, name: str) -> None:
    path = quote(name, safe="")
    asked = {
        "Node": name,
        "Address": "10.0.0.1",
        "Service": {"ID": name, "Service": name, "Tags": [name], "Meta": {"m": name}},
        "Check": {"CheckID": name, "ServiceID": name, "Status": "critical", "Output": name},
    }
    assert (await http("PUT", "/v1/catalog/register", asked)).json is True
    (row,) = (await http("GET", f"/v1/catalog/service/{path}?tag={quote(name)}")).json
    assert (row["Node"], row["ServiceID"], row["ServiceName"], row["ServiceTags"]) == (name, name, name, [name])
    found = (await http("GET", f"/v1/catalog/node/{path}")).json
    assert (found["Node"]["Node"], list(found["Services"])) == (name, [name])
    (check,) = (await http("GET", f"/v1/health/node/{path}")).json
    assert (check["CheckID"], check["Output"]) == (name, name)
    assert len((await http("GET", f"/v1/health/service/{path}")).json) == 1
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], name: [name]}
    assert (await http("PUT", "/v1/catalog/deregister", {"Node": name})).json is True
    assert (await http("GET", f"/v1/catalog/node/{path}")).json is None


@pytest.mark.parametrize("name", ODD)
async def test_odd_names_survive_with_the_agent(http: Http, name: str) -> None:
    path = quote(name, safe="")
    asked = {"ID": name, "Name": name, "Check": {"CheckID": f"c {name}", "TTL": "1h"}}
    assert (await http("PUT", "/v1/agent/service/register", asked)).status == 200
    assert (await http("GET", f"/v1/agent/service/{path}")).json["ID"] == name
    assert (await http("PUT", f"/v1/agent/check/pass/{quote(f'c {name}', safe='')}")).status == 200
    assert (await http("GET", f"/v1/agent/health/service/id/{path}")).status == 200
    assert (await http("GET", f"/v1/agent/health/service/name/{path}")).status == 200
    assert (await http("PUT", f"/v1/agent/service/maintenance/{path}?enable=true")).status == 200
    assert (await http("GET", f"/v1/agent/health/service/name/{path}")).status == 503
    assert (await http("PUT", f"/v1/agent/service/deregister/{path}")).status == 200
    assert (await http("GET", "/v1/agent/services")).json == {}


def _peer(registry: Registry) -> Any:
    from homeport.registry.peers import NoOutlet, Peer

    return Peer(NoOutlet())
