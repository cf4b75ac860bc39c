"""HOMEPORT_TOKEN: who does not present a registry's token gets nothing of it, and every command presents it."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.mesh_cli.conftest import Processes


def test_a_registry_with_a_token_answers_those_who_present_it(homeport: Processes) -> None:
    homeport.variables["HOMEPORT_TOKEN"] = "open sesame"
    serving = homeport.serve()
    assert homeport.run("kv", "put", "key", "value").returncode == 0
    assert homeport.run("register", "orders", "--port", "1").returncode == 0
    assert "orders" in homeport.run("services").stdout
    for wrong in ({}, {"HOMEPORT_TOKEN": "open"}):
        del homeport.variables["HOMEPORT_TOKEN"]
        homeport.variables.update(wrong)
        refused = homeport.run("kv", "get", "key")
        assert refused.returncode != 0
        assert "value" not in refused.stdout
        assert "token" in refused.stderr
        homeport.variables["HOMEPORT_TOKEN"] = "open sesame"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{serving.http}/v1/kv/key", timeout=30)
    with caught.value as refusal:
        assert refusal.code == 403
    request = urllib.request.Request(f"http://{serving.http}/v1/kv/key?raw", headers={"X-Consul-Token": "open sesame"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.read() == b"value"


def test_a_sidecar_presents_the_token(homeport: Processes) -> None:
    homeport.variables["HOMEPORT_TOKEN"] = "open sesame"
    serving = homeport.serve()
    app = homeport.serve(rpc="off")  # something that answers HTTP
    homeport.registry = serving.rpc
    host, port = app.http.split(":")
    assert homeport.run("register", "orders", "--address", host, "--port", port).returncode == 0
    sidecar = homeport.start("sidecar", "--outbound", "127.0.0.1:0", "--admin", "off")
    at = homeport.line_with(sidecar, "homeport: sidecar").split("outbound ")[1].split()[0]
    request = urllib.request.Request(f"http://{at}/healthz", headers={"Host": "orders"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
