"""Checks that are registered with the agent one by one: of its node, or of a service on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

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
    assert [check["Status"] for check in woken.json[0]["Checks"]] == ["passing"]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"TTL": "1h"}, 400),
        ({"Name": "x"}, 400),
        ({"Name": "x", "Args": ["/bin/true"], "Interval": "5s"}, 400),
        ({"Name": "x", "TTL": "1h", "ServiceID": "none"}, 500),
        ({"Name": "x", "TTL": "1h", "DeregisterCriticalServiceAfter": "2m"}, 400),
        ({"Name": "_node_maintenance", "TTL": "1h"}, 400),
        ({"ID": "service:web", "Name": "x", "TTL": "1h"}, 400),
    ],
)
async def test_a_check_that_cannot_be_is_refused(http: Http, asked: dict[str, object], status: int) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "1h"}})
    assert (await http("PUT", "/v1/agent/check/register", asked)).status == status
    assert list((await http("GET", "/v1/agent/checks")).json) == ["service:web"]


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
