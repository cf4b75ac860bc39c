"""Checks that are registered with the agent one by one: of its node, or of a service on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from homeport.client import Check
from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Eventually, Http


async def test_a_check_of_the_node_counts_for_all_that_is_on_it(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web"})
    assert (await http("PUT", "/v1/agent/check/register", {"Name": "disk", "Notes": "n", "TTL": "1h"})).status == 200
    assert (await http("GET", "/v1/health/service/web?passing")).json == []
    (check,) = (await http("GET", "/v1/agent/checks")).json.values()
    assert (check["CheckID"], check["Name"], check["Notes"], check["ServiceID"]) == ("disk", "disk", "n", "")
    assert (await http("PUT", "/v1/agent/check/warn/disk?note=half")).status == 200
    reply = await http("GET", "/v1/agent/health/service/id/web")
    assert (reply.status, reply.json["AggregatedStatus"]) == (429, "warning")
    assert [(one["CheckID"], one["Output"]) for one in reply.json["Checks"]] == [("disk", "half")]
    assert (await http("PUT", "/v1/agent/check/pass/disk")).status == 200
    assert len((await http("GET", "/v1/health/service/web?passing")).json) == 1
    assert (await http("PUT", "/v1/agent/check/deregister/disk")).status == 200
    assert (await http("GET", "/v1/agent/checks")).json == {}
    assert (await http("PUT", "/v1/agent/check/deregister/disk")).status == 404


async def test_a_check_is_added_to_a_service_and_taken_away(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1h", "Status": "passing"}})
    asked = {"ID": "deep", "Name": "Deep", "ServiceID": "web", "TTL": "1h"}
    assert (await http("PUT", "/v1/agent/check/register", asked)).status == 200
    revision = registry.store.mvcc.revision
    assert (await http("PUT", "/v1/agent/check/register", asked)).status == 200
    assert registry.store.mvcc.revision == revision, "the same again changes nothing"
    assert sorted((await http("GET", "/v1/agent/checks")).json) == ["deep", "service:web"]
    assert (await http("GET", "/v1/agent/health/service/id/web")).status == 503
    assert (await http("PUT", "/v1/agent/check/deregister/deep")).status == 200
    assert (await http("GET", "/v1/agent/health/service/id/web")).status == 200
    assert (await http("PUT", "/v1/agent/check/deregister/service:web")).status == 200
    assert not list(registry.store.mvcc.keys(b"h/", b"h0"))
    assert not list(registry.store.mvcc.keys(b"l/", b"l0")), "the leases of ttl checks end with them"


async def test_a_check_of_the_node_is_run(http: Http, eventually: Eventually) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await http("PUT", "/v1/agent/service/register", {"Name": "web"})
    asked = {"Name": "ssh", "TCP": f"127.0.0.1:{port}", "Interval": "1s"}
    assert (await http("PUT", "/v1/agent/check/register", asked)).status == 200
    index = (await http("GET", "/v1/health/service/web")).index
    woken = await http("GET", f"/v1/health/service/web?index={index}")
    assert [check["Status"] for check in woken.json[0]["Checks"]] == ["passing", "passing"]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"TTL": "1h"}, 400),
        ({"Name": "x"}, 400),
        ({"Name": "x", "Args": ["/bin/true"], "Interval": "5s"}, 400),
        ({"Name": "x", "TTL": "1h", "ServiceID": "none"}, 404),
        ({"Name": "x", "TTL": "1h", "DeregisterCriticalServiceAfter": "2m"}, 400),
        ({"Name": "_node_maintenance", "TTL": "1h"}, 400),
        ({"ID": "service:web", "Name": "x", "TTL": "1h"}, 400),
    ],
)
async def test_a_check_that_cannot_be_is_refused(http: Http, asked: dict[str, object], status: int) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1h"}})
    assert (await http("PUT", "/v1/agent/check/register", asked)).status == status
    assert list((await http("GET", "/v1/agent/checks")).json) == ["service:web"]


COMMON = {"interval_s": 5.0, "timeout_s": 10.0, "passing_after": 1, "critical_after": 1}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {
                "HTTP": "https://127.0.0.1:9/x",
                "Method": "POST",
                "Header": {"B": ["2", "3"], "A": ["1"]},
                "Body": "ping",
                "TLSSkipVerify": True,
                "TLSServerName": "orders.example",
                "DisableRedirects": True,
                "OutputMaxSize": 100,
                "Interval": "5s",
                "Timeout": "3s",
                "SuccessBeforePassing": 3,
                "FailuresBeforeWarning": 2,
                "FailuresBeforeCritical": 4,
            },
            {
                "kind": "http",
                "url": "https://127.0.0.1:9/x",
                "method": "POST",
                "headers": {"A": "1", "B": "2, 3"},
                "body": "ping",
                "tls_verify": False,
                "tls_name": "orders.example",
                "redirects": False,
                "output_bytes_max": 100,
                "interval_s": 5.0,
                "timeout_s": 3.0,
                "passing_after": 3,
                "warning_after": 2,
                "critical_after": 4,
            },
        ),
        (
            {"HTTP": "http://127.0.0.1:9/", "OutputMaxSize": 1_000_000, "Interval": "5s"},
            {"kind": "http", "url": "http://127.0.0.1:9/", **COMMON},
        ),
        (
            {"TCP": "127.0.0.1:9", "TCPUseTLS": True, "TLSServerName": "x", "Interval": "5s"},
            {"kind": "tcp", "address": "127.0.0.1:9", "tls": True, "tls_name": "x", **COMMON},
        ),
        (
            {"GRPC": "127.0.0.1:9/shop.Orders", "GRPCUseTLS": True, "TLSSkipVerify": True, "Interval": "5s"},
            {
                "kind": "grpc",
                "address": "127.0.0.1:9",
                "grpc_service": "shop.Orders",
                "tls": True,
                "tls_verify": False,
                **COMMON,
            },
        ),
        ({"GRPC": "127.0.0.1:9", "Interval": "5s"}, {"kind": "grpc", "address": "127.0.0.1:9", **COMMON}),
        ({"AliasService": "db"}, {"kind": "alias", "alias_id": "db"}),
        ({"AliasService": "db", "AliasNode": "far"}, {"kind": "alias", "alias_id": "db", "alias_node": "far"}),
        ({"AliasNode": "far"}, {"kind": "alias", "alias_node": "far"}),
        (
            {"TTL": "5s", "Status": "warning", "DeregisterCriticalServiceAfter": "90m"},
            {"kind": "ttl", "ttl_s": 5.0, "initial": "warning", "deregister_after_s": 5400.0},
        ),
    ],
)
async def test_every_field_of_a_check_is_acted_on(
    http: Http, registry: Registry, asked: dict[str, object], expected: dict[str, object]
) -> None:
    answer = await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {**asked, "CheckID": "it"}})
    assert answer.status == 200, answer.text
    entry = registry.catalogue.find("home", "web")
    assert entry is not None
    assert entry.registered.checks == (Check(name="it", **expected),)  # type: ignore[arg-type]
    shown = (await http("GET", "/v1/agent/checks")).json["it"]
    assert shown["Type"] == expected["kind"]


PROBED = {"HTTP": "http://127.0.0.1:9/", "Interval": "5s"}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"Args": ["true"], "Interval": "5s"}, "Args is not supported: script checks are remote code execution"),
        ({"Script": "true", "Interval": "5s"}, "Script is not supported: script checks"),
        ({"DockerContainerID": "x", "Interval": "5s"}, "DockerContainerID is not supported"),
        ({"H2PING": "127.0.0.1:9", "Interval": "5s"}, "H2PING is not supported: a ping"),
        ({"UDP": "127.0.0.1:9", "Interval": "5s"}, "UDP is not supported: nothing says"),
        ({"OSService": "sshd", "Interval": "5s"}, "OSService is not supported"),
        ({**PROBED, "TCP": "127.0.0.1:9"}, "got HTTP and TCP"),
        ({"HTTP": "http://127.0.0.1:9/"}, "Interval must be > 0"),
        ({"AliasService": "db", "Interval": "5s"}, "Interval cannot be set for Alias"),
        ({"AliasService": "db", "TTL": "5s"}, "got TTL and AliasService or AliasNode"),
        ({**PROBED, "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 2}, "can't be higher"),
        ({**PROBED, "OutputMaxSize": -1}, "OutputMaxSize must be positive"),
        ({"TTL": "5s", "OutputMaxSize": 10}, "OutputMaxSize is not supported but for HTTP"),
        ({"TTL": "5s", "TLSSkipVerify": True}, "TLSSkipVerify is not supported: only GRPC, HTTP, TCP checks heed it"),
        ({"TTL": "5s", "FailuresBeforeCritical": 3}, "only GRPC, HTTP, TCP checks heed it"),
        ({"TCP": "a:1", "Interval": "5s", "Method": "POST"}, "Method is not supported: only HTTP checks heed it"),
        ({**PROBED, "Body": "x" * 5000}, "4096 bytes"),
        ({"GRPC": "nowhere", "Interval": "5s"}, "host:port"),
    ],
)
async def test_a_check_that_would_not_be_acted_on_is_refused_with_the_reason(
    http: Http, asked: dict[str, object], why: str
) -> None:
    answer = await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": asked})
    assert answer.status == 400
    assert why in answer.text


async def test_a_session_stands_on_checks_of_its_node(http: Http, eventually: Eventually) -> None:
    await http("PUT", "/v1/catalog/register", {"Node": "far", "Address": "10.0.0.9"})
    told = {"Node": "far", "Address": "10.0.0.9", "Check": {"CheckID": "disk", "Status": "passing"}}
    assert (await http("PUT", "/v1/session/create", {"Node": "far"})).status == 500, "it has no serfHealth"
    assert (await http("PUT", "/v1/session/create", {"Node": "far", "NodeChecks": ["disk"]})).status == 500
    await http("PUT", "/v1/catalog/register", told)
    made = (await http("PUT", "/v1/session/create", {"Node": "far", "NodeChecks": ["disk"]})).json["ID"]
    assert [one["ID"] for one in (await http("GET", "/v1/session/node/far")).json] == [made]
    assert (await http("GET", "/v1/session/node/home")).json == []
    index = (await http("GET", f"/v1/session/info/{made}")).index
    others = (await http("GET", "/v1/session/node/home")).index
    waiting = await http.blocked(f"/v1/session/node/home?index={others}&wait=5m")
    await http("PUT", "/v1/catalog/register", {**told, "Check": {"CheckID": "disk", "Status": "critical"}})
    assert (await http("GET", f"/v1/session/info/{made}?index={index}")).json == []
    assert not waiting.done(), "the sessions of one node are not those of another"
    await http("PUT", "/v1/session/create")
    assert len((await waiting).json) == 1
