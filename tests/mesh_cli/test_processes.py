"""`serve`, `kv`, `services`, `instances` and `run` as real processes against a real registry."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mesh_cli.apps import DEADLINE_S, Run, alive, eventually, registered
from tests.ports import free_port

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

HURRY_S = 20  # well below the 30 s that a drain waits for requests in flight


def test_serve_says_where_it_listens_and_sigterm_ends_it_in_good_order(homeport: Processes, serving: Serving) -> None:
    with urllib.request.urlopen(f"http://{serving.http}/healthz", timeout=DEADLINE_S) as answer:
        assert answer.status == 200
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(DEADLINE_S) == 0


def test_an_address_that_is_taken_is_exit_code_1_and_named(homeport: Processes, serving: Serving) -> None:
    second = homeport.start("serve", "--memory", "--http", serving.http, "--rpc", "off")
    output, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert "address already in use" in output.lower()


def test_a_front_that_is_off_is_not_there(homeport: Processes) -> None:
    assert homeport.serve(http="off").http == "off"


def test_a_value_comes_back_byte_for_byte(homeport: Processes, serving: Serving) -> None:
    revision = int(homeport.run("kv", "put", "a/b", "-", stdin="two\nlines").stdout)
    assert homeport.run("kv", "get", "a/b").stdout == "two\nlines"
    entry = json.loads(homeport.run("kv", "get", "a/b", "--json").stdout)
    assert (entry["key"], entry["value"], entry["mod_revision"]) == ("a/b", "two\nlines", revision)


def test_a_key_that_is_not_there_is_exit_code_1(homeport: Processes, serving: Serving) -> None:
    got = homeport.run("kv", "get", "nothing")
    assert (got.returncode, got.stdout) == (1, "")
    assert homeport.run("kv", "delete", "nothing").returncode == 1


def test_a_write_that_expects_another_revision_is_exit_code_1_and_changes_nothing(
    homeport: Processes, serving: Serving
) -> None:
    assert homeport.run("kv", "put", "k", "first", "--cas", "0").returncode == 0
    refused = homeport.run("kv", "put", "k", "second", "--cas", "0")
    assert refused.returncode == 1
    assert refused.stderr.startswith("homeport: ")
    assert homeport.run("kv", "get", "k").stdout == "first"


def test_a_prefix_lists_and_deletes_what_starts_with_it(homeport: Processes, serving: Serving) -> None:
    for key in ("a/1", "a/2", "b/1"):
        homeport.run("kv", "put", key, key.upper())
    listed = json.loads(homeport.run("kv", "list", "a/", "--json").stdout)
    assert [(entry["key"], entry["value"]) for entry in listed] == [("a/1", "A/1"), ("a/2", "A/2")]
    table = homeport.run("kv", "list").stdout.splitlines()
    assert table[0].split() == ["key", "value", "revision"]
    assert [line.split()[0] for line in table[1:]] == ["a/1", "a/2", "b/1"]
    assert homeport.run("kv", "delete", "a/", "--prefix").stdout == "2\n"
    assert [entry["key"] for entry in json.loads(homeport.run("kv", "list", "--json").stdout)] == ["b/1"]


def test_a_service_without_instances_is_exit_code_1(homeport: Processes, serving: Serving) -> None:
    assert homeport.run("instances", "nobody").returncode == 1
    assert homeport.run("services").returncode == 0


def test_an_app_is_registered_at_its_inbound_while_it_is_well(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, "--check-path", "/", "--version", "v9", "--tag", "blue")
    _pid, proxy, inbound = run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    (instance,) = registered(homeport)
    assert f"{instance['address']}:{instance['port']}" == inbound
    assert (instance["version"], instance["tags"], instance["status"]) == ("v9", ["blue"], "passing")
    assert json.loads(homeport.run("services", "--json").stdout)["orders"] == ["blue"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
    with opener.open("http://orders/", timeout=DEADLINE_S) as answer:
        assert answer.read() == b"app here"


def test_sigterm_drains_then_stops_the_app_and_its_exit_code_is_ours(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport)
    pid, _proxy, inbound = run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    host, _, port = inbound.rpartition(":")
    with socket.create_connection((host, int(port))) as caller:  # whom the drain waits for
        caller.sendall(b"GET /never HTTP/1.1\r\nHost: orders\r\n\r\n")
        assert homeport.line(run.process) == "asked\n"
        run.process.send_signal(signal.SIGTERM)
        eventually(lambda: [each["state"] for each in registered(homeport)] == ["draining"], "draining")
        assert alive(pid), "the app was stopped before it was drained"
    assert run.process.wait(DEADLINE_S) == 7
    assert registered(homeport) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 128 + signal.SIGKILL), (signal.SIGTERM, 7)])
def test_an_app_that_exits_is_deregistered_at_once_and_its_exit_code_is_ours(
    homeport: Processes, serving: Serving, number: signal.Signals, code: int
) -> None:
    run = Run(homeport, "--ttl", "600")
    pid, _proxy, _inbound = run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)
    assert run.process.wait(DEADLINE_S) == code
    assert registered(homeport) == []


def test_a_second_signal_does_not_wait_for_requests_in_flight(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport)
    _pid, _proxy, inbound = run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    host, _, port = inbound.rpartition(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"GET /never HTTP/1.1\r\nHost: orders\r\n\r\n")
        assert homeport.line(run.process) == "asked\n"
        run.process.send_signal(signal.SIGTERM)
        eventually(lambda: [each["state"] for each in registered(homeport)] == ["draining"], "draining")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(HURRY_S) == 7


def test_an_app_that_never_gets_well_is_never_registered(homeport: Processes, serving: Serving) -> None:
    command = [sys.executable, "-c", "import time; print('ready 0 - -', flush=True); time.sleep(600)"]
    run = Run(homeport, command=command)
    run.ready()
    assert registered(homeport) == []
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(DEADLINE_S) == 128 + signal.SIGTERM


def test_an_app_runs_without_a_registry_and_registers_when_there_is_one(homeport: Processes) -> None:
    homeport.registry = f"127.0.0.1:{free_port()}"
    run = Run(homeport)
    run.ready()
    homeport.serve(rpc=homeport.registry)
    eventually(lambda: bool(registered(homeport)), "registered")


def test_a_program_that_is_not_there_is_exit_code_1(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, command=["./no-such-program"])
    output, _ = run.process.communicate(timeout=DEADLINE_S)
    assert run.process.returncode == 1
    assert "no-such-program" in output


def test_an_app_that_does_not_stop_is_killed_with_its_children(homeport: Processes, serving: Serving) -> None:
    stubborn = "trap '' TERM; sleep 600 & echo ready $! - -; wait; wait"
    run = Run(homeport, "--stop-timeout", "0.1", command=["sh", "-c", stubborn])
    child, _proxy, _inbound = run.ready()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(DEADLINE_S) == 128 + signal.SIGKILL
    eventually(lambda: not alive(child), "the child ended")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_an_app_does_not_outlive_a_run_that_is_killed(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport)
    pid, _proxy, _inbound = run.ready()
    run.process.kill()
    eventually(lambda: not alive(pid), "the app ended")


def test_a_sidecar_brings_calls_to_services_that_the_file_names(homeport: Processes, tmp_path: Path) -> None:
    database = http.server.HTTPServer(("127.0.0.1", 0), Greeting)
    threading.Thread(target=database.serve_forever, daemon=True).start()
    config = tmp_path / "homeport.toml"
    config.write_text(
        f'registry = "unix:{tmp_path}/none"\n'
        f'[[service]]\nname = "database"\nendpoints = ["127.0.0.1:{database.server_port}"]\n'
        '[[tcp]]\nlisten = "127.0.0.1:0"\nservice = "database"\n'
        '[sidecar]\noutbound = "127.0.0.1:0"\nadmin = "off"\n'
    )
    process = homeport.start("--config", str(config), "sidecar")
    words = homeport.line_with(process, "homeport: sidecar  outbound ").split()
    assert words[4:9] == ["inbound", "off", "admin", "off", "tcp:database"]
    with urllib.request.urlopen(f"http://{words[9]}/", timeout=DEADLINE_S) as answer:  # what it speaks is not looked at
        assert answer.read() == b"hello"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{words[3]}"}))
    with opener.open("http://database/", timeout=DEADLINE_S) as answer:
        assert answer.read() == b"hello"
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    database.shutdown()
    database.server_close()


def test_a_changed_file_takes_effect_and_a_wrong_one_does_not(homeport: Processes, tmp_path: Path) -> None:
    first, second = (http.server.HTTPServer(("127.0.0.1", 0), kind) for kind in (Greeting, Parting))
    for server in (first, second):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tmp_path / "homeport.toml"

    def write(port: int, more: str = "") -> None:
        beside = config.with_suffix(".new")
        beside.write_text(
            f'registry = "unix:{tmp_path}/none"\n'
            f'[[service]]\nname = "database"\nendpoints = ["127.0.0.1:{port}"]\n'
            f'[sidecar]\noutbound = "127.0.0.1:0"\nadmin = "off"\nstate-dir = "off"\n{more}'
        )
        beside.replace(config)

    write(first.server_port)
    process = homeport.start("--config", str(config), "sidecar")
    words = homeport.line_with(process, "homeport: sidecar").split()
    told: list[str] = []
    threading.Thread(target=lambda: told.extend(iter(lambda: homeport.line(process), "")), daemon=True).start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{words[3]}"}))

    def said() -> bytes:
        with opener.open("http://database/", timeout=DEADLINE_S) as answer:
            return bytes(answer.read())

    assert said() == b"hello"
    write(second.server_port)
    eventually(lambda: said() == b"bye!!", "the changed file took effect")
    write(first.server_port, "nonsense = 1\n")
    eventually(lambda: "has no key 'nonsense'" in "".join(told), "the mistake was told")
    assert said() == b"bye!!"
    write(first.server_port, "workers = 2\n")
    eventually(lambda: "workers needs a restart" in "".join(told), "what cannot change was told")
    eventually(lambda: said() == b"hello", "the rest took effect")
    count = "".join(told).count("was read again")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "".join(told).count("was read again") == count + 1, "SIGHUP read it again")
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    for server in (first, second):
        server.shutdown()
        server.server_close()


class Greeting(http.server.BaseHTTPRequestHandler):
    """Greets."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class says so
        """Say nothing."""


class Parting(Greeting):
    """Says goodbye."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"bye!!")
