"""`homeport routes`, and routes from files, over real processes."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.mesh_cli.conftest import DEADLINE_S, Processes

GOOD = '{"routes": [{"name": "all", "fault": {"abort_status": 501}}]}'
GOOD_TOML = '[[routes]]\nname = "all"\nfault = { abort_status = 501 }\n'
BAD = '{"routes": [{"fault": {"abort_status": 200}}]}'
REASON = "fault.abort_status is 200; allowed: 400 to 599"


@pytest.mark.parametrize(("name", "text"), [("a.json", GOOD), ("a.toml", GOOD_TOML)])
def test_check_says_yes_to_a_document(homeport: Processes, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = homeport.run("routes", "check", str(tmp_path / name))
    assert (found.returncode, found.stdout) == (0, f"{tmp_path / name}: 1 routes, without settings\n")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("a.json", BAD, REASON), ("a.toml", "[[", "at end of document"), ("a.json", "\xff", "")],
)
def test_check_says_no_and_why(homeport: Processes, tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text, "latin-1")
    found = homeport.run("routes", "check", str(tmp_path / name))
    assert found.returncode == 1
    assert reason in found.stderr
    assert "Traceback" not in found.stderr


def test_put_validates_get_shows_and_delete_ends(homeport: Processes) -> None:
    homeport.serve()
    assert homeport.run("routes", "get", "orders").returncode == 1
    refused = homeport.run("routes", "put", "orders", "-", stdin=BAD)
    assert refused.returncode == 2
    assert REASON in refused.stderr
    assert homeport.run("routes", "get", "orders").returncode == 1
    put = homeport.run("routes", "put", "Orders", "-", stdin=GOOD)
    assert put.returncode == 0
    assert homeport.run("routes", "put", "orders", "-", "--cas", "0", stdin=GOOD).returncode == 1
    assert json.loads(homeport.run("routes", "get", "orders").stdout) == json.loads(GOOD)
    assert homeport.run("kv", "get", "homeport/routes/orders").returncode == 0
    assert homeport.run("routes", "delete", "orders").returncode == 0
    assert homeport.run("routes", "delete", "orders").returncode == 1


@pytest.mark.parametrize("where", ["option", "configuration"])
def test_a_sidecar_has_routes_from_files(homeport: Processes, tmp_path: Path, where: str) -> None:
    config = tmp_path / "homeport.toml"
    text = f'registry = "unix:{tmp_path}/none"\n[sidecar]\noutbound = "127.0.0.1:0"\nadmin = "off"\n'
    args = []
    if where == "option":
        (tmp_path / "orders.toml").write_text(GOOD_TOML)
        args = ["--routes", f"orders={tmp_path / 'orders.toml'}"]
    else:
        text += '[[routing]]\nservice = "orders"\n' + GOOD_TOML.replace("[[routes]]", "[[routing.routes]]")
    config.write_text(text)
    process = homeport.start("--config", str(config), "sidecar", *args)
    address = homeport.line_with(process, "homeport: sidecar").split()[3]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{address}"}))
    with pytest.raises(urllib.error.HTTPError) as answer:
        opener.open("http://orders/", timeout=DEADLINE_S)
    assert answer.value.code == 501
    answer.value.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
