"""Whatever is sent to register, it is carried out or refused with a reason: never a defect, never half of it."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http

PATHS = ("catalog/register", "catalog/deregister", "agent/service/register", "agent/check/register", "txn")
KEYS = (
    *("Node", "Address", "Service", "Check", "Checks", "NodeMeta", "TaggedAddresses", "ID", "Name", "CheckID", "TTL"),
    *("ServiceID", "Status", "Output", "Definition", "Interval", "HTTP", "Tags", "Meta", "Port", "Weights", "Passing"),
    *("Verb", "ModifyIndex", "SkipNodeUpdate", "EnableTagOverride", "Datacenter", "DeregisterCriticalServiceAfter"),
)
VALUES: tuple[Any, ...] = (
    *("", "a", "far", "home", "passing", "critical", "set", "delete", "cas", "get", "10s", "-1s", "9e9h", "dc1"),
    *(0, 1, -1, 2**63, 2**64, 1.5, True, None, "x" * 600, "\0", "\u2028", "a/b%2F", "_node_maintenance"),
    *([], {}, ["a"], {"a": "b"}, {"a": {"Address": "x", "Port": 99999}}),
)


def garbage(rng: random.Random, depth: int) -> Any:
    """Something that looks like a registration, more or less."""
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(VALUES)
    if kind < 0.4:
        return [garbage(rng, depth - 1) for _ in range(rng.randrange(3))]
    return {rng.choice(KEYS): garbage(rng, depth - 1) for _ in range(rng.randrange(1, 6))}


def likely(rng: random.Random) -> Any:
    """A right registration with something in it replaced."""
    one: dict[str, Any] = {
        "Node": "far",
        "Address": "10.0.0.1",
        "Service": {"ID": "a", "Service": "a", "Port": 1, "Weights": {"Passing": 1}},
        "Check": {"CheckID": "c", "ServiceID": "a", "Status": "passing", "Definition": {"Interval": "10s"}},
        "NodeMeta": {"a": "b"},
    }
    at = one
    while True:
        key = rng.choice([*at, *rng.sample(KEYS, 2)])
        if not isinstance(at.get(key), dict) or rng.random() < 0.3:
            at[key] = garbage(rng, 2)
            return one
        at = at[key]


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_is_refused_or_taken_and_breaks_nothing(http: Http, registry: Registry, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(250):
        path = rng.choice(PATHS)
        body = likely(rng) if rng.random() < 0.6 else garbage(rng, 3)
        if path == "txn" and rng.random() < 0.8:
            kind = rng.choice(["Node", "Service", "Check"])
            body = [{kind: {"Verb": rng.choice(["set", "cas", "delete", "get"]), "Node": "far", kind: body}}]
        before = registry.store.mvcc.revision
        reply = await http("PUT", f"/v1/{path}", json.dumps(body).encode())
        assert reply.status in (200, 400, 404, 409, 413, 500), (path, body, reply)
        assert "log says more" not in reply.text, (path, body)
        if reply.status != 200:
            assert registry.store.mvcc.revision == before, (path, body, reply.text)
    for path in ("catalog/nodes", "catalog/services", "health/state/any", "agent/checks", "agent/services"):
        assert (await http("GET", f"/v1/{path}")).status == 200, path
    for service in (await http("GET", "/v1/catalog/services")).json:
        if service:
            assert (await http("GET", f"/v1/health/service/{service.replace('%', '%25')}")).status in (200, 400)
    for node in (await http("GET", "/v1/catalog/nodes")).json:
        assert (await http("PUT", "/v1/catalog/deregister", {"Node": node["Node"]})).status == 200
    assert not [key for key in registry.store.mvcc.keys(b"", b"") if key[:2] in (b"c/", b"s/", b"h/", b"i/")]
