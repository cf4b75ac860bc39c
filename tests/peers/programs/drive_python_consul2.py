"""Drives python-consul2 against the address given: exits well and says so if all was as against Consul."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

consul: Any = importlib.import_module("consul")


def main(at: str) -> None:
    host, port = at.split(":")
    client = consul.Consul(host=host, port=int(port))
    first = client.session.create(name="first", ttl=10, lock_delay=0)
    second = client.session.create(name="second", behavior="delete", lock_delay=0)
    assert client.session.info(first)[1]["Name"] == "first"
    assert len(client.session.list()[1]) == len(client.session.node("home")[1]) == 2
    assert client.session.renew(first)["ID"] == first
    assert client.kv.put("lock", "1", acquire=first) is True
    assert client.kv.put("lock", "2", acquire=second) is False
    assert client.kv.get("lock")[1]["Session"] == first
    index, _ = client.kv.get("lock")
    destroy = threading.Timer(0.2, client.session.destroy, [first])
    destroy.start()
    _, found = client.kv.get("lock", index=index, wait="20s")
    destroy.join()
    assert "Session" not in found, found
    assert client.kv.put("lock", "2", acquire=second) is True
    client.session.destroy(second)
    assert client.kv.get("lock")[1] is None
    try:
        client.session.renew(first)
    except consul.NotFound:
        pass
    else:
        raise AssertionError("a session that is gone was renewed")
    try:
        client.kv.put("lock", "x", acquire=first)
    except consul.ConsulException as error:
        said = str(error)
    else:
        said = "a session that is gone locked a key"
    assert "invalid session" in said, said
    done = client.txn.put(
        [
            {"KV": {"Verb": "set", "Key": "a", "Value": "MQ=="}},
            {"KV": {"Verb": "get", "Key": "a"}},
        ]
    )
    assert [one["KV"]["Key"] for one in done["Results"]] == ["a", "a"], done
    try:
        client.txn.put([{"KV": {"Verb": "cas", "Key": "a", "Value": "Mg==", "Index": 1}}])
    except consul.ConsulException as error:
        said = str(error)
    else:
        said = "a stale write was taken"
    assert "index is stale" in said, said
    client.agent.service.register("web", service_id="w", check=consul.Check.ttl("30s"))
    assert client.agent.check.ttl_pass("service:w")
    assert len(client.health.service("web", passing=True)[1]) == 1


main(sys.argv[1])
print("all is well")
