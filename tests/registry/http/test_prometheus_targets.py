"""`/sd/prometheus`: every instance a target, labelled as Prometheus's Consul discovery labels it."""

from __future__ import annotations

import pytest

from homeport.registry import Registry
from tests.registry.http.conftest import Http


@pytest.fixture
async def site(registry: Registry, http: Http) -> None:
    async with registry.client() as client:
        for name, port, address in (("web", 80, "10.0.0.1"), ("db", 5432, "::1")):
            await client.register(name, port=port, id=f"{name}1", address=address, tags=("v1", name)).start()
    body = {"Name": "web", "ID": "web2", "Port": 81, "Tags": ["V1"], "Meta": {"scrape-path": "/m"}}
    assert (await http("PUT", "/v1/agent/service/register", body)).status == 200
    assert (await http("PUT", "/v1/agent/service/maintenance/web2?enable=true")).status == 200


@pytest.mark.usefixtures("site")
async def test_every_instance_is_a_target_with_the_labels_of_consul_s_discovery(http: Http) -> None:
    reply = await http("GET", "/sd/prometheus")
    assert reply.headers["Content-Type"] == "application/json"
    by_id = {group["labels"]["__meta_consul_service_id"]: group for group in reply.json}
    assert sorted(by_id) == ["db1", "web1", "web2"]
    assert by_id["db1"]["targets"] == ["[::1]:5432"]
    assert by_id["web1"]["targets"] == ["10.0.0.1:80"]
    labels = by_id["web2"]["labels"]
    assert labels["__meta_consul_service_metadata_scrape_path"] == "/m"
    assert (labels["__meta_consul_health"], labels["__meta_consul_tags"]) == ("critical", ",V1,")
    assert (labels["__meta_consul_node"], labels["__meta_consul_dc"]) == ("home", "dc1")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("service=web", ["web1", "web2"]),
        ("service=web&service=db&service=none&service=web", ["db1", "web1", "web2"]),
        ("tag=V1&tag=web", ["web1"]),
        ("passing", ["db1", "web1"]),
        ("filter=Service.Port%20%3D%3D%2081%20or%20db%20in%20Service.Tags", ["db1", "web2"]),
        ("filter=", ["db1", "web1", "web2"]),
    ],
)
async def test_targets_are_chosen_by_service_tag_health_and_filter(http: Http, query: str, ids: list[str]) -> None:
    reply = await http("GET", f"/sd/prometheus?{query}")
    assert sorted(group["labels"]["__meta_consul_service_id"] for group in reply.json) == ids


async def test_a_filter_that_is_none_is_a_400_with_its_column(http: Http) -> None:
    reply = await http("GET", "/sd/prometheus?filter=Service.Prt%20%3D%3D%201")
    assert (reply.status, reply.text[:38]) == (400, "filter: column 1: no field 'Prt'; allo")
