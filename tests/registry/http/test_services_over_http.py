"""Services and their checks as Consul's clients register, report and find them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from homeport.client.core.messages import Register, SetState
from homeport.client.core.model import TTL_S_MIN, Check, Instance
from homeport.registry import Registry
from homeport.registry.core.entries import Entry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http

WEB = {"ID": "web1", "Name": "web", "Address": "10.0.0.7", "Port": 8080}


def entry(registry: Registry, id_: str) -> Entry:
    found = registry.catalogue.find("home", id_)
    assert found is not None
    return found


async def checks(http: Http, service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http("GET", f"/v1/health/service/{service}")).json[0]["Checks"]
    return [check for check in found if check["ServiceID"]]  # without those of the node


async def test_a_registration_is_found_as_it_was_given(http: Http) -> None:
    given = {
        **WEB,
        "Tags": ["v1", "primary"],
        "Meta": {"rack": "7"},
        "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 80}},
        "Weights": {"Passing": 10, "Warning": 2},
        "EnableTagOverride": True,
        "Checks": [
            {"CheckID": "alive", "Name": "is it alive", "Notes": "ask ops", "TTL": "1m30s", "Status": "passing"},
            {"HTTP": "http://10.0.0.7:8080/health", "Interval": "15s", "Timeout": "500ms"},
        ],
    }
    assert (await http("PUT", "/v1/agent/service/register", given)).status == 200
    found = await http("GET", "/v1/health/service/web")
    (one,) = found.json
    assert one["Node"]["Node"] == "home"
    assert one["Node"]["Datacenter"] == "dc1"
    service = one["Service"]
    for field in ("ID", "Address", "Port", "Tags", "Meta", "TaggedAddresses", "Weights", "EnableTagOverride"):
        assert service[field] == given[field], field
    assert service["Service"] == "web"
    assert service["CreateIndex"] == service["ModifyIndex"] == found.index
    serf, alive, probe = one["Checks"]
    assert (serf["CheckID"], serf["Status"], serf["ServiceID"]) == ("serfHealth", "passing", "")
    assert (alive["CheckID"], alive["Name"], alive["Notes"]) == ("alive", "is it alive", "ask ops")
    assert (alive["Status"], alive["Type"]) == ("passing", "ttl")
    assert (probe["CheckID"], probe["Name"]) == ("service:web1:2", "Service 'web' check")
    assert (probe["Status"], probe["Interval"], probe["Timeout"]) == ("critical", "15s", "500ms")
    assert probe["ServiceID"] == "web1"
    assert probe["ServiceName"] == "web"


async def test_a_registration_is_an_instance_like_any_other(http: Http, registry: Registry) -> None:
    given = {**WEB, "Tags": ["v1"], "Check": {"TCP": "10.0.0.7:8080", "Interval": "100ms", "FailuresBeforeCritical": 3}}
    await http("PUT", "/v1/agent/service/register", given)
    async with registry.client() as client:
        (instance,) = await client.resolve("web", passing=False)
    assert (instance.address, instance.port, instance.tags, instance.node) == ("10.0.0.7", 8080, ("v1",), "home")
    (check,) = instance.checks
    assert (check.kind, check.address, check.interval_s, check.timeout_s) == ("tcp", "10.0.0.7:8080", 1.0, 10.0)
    assert (check.passing_after, check.critical_after, check.initial) == (1, 3, "critical")


async def test_a_ttl_too_short_to_be_kept_is_raised_to_the_shortest(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TTL": "100ms", "Status": "passing"}})
    (check,) = entry(registry, "web1").registered.checks
    assert check.ttl_s == TTL_S_MIN
    assert (await http("PUT", "/v1/agent/check/register", {"Name": "more", "TTL": "1ms"})).status == 200


async def test_an_instance_of_others_is_found_with_its_checks(http: Http, registry: Registry) -> None:
    async with (
        registry.client() as client,
        client.register("db", port=5432, ttl_s=30, checks=(Check(name="self", kind="ttl", ttl_s=30),)),
    ):
        (one,) = (await http("GET", "/v1/health/service/db")).json
        (_, check) = one["Checks"]
        assert check["CheckID"] == f"service:{one['Service']['ID']}:self"
        assert (await http("PUT", f"/v1/agent/check/pass/{check['CheckID']}")).status == 200
        assert len((await http("GET", "/v1/health/service/db?passing")).json) == 1


async def test_keys_of_a_registration_match_in_any_case_and_older_spelling(http: Http) -> None:
    body = {"name": "web", "id": "w", "PORT": 1, "enable_tag_override": True, "check": {"ttl": "5s", "checkid": "c"}}
    assert (await http("PUT", "/v1/agent/service/register", body)).status == 200
    (one,) = (await http("GET", "/v1/health/service/web")).json
    assert one["Service"]["EnableTagOverride"] is True
    assert one["Checks"][1]["CheckID"] == "c"


async def test_nulls_and_numbers_of_nanoseconds_are_taken_as_go_sends_them(http: Http, registry: Registry) -> None:
    body = {"Name": "web", "ID": None, "Tags": None, "Meta": None, "Checks": None, "Check": {"TTL": 2_000_000_000}}
    assert (await http("PUT", "/v1/agent/service/register", body)).status == 200
    assert entry(registry, "web").registered.checks[0].ttl_s == 2.0


async def test_an_identical_registration_changes_nothing(http: Http, registry: Registry) -> None:
    body = {**WEB, "Tags": ["a"], "Check": {"TTL": "10s", "Status": "passing"}}
    await http("PUT", "/v1/agent/service/register", body)
    revision = registry.store.mvcc.revision
    await http("PUT", "/v1/agent/service/register", body)
    assert registry.store.mvcc.revision == revision
    await http("PUT", "/v1/agent/service/register", {**body, "Tags": ["b"]})
    assert registry.store.mvcc.revision == revision + 1


async def test_registering_again_keeps_the_state_that_was_set(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    async with registry.client() as client:
        await client.call(SetState("web1", "maintenance"))
    await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 8081})
    (check,) = await checks(http, "web")
    assert (check["CheckID"], check["Status"]) == ("_service_maintenance:web1", "critical")
    assert (await http("GET", "/v1/health/service/web?passing")).json == []


async def test_a_drained_service_looks_critical_to_those_who_read_checks(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    async with registry.client() as client:
        await client.call(SetState("web1", "draining"))
    assert [check["Status"] for check in await checks(http, "web")] == ["critical"]
    assert (await http("GET", "/v1/health/service/web?passing")).json == []


async def test_an_id_moves_to_the_service_it_is_registered_under_last(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    await http("PUT", "/v1/agent/service/register", {**WEB, "Name": "shop"})
    assert (await http("GET", "/v1/health/service/web")).json == []
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], "shop": []}


@pytest.mark.parametrize(("verb", "status"), [("pass", "passing"), ("warn", "warning"), ("fail", "critical")])
async def test_a_ttl_check_has_the_status_it_reports_with_its_note(http: Http, verb: str, status: str) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TTL": "10s"}})
    (check,) = await checks(http, "web")
    assert check["Status"] == "critical"
    assert (await http("PUT", f"/v1/agent/check/{verb}/service:web1?note=all%20good+now")).status == 200
    (check,) = await checks(http, "web")
    assert (check["Status"], check["Output"]) == (status, "all good now")
    report = {"Status": "passing", "Output": "by body"}
    assert (await http("PUT", "/v1/agent/check/update/service:web1", report)).status == 200
    (check,) = await checks(http, "web")
    assert (check["Status"], check["Output"]) == ("passing", "by body")


async def test_passing_leaves_out_warnings(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TTL": "10s", "Status": "warning"}})
    assert len((await http("GET", "/v1/health/service/web")).json) == 1
    assert (await http("GET", "/v1/health/service/web?passing")).json == []
    assert len((await http("GET", "/v1/health/service/web?passing=false")).json) == 1


async def test_all_tags_given_must_be_there_whatever_their_case(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "ID": "1", "Tags": ["Blue", "eu"]})
    await http("PUT", "/v1/agent/service/register", {**WEB, "ID": "2", "Tags": ["blue"]})

    async def ids(query: str) -> list[str]:
        return [one["Service"]["ID"] for one in (await http("GET", f"/v1/health/service/web?{query}")).json]

    assert await ids("tag=blue") == ["1", "2"]
    assert await ids("tag=blue&tag=EU") == ["1"]
    assert await ids("tag=red") == []


async def test_answers_are_encoded_once_per_change_however_many_shapes_are_asked_for(
    http: Http, registry: Registry
) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    service = registry.catalogue.services["web"]
    await http("GET", "/v1/health/service/web")
    (kept,) = service.answers.values()
    await http("GET", "/v1/health/service/web")
    assert next(iter(service.answers.values())) is kept
    for number in range(100):
        assert (await http("GET", f"/v1/health/service/web?tag={number}")).json == []
    assert len(service.answers) <= 64


async def test_the_list_of_services_is_encoded_once_per_change_and_never_out_of_date(http: Http) -> None:
    for number in range(3):
        await http("PUT", "/v1/agent/service/register", {**WEB, "Tags": [str(number)]})
        for _ in range(2):
            assert (await http("GET", "/v1/catalog/services")).json == {"consul": [], "web": [str(number)]}
    await http("PUT", "/v1/agent/service/deregister/web1")
    assert (await http("GET", "/v1/catalog/services")).json == {"consul": []}


async def test_what_others_wrote_in_our_place_harms_nobody(http: Http, registry: Registry) -> None:
    junk = Instance(service="odd", id="odd1", port=1, extra={"consul": b"\xc1 not ours"})
    async with registry.client() as client:
        await client.call(Register(junk))
    (one,) = (await http("GET", "/v1/health/service/odd")).json
    assert one["Service"]["ID"] == "odd1"
    assert (await http("PUT", "/v1/agent/service/deregister/odd1")).status == 200


async def test_a_missing_service_is_an_empty_list_with_an_index(http: Http) -> None:
    missing = await http("GET", "/v1/health/service/none")
    assert (missing.status, missing.json) == (200, [])
    assert missing.index >= 1


async def test_a_vanished_service_has_the_index_of_its_end(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/agent/service/register", WEB)
    await http("PUT", "/v1/agent/service/deregister/web1")
    end = registry.store.mvcc.revision
    await http("PUT", "/v1/kv/other", b"")
    gone = await http("GET", "/v1/health/service/web")
    assert (gone.json, gone.index) == ([], end)


async def test_deregistering_removes_and_an_unknown_id_is_404(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TTL": "10s"}})
    assert (await http("PUT", "/v1/agent/service/deregister/web1")).status == 200
    assert (await http("GET", "/v1/health/service/web")).json == []
    assert (await http("PUT", "/v1/agent/service/deregister/web1")).status == 404
    assert (await http("PUT", "/v1/agent/check/pass/service:web1")).status == 404
    await http("PUT", "/v1/agent/service/register", WEB)
    assert (await http("GET", "/v1/agent/service/deregister/web1")).status == 200  # as clients of old do


async def test_ids_may_hold_slashes_and_any_letters(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {"ID": "a/b é", "Name": "x/y", "Check": {"TTL": "10s"}})
    assert (await http("PUT", "/v1/agent/check/pass/service:a/b%20%C3%A9")).status == 200
    assert len((await http("GET", "/v1/health/service/x/y?passing")).json) == 1
    assert (await http("PUT", "/v1/agent/service/deregister/a%2Fb%20%C3%A9")).status == 200


async def test_a_check_id_belongs_to_one_service(http: Http) -> None:
    check = {"CheckID": "mine", "TTL": "10s"}
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": check})
    assert (await http("PUT", "/v1/agent/service/register", {"Name": "thief", "Check": check})).status == 400
    assert (await http("PUT", "/v1/agent/service/register", {**WEB, "Port": 1, "Check": check})).status == 200
    await http("PUT", "/v1/agent/service/register", WEB)
    assert (await http("PUT", "/v1/agent/service/register", {"Name": "heir", "Check": check})).status == 200


async def test_checks_of_services_from_before_the_front_opened_are_known(http: Http, registry: Registry) -> None:
    # What another front of this registry took in, this one knows from its first request on.
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TTL": "10s"}})
    at = (await registry.serve(http="127.0.0.1:0")).http
    async with http.session.put(f"http://{at}/v1/agent/check/pass/service:web1") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "Missing service name"),
        ({"Name": ""}, "Missing service name"),
        ({"Name": "x", "Port": "80"}, "$.Port"),
        ({"Name": "x", "Port": 65_536}, "65535"),
        ({"Name": "x", "Tags": "a"}, "$.Tags"),
        ({"Name": "x", "Weights": {"Passing": 0}}, "Weights"),
        ({"Name": "x", "Kind": "connect-proxy"}, "Kind"),
        ({"Name": "x", "Connect": {"SidecarService": {"Port": 1}}}, "Connect"),
        ({"Name": "x", "Namespace": "team"}, "Namespace"),
        ({"Name": "x", "SocketPath": "/s"}, "SocketPath"),
        ({"Name": "x", "Check": {"Name": "nothing to do"}}, "one of TTL, HTTP, TCP, GRPC"),
        ({"Name": "x", "Check": {"TTL": "5s", "TCP": "a:1"}}, "TTL and TCP"),
        ({"Name": "x", "Check": {"TTL": "5"}}, "TTL"),
        ({"Name": "x", "Check": {"TTL": "-1s"}}, "ttl_s"),
        ({"Name": "x", "Check": {"TTL": "5s", "Status": "fine"}}, "Status"),
        ({"Name": "x", "Check": {"HTTP": "http://a/"}}, "Interval"),
        ({"Name": "x", "Check": {"HTTP": "ftp://a/", "Interval": "5s"}}, "http://"),
        ({"Name": "x", "Check": {"TCP": "a", "Interval": "5s"}}, "host:port"),
        ({"Name": "x", "Check": {"Args": ["rm"], "Interval": "5s"}}, "Args"),
        ({"Name": "x", "Check": {"Script": "rm", "Interval": "5s"}}, "Script"),
        ({"Name": "x", "Check": {"DockerContainerID": "f", "Interval": "5s"}}, "DockerContainerID"),
        ({"Name": "x", "Checks": [{"CheckID": "c", "TTL": "5s"}, {"CheckID": "c", "TTL": "5s"}]}, "twice"),
        (
            {
                "Name": "x",
                "Check": {"TCP": "a:1", "Interval": "5s", "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 2},
            },
            "FailuresBeforeWarning",
        ),
        ([], "object"),
        (b"{not json", "decode failed"),
        (b"", "decode failed"),
        (b"[" * 100_000, "decode failed"),
    ],
)
async def test_what_cannot_be_registered_is_400_and_says_what(
    http: Http, registry: Registry, body: object, says: str
) -> None:
    revision = registry.store.mvcc.revision
    reply = await http("PUT", "/v1/agent/service/register", body)
    assert reply.status == 400, reply
    assert says in reply.text
    assert registry.store.mvcc.revision == revision


async def test_a_check_that_is_probed_is_not_reported(http: Http) -> None:
    await http("PUT", "/v1/agent/service/register", {**WEB, "Check": {"TCP": "127.0.0.1:1", "Interval": "1h"}})
    assert (await http("PUT", "/v1/agent/check/pass/service:web1")).status == 400
    assert (await http("PUT", "/v1/agent/check/update/service:web1", {"Status": "great"})).status == 400
    assert (await http("PUT", "/v1/agent/check/pass/")).status == 400


async def test_instances_of_other_nodes_are_shown_under_their_node(http: Http, registry: Registry) -> None:
    async with registry.client() as client:
        await client.call(Register(Instance(service="db", id="db1", node="far", address="10.1.1.1", port=1)))
    (one,) = (await http("GET", "/v1/health/service/db")).json
    assert (one["Node"]["Node"], one["Node"]["Address"]) == ("far", "10.1.1.1")
    assert (await http("PUT", "/v1/agent/service/deregister/db1")).status == 404
