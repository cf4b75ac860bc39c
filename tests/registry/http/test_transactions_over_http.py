"""Consul's transactions: run in order, committed together or not at all."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http, Reply


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def kv(verb: str, key: str, value: bytes = b"", **more: object) -> dict[str, Any]:
    return {"KV": {"Verb": verb, "Key": key, "Value": b64(value), **more}}


async def txn(http: Http, *operations: dict[str, Any]) -> Reply:
    return await http("PUT", "/v1/txn", list(operations))


async def failed(http: Http, *operations: dict[str, Any]) -> list[tuple[int, str]]:
    reply = await txn(http, *operations)
    assert reply.status == 409, reply
    assert reply.json["Results"] is None
    return [(error["OpIndex"], error["What"]) for error in reply.json["Errors"]]


async def test_operations_see_those_before_them_and_share_one_index(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/kv/old", b"o")
    await http("PUT", "/v1/kv/t/gone", b"g")
    before = registry.store.mvcc.revision
    reply = await txn(
        http,
        kv("set", "t/a", b"1", Flags=7),
        kv("get", "t/a"),
        kv("set", "t/a", b"2"),
        kv("delete", "t/gone"),
        kv("get-tree", "t/"),
        kv("get-or-empty", "none"),
        kv("check-not-exists", "t/gone"),
        kv("get", "old"),
    )
    assert reply.status == 200, reply
    assert reply.json["Errors"] is None
    revision = registry.store.mvcc.revision
    assert revision == before + 1
    shown = [result["KV"] for result in reply.json["Results"]]
    assert [(one["Key"], one["Value"], one["ModifyIndex"]) for one in shown] == [
        ("t/a", None, revision),
        ("t/a", b64(b"1"), revision),
        ("t/a", None, revision),
        ("t/a", b64(b"2"), revision),
        ("none", None, 0),
        ("old", b64(b"o"), before - 1),
    ]
    assert (shown[1]["Flags"], shown[3]["Flags"], shown[1]["CreateIndex"]) == (7, 0, revision)
    stands = (await http("GET", "/v1/kv/t/a")).json[0]
    assert (stands["Value"], stands["ModifyIndex"], stands["CreateIndex"]) == (b64(b"2"), revision, revision)


async def test_one_failure_rolls_all_back_and_every_failure_is_named(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    revision = registry.store.mvcc.revision
    errors = await failed(
        http,
        kv("set", "new", b"x"),
        kv("cas", "k", b"2", Index=revision + 9),
        kv("get", "none"),
        kv("check-not-exists", "k"),
        kv("check-index", "k", Index=1),
        kv("check-index", "none", Index=1),
        kv("check-session", "k", Session="s"),
        kv("delete-cas", "k", Index=1),
        kv("unlock", "k", Session="s"),
        kv("lock", "k", Session="s"),
        kv("no-such", "k"),
        kv("set", ""),
    )
    assert [at for at, _ in errors] == list(range(1, 12))
    assert errors[0][1] == 'failed to set key "k", index is stale'
    assert errors[8][1] == 'invalid session "s"'
    assert registry.store.mvcc.revision == revision
    assert (await http("GET", "/v1/kv/new")).status == 404


async def test_cas_and_delete_cas_mean_what_they_mean_alone(http: Http) -> None:
    assert (await txn(http, kv("cas", "k", b"1", Index=0))).status == 200
    index = (await http("GET", "/v1/kv/k")).json[0]["ModifyIndex"]
    assert await failed(http, kv("cas", "k", b"2", Index=0))
    done = await txn(http, kv("check-index", "k", Index=index), kv("cas", "k", b"2", Index=index))
    assert [result["KV"]["Key"] for result in done.json["Results"]] == ["k", "k"]
    assert (await txn(http, kv("delete-cas", "none", Index=5))).status == 200
    assert await failed(http, kv("delete-cas", "k", Index=index))
    index = (await http("GET", "/v1/kv/k")).json[0]["ModifyIndex"]
    assert (await txn(http, kv("delete-cas", "k", Index=index))).json["Results"] == []
    assert (await http("GET", "/v1/kv/k")).status == 404


async def test_a_tree_is_deleted_with_what_was_written_before(http: Http, registry: Registry) -> None:
    for name in ("t/1", "t/2", "u"):
        await http("PUT", f"/v1/kv/{name}?flags=3", b"x")
    reply = await txn(http, kv("set", "t/3", b"x"), kv("delete-tree", "t/"), kv("get-tree", "t/"), kv("set", "t/1"))
    assert [result["KV"]["Key"] for result in reply.json["Results"]] == ["t/3", "t/1"]
    assert (await http("GET", "/v1/kv/?keys")).json == ["t/1", "u"]
    assert (await http("GET", "/v1/kv/t/1")).json[0]["Flags"] == 0
    assert list(registry.store.mvcc.keys(b"m/", b"m0")) == [b"m/u"]


async def test_locks_are_taken_and_given_back(http: Http) -> None:
    first, second = [(await http("PUT", "/v1/session/create", {"LockDelay": "0s"})).json["ID"] for _ in range(2)]
    reply = await txn(http, kv("lock", "k", b"1", Session=first), kv("check-session", "k", Session=first))
    assert [result["KV"]["Session"] for result in reply.json["Results"]] == [first, first]
    assert await failed(http, kv("set", "x"), kv("lock", "k", Session=second)) == [
        (1, 'failed to lock key "k", lock is already held')
    ]
    assert await failed(http, kv("unlock", "k", Session=second))
    reply = await txn(http, kv("unlock", "k", b"2", Session=first), kv("lock", "k", b"3", Session=second))
    assert [result["KV"]["LockIndex"] for result in reply.json["Results"]] == [1, 2]
    assert (await http("GET", "/v1/kv/k")).json[0]["Session"] == second


async def test_a_lock_delay_stands_against_a_transaction(http: Http) -> None:
    first, second = [(await http("PUT", "/v1/session/create")).json["ID"] for _ in range(2)]
    await http("PUT", f"/v1/kv/k?acquire={first}")
    await http("PUT", f"/v1/session/destroy/{first}")
    assert await failed(http, kv("lock", "k", Session=second)) == [(0, 'failed to lock key "k" due to lock delay')]


async def test_reads_alone_write_nothing(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    revision, commits = registry.store.mvcc.revision, registry.store.numbers()["commits"]
    reply = await txn(http, kv("get", "k"), kv("get-tree", ""), kv("check-index", "k", Index=revision))
    assert len(reply.json["Results"]) == 3
    assert (registry.store.mvcc.revision, registry.store.numbers()["commits"]) == (revision, commits)
    assert (await txn(http, kv("set", "k", b"1"))).json["Results"][0]["KV"]["ModifyIndex"] == revision
    assert registry.store.mvcc.revision == revision, "what stands already is not written again"


async def test_nodes_services_and_checks_are_read(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "ID": "w", "Port": 5, "Check": {"TTL": "1h"}})
    reply = await txn(
        http,
        {"Node": {"Verb": "get", "Node": {"Node": "home"}}},
        {"Service": {"Verb": "get", "Node": "home", "Service": {"ID": "w"}}},
        {"Check": {"Verb": "get", "Check": {"Node": "home", "CheckID": "service:w"}}},
    )
    node, service, check = reply.json["Results"]
    assert node["Node"]["Node"] == "home"
    assert (service["Service"]["Service"], service["Service"]["Port"]) == ("web", 5)
    assert check["Check"]["Status"] == "critical"
    assert len(await failed(http, {"Node": {"Verb": "get", "Node": {"Node": "elsewhere"}}})) == 1


def node(verb: str, name: str, **more: object) -> dict[str, Any]:
    return {"Node": {"Verb": verb, "Node": {"Node": name, **more}}}


def service(verb: str, at: str, **more: object) -> dict[str, Any]:
    return {"Service": {"Verb": verb, "Node": at, "Service": more}}


def check(verb: str, at: str, check_id: str, **more: object) -> dict[str, Any]:
    return {"Check": {"Verb": verb, "Check": {"Node": at, "CheckID": check_id, **more}}}


async def test_a_node_with_all_that_is_on_it_is_written_at_one_index(http: Http, registry: Registry) -> None:
    before = registry.store.mvcc.revision
    reply = await txn(
        http,
        node("cas", "far", Address="10.0.0.9", Meta={"os": "bsd"}, ModifyIndex=0),
        service("set", "far", ID="d1", Service="db", Port=5432),
        check("set", "far", "up", ServiceID="d1", Status="passing", Output="fine"),
        check("set", "far", "disk", Name="Disk", Status="warning"),
        kv("set", "k", b"v"),
        node("get", "far"),
        service("get", "far", ID="d1"),
        check("get", "far", "up"),
    )
    assert reply.status == 200, reply
    revision = before + 1
    assert registry.store.mvcc.revision == revision
    shown = [next(iter(result.values())) for result in reply.json["Results"]]
    assert [one["ModifyIndex"] for one in shown] == [revision] * 8
    assert [one["CreateIndex"] for one in shown] == [revision] * 8
    assert shown[2] == shown[7]
    assert (shown[2]["ServiceName"], shown[2]["Output"]) == ("db", "fine")
    (entry,) = (await http("GET", "/v1/health/service/db")).json
    assert entry["Node"] == shown[0]
    assert entry["Service"] == shown[6]
    assert [(one["CheckID"], one["Status"]) for one in entry["Checks"]] == [("disk", "warning"), ("up", "passing")]
    again = await txn(http, node("get", "far"), service("get", "far", ID="d1"), check("get", "far", "disk"))
    assert [next(iter(result.values())) for result in again.json["Results"]] == [shown[0], shown[6], shown[3]]
    assert registry.store.mvcc.revision == revision


async def test_each_verb_on_nodes_services_and_checks_holds_its_condition(http: Http, registry: Registry) -> None:
    await txn(http, node("set", "far", Address="10.0.0.9"), service("set", "far", ID="d1", Service="db"))
    await txn(http, check("set", "far", "up", ServiceID="d1"))
    revision = registry.store.mvcc.revision
    errors = await failed(
        http,
        node("get", "none"),
        node("set", "near"),
        node("cas", "far", Address="10.0.0.8", ModifyIndex=revision),
        node("cas", "none", Address="10.0.0.8", ModifyIndex=7),
        node("delete-cas", "far", ModifyIndex=revision),
        node("delete-cas", "none"),
        node("drop", "far"),
        service("get", "far", ID="d2"),
        service("set", "none", ID="d2", Service="db"),
        service("set", "far", ID="d2"),
        service("cas", "far", ID="d1", Service="db"),
        service("delete-cas", "far", ID="d1", ModifyIndex=revision),
        service("drop", "far", ID="d1"),
        check("get", "far", "down"),
        check("set", "far", "down", ServiceID="d2"),
        check("set", "none", "down"),
        check("cas", "far", "up", ServiceID="d1", ModifyIndex=1),
        check("delete-cas", "far", "up", ModifyIndex=1),
        check("drop", "far", "up"),
    )
    assert [at for at, _ in errors] == list(range(19))
    said = dict(errors)
    assert said[0] == 'node "none" doesn\'t exist'
    assert said[2] == 'failed to set node "far", index is stale'
    assert said[8] == "Missing node registration"
    assert said[11] == 'failed to delete service "d1" on node "far", index is stale'
    assert said[14] == "Missing service registration"
    assert said[16] == 'failed to set check "up" on node "far", index is stale'
    assert said[18] == 'unknown Check verb "drop"'
    assert registry.store.mvcc.revision == revision


async def test_deletes_give_no_result_and_take_what_hangs_on_it(http: Http, registry: Registry) -> None:
    await txn(http, node("set", "far", Address="10.0.0.9"), service("set", "far", ID="d1", Service="db"))
    await txn(http, check("set", "far", "up", ServiceID="d1"), check("set", "far", "disk"))
    held = (await http("PUT", "/v1/session/create", {"Node": "far", "NodeChecks": []})).json["ID"]
    shown = {one["CheckID"]: one for one in (await http("GET", "/v1/health/node/far")).json}
    reply = await txn(
        http,
        check("delete-cas", "far", "up", ModifyIndex=shown["up"]["ModifyIndex"]),
        service("delete", "far", ID="d1"),
        service("delete", "far", ID="d1"),
        node("delete", "far"),
        node("delete", "none"),
        node("set", "far", Address="10.0.0.1"),
        check("get", "far", "disk"),
    )
    assert [(one["OpIndex"], one["What"]) for one in reply.json["Errors"]] == [
        (6, 'check "disk" on node "far" doesn\'t exist')
    ]
    reply = await txn(http, node("delete", "far"), node("delete", "none"))
    assert reply.json == {"Results": [], "Errors": None}
    assert (await http("GET", "/v1/catalog/node/far")).json is None
    assert (await http("GET", f"/v1/session/info/{held}")).json == [], "a session ends with its node"
    assert not [*registry.store.mvcc.keys(b"h/", b"h0"), *registry.store.mvcc.keys(b"l/", b"l0")]


async def test_what_the_registry_runs_itself_is_read_and_removed_but_not_told(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1h", "Status": "passing"}})
    errors = await failed(http, check("set", "home", "service:web", ServiceID="web", Status="critical"))
    assert "run by the registry" in errors[0][1]
    reply = await txn(http, check("get", "home", "service:web"), check("delete", "home", "service:web"))
    assert [one["Check"]["Status"] for one in reply.json["Results"]] == ["passing"]
    assert (await http("GET", "/v1/agent/checks")).json == {}


@pytest.mark.parametrize(
    ("operations", "status"),
    [
        ([kv("set", f"k{number}") for number in range(129)], 413),
        ([kv("set", "k", b"x" * (512 * 1024 + 1))], 413),
        ([{}], 400),
        ([{"KV": {"Verb": "get", "Key": "k"}, "Node": {"Verb": "get"}}], 400),
        ([{"KV": {"Verb": "set", "Key": "k", "Value": "not base64!"}}], 400),
        ([{"KV": {"Verb": "set", "Key": "k", "Flags": -1}}], 400),
    ],
)
async def test_what_cannot_be_meant_is_refused_whole(http: Http, operations: list[Any], status: int) -> None:
    assert (await http("PUT", "/v1/txn", operations)).status == status
    assert (await http("GET", "/v1/kv/?keys")).json == []


async def test_128_operations_are_allowed(http: Http) -> None:
    reply = await txn(http, *[kv("set", f"k{number}", b"v", Flags=1) for number in range(128)])
    assert len(reply.json["Results"]) == 128


async def test_transactions_that_meet_lose_nothing(http: Http) -> None:
    """Each reads and writes the same key on the condition that it is as read: none may be lost."""
    await http("PUT", "/v1/kv/n", b"0")

    async def add() -> None:
        while True:
            found = (await http("GET", "/v1/kv/n")).json[0]
            value = int(base64.b64decode(found["Value"])) + 1
            write = kv("cas", "n", str(value).encode(), Index=found["ModifyIndex"])
            if (await txn(http, write, kv("set", f"seen/{value}"))).status == 200:
                return

    await asyncio.gather(*[add() for _ in range(20)])
    assert (await http("GET", "/v1/kv/n?raw")).body == b"20"
    assert len((await http("GET", "/v1/kv/seen/?keys")).json) == 20
