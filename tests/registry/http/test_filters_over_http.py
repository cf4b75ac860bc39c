"""`?filter=` on every list that has it in Consul: the same language everywhere, over what each of them shows."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeport.registry.fronts.consul.table import TABLE
from tests.registry.http.conftest import Http

NODE = {"Node": "far", "Address": "10.9.9.9", "NodeMeta": {"rack": "r-1"}}
FILTERED = [row for row in TABLE if any(one.kind == "filter" for one in row.parameters)]


@pytest.fixture
async def site(http: Http) -> None:
    check = {"CheckID": "alive", "TTL": "1h", "Status": "passing"}
    web: dict[str, Any] = {
        "Name": "web",
        "ID": "web1",
        "Port": 80,
        "Tags": ["v1"],
        "Meta": {"a-b": "x"},
        "Check": check,
    }
    far = {**NODE, "Service": {"Service": "web", "ID": "web9", "Port": 90, "Tags": ["v2"]}}
    assert (await http("PUT", "/v1/agent/service/register", web)).status == 200
    assert (await http("PUT", "/v1/agent/service/register", {"Name": "db", "ID": "db1"})).status == 200
    assert (await http("PUT", "/v1/catalog/register", far)).status == 200


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("path", "expression", "found"),
    [
        ("/v1/agent/services", "Port == 80 and v1 in Tags", ["web1"]),
        ("/v1/agent/services", 'Meta["a-b"] != x', ["db1"]),
        ("/v1/agent/checks", "Status == passing", ["alive"]),
        ("/v1/agent/checks", "ServiceName == db", []),
        ("/v1/catalog/nodes", 'Meta.rack matches "^r-[0-9]$"', ["far"]),
        ("/v1/catalog/nodes", "rack not in Meta", ["home"]),
        ("/v1/catalog/services", "ServicePort > 80", None),
        ("/v1/catalog/services", "ServicePort == 90", ["web"]),
        ("/v1/catalog/services", "Node == home and ServiceTags is empty", ["consul", "db"]),
        ("/v1/catalog/service/web", "NodeMeta.rack == `r-1`", ["web9"]),
        ("/v1/catalog/service/web", 'ServiceKind == ""', ["web1", "web9"]),
        ("/v1/catalog/node/home", "Service == web", ["web1"]),
        ("/v1/catalog/node-services/home", "Service != web", ["consul", "db1"]),
        ("/v1/health/node/home", "Name contains check", ["alive"]),
        ("/v1/health/checks/web", "CheckID == alive", ["alive"]),
        ("/v1/health/service/web", "Service.Port == 90 or Node.Node == nowhere", ["web9"]),
        ("/v1/health/service/web", "Checks is empty", ["web9"]),
        ("/v1/health/service/web", "Checks.Status == passing", ["web1"]),
        ("/v1/health/service/web", 'Service.Kind != "connect-proxy" and Node.Meta.rack is not empty', None),
        ("/v1/health/state/any", "v1 in ServiceTags", ["alive"]),
        ("/v1/health/connect/web", "Service.Port == 90", []),
        ("/v1/health/ingress/web", "Service.Port == 90", []),
        ("/v1/catalog/connect/web", "ServicePort == 90", []),
    ],
)
async def test_rows_are_chosen_by_what_they_show(
    http: Http, path: str, expression: str, found: list[str] | None
) -> None:
    reply = await http("GET", f"{path}?filter={quote(expression)}")
    if found is None:
        assert (reply.status, "filter: column " in reply.text) == (400, True)
    else:
        assert reply.status == 200, reply.text
        assert sorted(_names(reply.json)) == found


def _names(shown: Any) -> list[str]:
    """What the rows of any of these answers are called."""
    if isinstance(shown, dict):
        shown = shown.get("Services", shown)
        if isinstance(shown, dict):
            return list(shown)
    keys = ("CheckID", "ServiceID", "Service", "Node", "ID")
    rows = [row["Service"] if isinstance(row.get("Service"), dict) else row for row in shown]
    if rows and "Weights" in rows[0]:
        return [row["ID"] for row in rows]
    return [next(row[key] for key in keys if key in row) for row in rows]


@pytest.mark.parametrize("row", FILTERED, ids=[row.path for row in FILTERED])
async def test_every_filter_is_refused_where_it_says_nothing(http: Http, row: Any) -> None:
    path = row.path.partition("{")[0] + ("home" if "{" in row.path else "")
    for expression, said in (("Nope == 1", "column 1: no field 'Nope'"), ("Nope ==", "column 8: expected a value")):
        reply = await http("GET", f"{path}?filter={quote(expression)}")
        assert (reply.status, said in reply.text) == (400, True), (path, reply.text)
    assert (await http("GET", f"{path}?filter=")).status == 200


@pytest.mark.usefixtures("site")
async def test_a_filtered_read_wakes_and_shows_the_new(http: Http) -> None:
    path = f"/v1/health/service/web?filter={quote('Service.Port == 70')}"
    first = await http("GET", path)
    assert first.json == []
    waiting = await http.blocked(f"{path}&index={first.index}")
    assert (await http("PUT", "/v1/agent/service/register", {"Name": "web", "ID": "new", "Port": 70})).status == 200
    assert [row["Service"]["ID"] for row in (await waiting).json] == ["new"]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("path", ["catalog/nodes", "catalog/service/web", "health/service/web", "health/state/any"])
async def test_nothing_comes_from_a_peer_for_there_are_none(http: Http, path: str) -> None:
    for query in ("peer=far", "peer=far&filter=Node+!%3D+x" if "health/service" not in path else "passing&peer=far"):
        assert (await http("GET", f"/v1/{path}?{query}")).json == [], query
    assert (await http("GET", f"/v1/{path}?peer=")).json != []
