"""What the agent says of itself, of its services and of the cluster that it is all of."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from homeport.client.core.model import Check
from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

WEB = {
    "ID": "web1",
    "Name": "web",
    "Port": 8080,
    "Tags": ["v1"],
    "Meta": {"rack": "7"},
    "Check": {"CheckID": "alive", "TTL": "1h", "Status": "passing"},
}


# --- services of the node -------------------------------------------------------------------------------------------


async def test_the_agent_lists_its_own_services_and_checks(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    async with registry.client() as client, client.register("far", id="far1", node="other", port=1, ttl_s=30):
        services = (await http("GET", "/v1/agent/services")).json
        checks = (await http("GET", "/v1/agent/checks")).json
    assert list(services) == ["web1"], "those of other nodes are theirs"
    one = services["web1"]
    assert (one["Service"], one["Port"], one["Tags"], one["Meta"]) == ("web", 8080, ["v1"], {"rack": "7"})
    assert one["Address"] == "", "as it was given"
    assert (one["Datacenter"], one["Weights"]) == ("dc1", {"Passing": 1, "Warning": 1})
    assert list(checks) == ["alive"]
    assert (checks["alive"]["Status"], checks["alive"]["ServiceID"], checks["alive"]["Node"]) == (
        "passing",
        "web1",
        "home",
    )


async def test_a_service_has_a_hash_that_changes_with_it(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    first, again = await http("GET", "/v1/agent/service/web1"), await http("GET", "/v1/agent/service/web1")
    assert first.json["ContentHash"] == first.headers["X-Consul-ContentHash"] == again.json["ContentHash"]
    await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 8081})
    changed = await http("GET", "/v1/agent/service/web1")
    assert (changed.json["Port"], changed.json["ContentHash"] == first.json["ContentHash"]) == (8081, False)
    missing = await http("GET", "/v1/agent/service/web2")
    assert (missing.status, "web2" in missing.text) == (404, True)


@pytest.mark.parametrize(("report", "status"), [("pass", 200), ("warn", 429), ("fail", 503)])
async def test_a_services_health_is_its_status_code_too(http: Http, report: str, status: int) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    await http("PUT", f"/v1/agent/check/{report}/alive")
    word = {200: "passing", 429: "warning", 503: "critical"}[status]
    by_id = await http("GET", "/v1/agent/health/service/id/web1")
    assert (by_id.status, by_id.json["AggregatedStatus"]) == (status, word)
    assert (by_id.json["Service"]["ID"], by_id.json["Checks"][0]["Status"]) == ("web1", word)
    by_name = await http("GET", "/v1/agent/health/service/name/web")
    assert (by_name.status, [one["AggregatedStatus"] for one in by_name.json]) == (status, [word])
    for path in ("id/web1", "name/web"):
        text = await http("GET", f"/v1/agent/health/service/{path}?format=text")
        assert (text.status, text.text, text.headers["Content-Type"].partition(";")[0]) == (status, word, "text/plain")


async def test_the_worst_of_a_name_decides(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    sick = {"ID": "web2", "Name": "web", "Check": {"TTL": "1h", "Status": "warning"}}
    await http("PUT", "/v1/agent/service/register", sick)
    found = await http("GET", "/v1/agent/health/service/name/web")
    assert (found.status, sorted(one["AggregatedStatus"] for one in found.json)) == (429, ["passing", "warning"])


async def test_the_health_of_what_is_not_there_is_404_in_both_forms(http: Http) -> None:
    by_id = await http("GET", "/v1/agent/health/service/id/none")
    assert (by_id.status, by_id.json) == (404, {"AggregatedStatus": "critical", "Service": None, "Checks": None})
    by_name = await http("GET", "/v1/agent/health/service/name/none")
    assert (by_name.status, by_name.json) == (404, [])
    text = await http("GET", "/v1/agent/health/service/id/none?format=text")
    assert (text.status, "none" in text.text) == (404, True)


# --- maintenance ----------------------------------------------------------------------------------------------------


async def test_a_service_in_maintenance_is_out_with_the_reason_and_comes_back(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    assert (await http("PUT", "/v1/agent/service/maintenance/web1?enable=true&reason=new+disk")).status == 200
    assert (await http("GET", "/v1/health/service/web?passing")).json == []
    health = await http("GET", "/v1/agent/health/service/id/web1")
    assert (health.status, health.json["AggregatedStatus"]) == (503, "maintenance")
    told = (await http("GET", "/v1/agent/checks")).json["_service_maintenance:web1"]
    assert (told["Status"], told["Notes"]) == ("critical", "new disk")
    await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 8081})
    told = (await http("GET", "/v1/agent/checks")).json["_service_maintenance:web1"]
    assert told["Notes"] == "new disk", "a registration does not end it"
    assert (await http("PUT", "/v1/agent/service/maintenance/web1?enable=false")).status == 200
    assert [one["Service"]["Port"] for one in (await http("GET", "/v1/health/service/web?passing")).json] == [8081]


async def test_maintenance_leaves_the_rest_of_a_registration_and_its_owner_alone(
    http: Http, registry: Registry
) -> None:
    check = Check(name="self", kind="ttl", ttl_s=30, initial="passing")
    async with registry.client() as client, client.register("db", id="db1", port=5432, ttl_s=30, checks=(check,)):
        before = registry.catalogue.find("home", "db1")
        await http("PUT", "/v1/agent/service/maintenance/db1?enable=true")
        after = registry.catalogue.find("home", "db1")
        assert before is not None
        assert after is not None
        assert after.lease == before.lease != 0
        assert (after.registered.port, after.registered.checks) == (5432, (check,))
        assert after.seen.status == "maintenance"


@pytest.mark.parametrize(
    ("path", "status"), [("web1", 400), ("web1?enable=perhaps", 400), ("?enable=true", 400), ("none?enable=true", 404)]
)
async def test_maintenance_that_cannot_be_meant_is_refused(http: Http, path: str, status: int) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    assert (await http("PUT", f"/v1/agent/service/maintenance/{path}")).status == status
    assert (await http("GET", "/v1/agent/health/service/id/web1")).status == 200


# --- a cluster of one -----------------------------------------------------------------------------------------------


async def test_its_usage_counts_what_is_registered(http: Http) -> None:
    for number in range(3):
        await http("PUT", "/v1/agent/service/register", {"Name": f"web-{number % 2}", "ID": f"web-{number}"})
    await http("PUT", "/v1/catalog/register", {"Node": "other", "Address": "10.0.0.2"})
    told = (await http("GET", "/v1/operator/usage")).json
    assert (told["KnownLeader"], told["LastContact"]) == (True, 0)
    usage = told["Usage"]["dc1"]
    assert (usage["Nodes"], usage["Services"], usage["ServiceInstances"]) == (2, 2, 3)


async def test_the_agent_tells_its_version_as_it_does_in_self(http: Http) -> None:
    version = (await http("GET", "/v1/agent/version")).json
    itself = (await http("GET", "/v1/agent/self")).json
    assert version == {"SHA": "", "HumanVersion": itself["Config"]["Version"], "FIPS": ""}


async def test_it_is_a_cluster_of_one_and_says_so(http: Http) -> None:
    (member,) = (await http("GET", "/v1/agent/members")).json
    assert (member["Name"], member["Addr"], member["Status"]) == ("home", "127.0.0.1", 1)
    assert (await http("GET", "/v1/agent/members?wan")).json[0]["Name"] == "home.dc1"
    leader = (await http("GET", "/v1/status/leader")).json
    assert (await http("GET", "/v1/status/peers")).json == [leader]
    assert (await http("GET", "/v1/catalog/datacenters")).json == ["dc1"]
    (server,) = (await http("GET", "/v1/operator/raft/configuration")).json["Servers"]
    assert (server["Node"], server["Address"], server["Leader"], server["Voter"]) == ("home", leader, True, True)
    assert server["ID"] == (await http("GET", "/v1/agent/self")).json["Config"]["NodeID"]
    health = (await http("GET", "/v1/operator/autopilot/health")).json
    assert (health["Healthy"], health["FailureTolerance"]) == (True, 0)
    assert [(one["ID"], one["Healthy"], one["Leader"]) for one in health["Servers"]] == [(server["ID"], True, True)]
    itself = (await http("GET", "/v1/agent/self")).json
    assert itself["Member"] == member
    assert itself["Stats"]["consul"]["leader_addr"] == leader


async def test_the_registry_stands_in_its_catalogue_as_consuls_servers_do(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "web"})
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], "web": []}
    (row,) = (await http("GET", "/v1/catalog/service/consul")).json
    assert (row["Node"], row["ServiceID"], row["ServiceAddress"], row["ServicePort"]) == ("home", "consul", "", 8300)
    (entry,) = (await http("GET", "/v1/health/service/consul?passing")).json
    assert [check["CheckID"] for check in entry["Checks"]] == ["serfHealth"]
    assert list((await http("GET", "/v1/catalog/node/home")).json["Services"]) == ["consul", "web"]
    for path in ("node/home", "state/any", "state/passing"):
        (check,) = (await http("GET", f"/v1/health/{path}")).json
        assert (check["Node"], check["CheckID"], check["Status"]) == ("home", "serfHealth", "passing")
    assert list((await http("GET", "/v1/agent/services")).json) == ["web"], "it is no service of the agent's"
    assert (await http("GET", "/v1/agent/checks")).json == {}
    assert list(registry.catalogue.services) == ["web"], "and nobody else sees it"
    far = {"Node": "far", "Address": "10.0.0.9", "Service": {"Service": "consul"}}
    await http("PUT", "/v1/catalog/register", far)
    assert len((await http("GET", "/v1/health/service/consul?passing")).json) == 2
    await http("PUT", "/v1/agent/maintenance?enable=true")
    (entry,) = (await http("GET", "/v1/health/service/consul?passing")).json
    assert entry["Node"]["Node"] == "far"


async def test_who_registers_in_the_registrys_place_has_it(http: Http) -> None:
    told = {"CheckID": "serfHealth", "Status": "critical", "Output": "told"}
    at = {"Node": "home", "Address": "127.0.0.1"}
    await http("PUT", "/v1/catalog/register", {**at, "Service": {"Service": "consul", "Port": 1}, "Check": told})
    (entry,) = (await http("GET", "/v1/health/service/consul")).json
    assert entry["Service"]["Port"] == 1
    assert [(check["CheckID"], check["Output"]) for check in entry["Checks"]] == [("serfHealth", "told")]
    await http("PUT", "/v1/catalog/deregister", {**at, "ServiceID": "consul"})
    (entry,) = (await http("GET", "/v1/health/service/consul")).json
    assert entry["Service"]["Port"] == 8300


async def test_a_service_shows_no_more_than_it_has(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"Name": "foo"})
    assert (await http("GET", "/v1/agent/services")).json["foo"] == {
        "ID": "foo",
        "Service": "foo",
        "Tags": [],
        "Meta": {},
        "Port": 0,
        "Address": "",
        "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False,
        "Datacenter": "dc1",
    }


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/agent/leave", 501),
        ("/v1/agent/reload", 501),
        ("/v1/agent/join/10.0.0.1", 501),
        ("/v1/agent/force-leave/home", 400),
        ("/v1/agent/force-leave/other", 500),
    ],
)
async def test_what_has_no_meaning_here_is_refused_with_a_sentence(http: Http, path: str, status: int) -> None:
    reply = await http("PUT", path)
    assert (reply.status, len(reply.text) > 20) == (status, True)
    assert (await http("GET", "/readyz")).status == 200


async def test_metrics_come_in_consuls_shape_and_in_prometheus(http: Http, registry: Registry) -> None:
    await http("GET", "/v1/kv/none")
    found = (await http("GET", "/v1/agent/metrics")).json
    assert set(found) == {"Timestamp", "Gauges", "Points", "Counters", "Samples"}
    gauges = {one["Name"]: one["Value"] for one in found["Gauges"]}
    assert gauges["homeport_store_revision"] == registry.store.mvcc.revision
    (requests,) = (
        one for one in found["Counters"] if one["Labels"] == {"endpoint": "GET /v1/kv/{key}", "status": "404"}
    )
    assert (requests["Name"], requests["Count"]) == ("homeport_http_requests_total", 1)
    page = await http("GET", "/v1/agent/metrics?format=prometheus")
    assert "\nhomeport_store_revision " in page.text
    assert (await http("GET", "/v1/agent/metrics?format=xml")).status == 400


# --- the log --------------------------------------------------------------------------------------------------------


async def lines_of(http: Http, query: str, count: int, during: str) -> list[str]:
    """The first lines of a monitor, with `during` logged once it stands."""
    log = logging.getLogger("homeport.registry.test")
    async with (
        asyncio.timeout(30),
        http.session.get(URL(f"http://{http.at}/v1/agent/monitor{query}", encoded=True)) as response,
    ):
        assert response.status == 200
        lines = [(await response.content.readline()).decode()]
        await asyncio.to_thread(log.warning, "%s", during)
        log.info("too fine")
        log.error("%s", "last")
        lines += [(await response.content.readline()).decode() for _ in range(count - 1)]
    return lines


async def test_the_log_is_sent_line_by_line_as_it_is_written(http: Http, eventually: Eventually) -> None:
    handlers = len(logging.getLogger("homeport").handlers)
    first, second, third = await lines_of(http, "?loglevel=warn", 3, "disk is full")
    assert "WARN on" in first
    assert " [WARN]  homeport.registry.test: disk is full" in second
    assert " [ERROR] homeport.registry.test: last" in third
    await eventually(lambda: len(logging.getLogger("homeport").handlers) == handlers)


async def test_the_log_comes_as_json_too(http: Http) -> None:
    _, second = await lines_of(http, "?loglevel=warn&logjson", 2, "disk is full")
    line = json.loads(second)
    assert (line["@level"], line["@module"], line["@message"]) == ("warn", "homeport.registry.test", "disk is full")


async def test_a_level_that_there_is_not_is_refused(http: Http) -> None:
    reply = await http("GET", "/v1/agent/monitor?loglevel=loud")
    assert (reply.status, "loud" in reply.text) == (400, True)


async def test_a_closing_front_ends_a_monitor(http: Http) -> None:
    async with http.session.get(f"http://{http.at}/v1/agent/monitor") as response:
        await response.content.readline()
        async with asyncio.timeout(4):
            await http.front.close()
            assert await response.content.read() == b""
