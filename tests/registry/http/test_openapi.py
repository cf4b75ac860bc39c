"""The OpenAPI description is true: every endpoint it names is asked, and every answer is what it says.

The judge is a JSON Schema validator of others. An endpoint without a request here fails the first test.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import pytest

from homeport.registry.fronts.consul.table import TABLE

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http, Reply

WEB: Final = {
    "ID": "web1",
    "Name": "web",
    "Port": 8080,
    "Tags": ["v1"],
    "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 80}},
    "Check": {"CheckID": "alive", "TTL": "1h", "Status": "passing"},
}
FAR: Final = {
    "Node": "far",
    "Address": "192.0.2.7",
    "NodeMeta": {"os": "linux"},
    "Service": {"Service": "db", "Port": 5432},
    "Checks": [
        {"CheckID": "net", "Name": "net", "Status": "passing", "Definition": {"TCP": "192.0.2.7:22", "Interval": "5s"}},
        {"CheckID": "db-up", "ServiceID": "db", "Status": "warning", "Output": "slow"},
    ],
}
ENDLESS: Final = "GET /v1/agent/monitor"  # read in a test of its own
LAST: Final = "PUT /v1/snapshot"  # what it is given here is refused; restoring has tests of its own


@dataclass(frozen=True)
class Asked:
    """A request for an endpoint: what stands for its variable and its query, its body, and the status it must get."""

    variable: str = ""
    body: object = None
    status: int = 200
    more: tuple[str, ...] = field(default=())  # further queries that must be answered as the description says


# By "METHOD path" of the description. `{session}` and `{query}` stand for the IDs of those that are made first.
REQUESTS: Final[Mapping[str, tuple[Asked, ...]]] = {
    "GET /": (Asked(),),
    "GET /v1/agent/version": (Asked(),),
    "GET /v1/agent/self": (Asked(),),
    "PUT /v1/agent/service/register": (Asked(body=WEB), Asked(body={}, status=400)),
    "PUT /v1/agent/service/deregister/{service ID}": (Asked("none", status=404),),
    "GET /v1/agent/service/deregister/{service ID}": (Asked("none", status=404),),
    "PUT /v1/agent/check/register": (
        Asked(body={"Name": "disk", "TTL": "1h", "Status": "passing"}),
        Asked(body={"Name": "deep", "TTL": "1h", "Status": "passing", "ServiceID": "web1"}),
        Asked(body={"Name": "lost", "TTL": "1h", "ServiceID": "none"}, status=404),
    ),
    "PUT /v1/agent/check/deregister/{check ID}": (Asked("deep"), Asked("none", status=404)),
    "PUT /v1/agent/maintenance": (Asked("?enable=true&reason=why"), Asked("?enable=false")),
    "PUT /v1/agent/check/pass/{check ID}": (Asked("alive?note=well"), Asked("none", status=404)),
    "PUT /v1/agent/check/warn/{check ID}": (Asked("alive"),),
    "PUT /v1/agent/check/fail/{check ID}": (Asked("alive"),),
    "PUT /v1/agent/check/update/{check ID}": (Asked("alive", {"Status": "passing", "Output": "fine"}),),
    "GET /v1/agent/services": (Asked(),),
    "GET /v1/agent/service/{service ID}": (Asked("web1"), Asked("none", status=404)),
    "PUT /v1/agent/service/maintenance/{service ID}": (
        Asked("web1?enable=true"),
        Asked("web1?enable=false&reason=over"),
        Asked("web1", status=400),
    ),
    "GET /v1/agent/checks": (Asked(),),
    "GET /v1/agent/health/service/id/{service ID}": (Asked("web1", more=("format=text",)), Asked("none", status=404)),
    "GET /v1/agent/health/service/name/{service name}": (Asked("web", more=("format=text",)), Asked("no", status=404)),
    "GET /v1/agent/members": (Asked(more=("wan",)),),
    "PUT /v1/agent/force-leave/{node}": (Asked("other", status=500),),
    "GET /v1/agent/metrics": (Asked(more=("format=prometheus",)),),
    "GET /v1/catalog/services": (Asked(more=("stale", "consistent", "cached", "node-meta=os:linux")),),
    "GET /v1/catalog/datacenters": (Asked(),),
    "PUT /v1/catalog/register": (Asked(body=FAR), Asked(body={}, status=400)),
    "PUT /v1/catalog/deregister": (Asked(body={"Node": "gone"}), Asked(body={}, status=400)),
    "GET /v1/catalog/nodes": (Asked(more=("near=_agent", "node-meta=os:linux", "index=1&wait=1ms", "hash=")),),
    "GET /v1/catalog/service/{service name}": (Asked("db", more=("tag=x", "near=far")), Asked("none")),
    "GET /v1/catalog/connect/{service name}": (Asked("db"),),
    "GET /v1/catalog/gateway-services/{gateway}": (Asked("db"),),
    "GET /v1/catalog/node/{node}": (Asked("far"), Asked("home"), Asked("none")),
    "GET /v1/catalog/node-services/{node}": (Asked("far"), Asked("none")),
    "GET /v1/health/node/{node}": (Asked("far"), Asked("none")),
    "GET /v1/health/checks/{service name}": (Asked("db", more=("near=far",)), Asked("none")),
    "GET /v1/health/connect/{service name}": (Asked("db", more=("passing",)),),
    "GET /v1/health/ingress/{service name}": (Asked("db"),),
    "GET /v1/health/state/{state}": (Asked("any", more=("node-meta=os:linux",)), Asked("critical")),
    "GET /v1/health/service/{service name}": (Asked("web", more=("passing", "tag=v1&tag=v2")), Asked("none")),
    "GET /v1/kv/{key}": (
        Asked("held", more=("recurse", "keys", "keys&separator=/", "raw", "index=1&wait=1ms")),
        Asked("none", status=404),
    ),
    "PUT /v1/kv/{key}": (
        Asked("held?flags=7", b"value"),
        Asked("held?acquire={session}", b"value"),
        Asked("empty", b""),
        Asked("held?cas=1", b"other"),
        Asked("", b"x", status=400),
    ),
    "DELETE /v1/kv/{key}": (Asked("none"), Asked("none?recurse"), Asked("held?cas=1")),
    "PUT /v1/session/create": (Asked(body={"TTL": "1h"}), Asked(body={"Behavior": "dance"}, status=500)),
    "PUT /v1/session/destroy/{session}": (Asked("00000000-0000-4000-8000-000000000000"),),
    "GET /v1/session/info/{session}": (Asked("{session}"), Asked("00000000-0000-4000-8000-000000000000")),
    "GET /v1/session/node/{node}": (Asked("home"), Asked("none")),
    "GET /v1/session/list": (Asked(),),
    "PUT /v1/session/renew/{session}": (
        Asked("{session}"),
        Asked("00000000-0000-4000-8000-000000000000", status=404),
    ),
    "PUT /v1/txn": (
        Asked(body=[{"KV": {"Verb": "set", "Key": "t", "Value": "dg=="}}, {"KV": {"Verb": "get", "Key": "t"}}]),
        Asked(body=[{"KV": {"Verb": "get", "Key": "absent"}}], status=409),
        Asked(
            body=[
                {"Node": {"Verb": "get", "Node": {"Node": "far"}}},
                {"Service": {"Verb": "get", "Node": "far", "Service": {"ID": "db"}}},
                {"Check": {"Verb": "set", "Check": {"Node": "far", "CheckID": "net", "Status": "warning"}}},
            ]
        ),
    ),
    "GET /v1/status/leader": (Asked(),),
    "GET /v1/status/peers": (Asked(),),
    "PUT /v1/event/fire/{event name}": (Asked("deploy?service=web&tag=v1", b"now"), Asked("tick")),
    "GET /v1/event/list": (Asked(more=("name=deploy", "node=home", "service=web&tag=v1", "index=1&wait=1ms")),),
    "POST /v1/query": (Asked(body={"Name": "q", "Service": {"Service": "web"}}), Asked(body={}, status=400)),
    "GET /v1/query": (Asked(more=("index=1&wait=1ms",)),),
    "GET /v1/query/{query ID}": (Asked("{query}"), Asked("none", status=404)),
    "PUT /v1/query/{query ID}": (Asked("{query}", {"Name": "p", "Service": {"Service": "web"}}),),
    "DELETE /v1/query/{query ID}": (Asked("{query}"), Asked("none", status=404)),
    "GET /v1/query/{query ID or name}/execute": (Asked("{query}/execute", more=("near=_agent&limit=1",)),),
    "GET /v1/query/{query ID or name}/explain": (Asked("{query}/explain"), Asked("none/explain", status=404)),
    "GET /v1/coordinate/nodes": (Asked(),),
    "GET /v1/coordinate/node/{node}": (Asked("home"), Asked("none", status=404)),
    "GET /v1/coordinate/datacenters": (Asked(),),
    "GET /v1/operator/raft/configuration": (Asked(),),
    "GET /v1/operator/autopilot/health": (Asked(),),
    "GET /v1/operator/usage": (Asked(),),
    "GET /v1/snapshot": (Asked(),),
    LAST: (Asked(body=b"no snapshot", status=400),),
    "GET /v1/openapi.json": (Asked(),),
    "GET /healthz": (Asked(),),
    "GET /readyz": (Asked(),),
    "GET /metrics": (Asked(),),
    "GET /explain/{service name}": (Asked("web", more=("id=web",)), Asked("none", status=404)),
    "GET /sd/prometheus": (Asked(more=("service=web&tag=v1&passing", "filter=Service.Port%20%3D%3D%208080")),),
}


@pytest.fixture
async def document(http: Http) -> dict[str, Any]:
    found: dict[str, Any] = (await http("GET", "/v1/openapi.json")).json
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def check(document: dict[str, Any], name: str, operation: dict[str, Any], reply: Reply) -> None:
    """The reply is one that the operation describes."""
    described = operation["responses"].get(str(reply.status), operation["responses"]["default"])
    kind = reply.headers["Content-Type"].partition(";")[0]
    content = described["content"]
    assert kind in content, f"{name} answered {reply.status} as {kind}; described: {sorted(content)}"
    for header in described.get("headers", {}):
        assert header in reply.headers, (name, header)
    if kind == "application/json":
        schema = content[kind]["schema"]
        assert schema, f"{name}: an empty schema says nothing"
        validator(document, schema).validate(json.loads(reply.body))


def test_every_endpoint_that_is_described_is_asked_here() -> None:
    described = {row.name for row in TABLE if row.support != "refused"}
    assert described - {ENDLESS} == set(REQUESTS), "requests of this test and rows of the table differ"


async def test_every_answer_is_as_described(http: Http, document: dict[str, Any]) -> None:
    described = operations(document)
    assert set(described) == {*REQUESTS, ENDLESS}
    assert (await http("PUT", "/v1/agent/service/register", WEB)).status == 200
    session = (await http("PUT", "/v1/session/create", {"Name": "tester"})).json["ID"]
    prepared = (await http("POST", "/v1/query", {"Name": "first", "Service": {"Service": "web"}})).json["ID"]
    for name in sorted(
        REQUESTS, key=lambda name: (name == LAST, name.startswith("DELETE"), not name.startswith("PUT"))
    ):
        method, path = name.split(" ", 1)
        beginning = path.partition("{")[0]
        for asked in REQUESTS[name]:
            target = beginning + asked.variable.replace("{session}", session).replace("{query}", prepared)
            reply = await http(method, target, asked.body)
            assert reply.status == asked.status, (name, target, reply.text)
            check(document, f"{name} ({target})", described[name], reply)
            for query in asked.more:
                joined = f"{target}{'&' if '?' in target else '?'}{query}"
                check(document, f"{name} ({joined})", described[name], await http(method, joined, asked.body))


async def test_the_description_of_the_log_is_true(http: Http, document: dict[str, Any]) -> None:
    described = operations(document)[ENDLESS]["responses"]["200"]["content"]
    async with asyncio.timeout(30), http.session.get(f"http://{http.at}/v1/agent/monitor") as response:
        assert (response.status, list(described)) == (200, [response.content_type])


async def test_the_description_holds_together(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    described = operations(document)
    ids = [operation["operationId"] for operation in described.values()]
    assert len(ids) == len(set(ids))
    for name, operation in described.items():
        variables = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
        assert [f"{{{one}}}" for one in variables] == re.findall(r"\{[^}]*\}", name), name
    for schema in document["components"]["schemas"].values():
        validator(document, schema)
        jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(document)
    for reference in {part.split('"', 1)[0] for part in text.split('"$ref": "')[1:]}:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference


async def test_what_would_be_refused_is_not_described(document: dict[str, Any]) -> None:
    assert not [name for name in operations(document) if name.startswith("* ") or "/v1/acl" in name]
    asked = {one["name"] for operation in operations(document).values() for one in operation["parameters"]}
    assert "dc" in asked
    assert not asked & {"ns", "partition", "sg"}
