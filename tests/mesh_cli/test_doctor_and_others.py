"""`register`, `explain`, `doctor`, `bench` and `completion`, against a registry in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from homeport.mesh.examination import clock
from tests.mesh_cli.apps import eventually
from tests.mesh_cli.conftest import Processes, Serving


def test_an_instance_registered_by_hand_stays_until_it_is_deregistered(homeport: Processes, serving: Serving) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        said = homeport.run("register", "db", "--port", port, "--id", "db-1", "--tag", "a", "--meta", "k=v", "--json")
        assert said.returncode == 0, said.stderr
        registered = json.loads(said.stdout)
        assert (registered["id"], registered["tags"], registered["meta"]) == ("db-1", ["a"], {"k": "v"})
        assert homeport.run("instances", "db").returncode == 0
        assert homeport.run("explain", "db").stdout.startswith("db-1 on ")
    gone = homeport.run("deregister", "db-1")
    assert (gone.returncode, gone.stdout) == (0, "db-1 is deregistered\n")
    again = homeport.run("deregister", "db-1")
    assert (again.returncode, again.stderr) == (1, "homeport: there is no instance 'db-1'\n")


def test_with_a_ttl_it_is_registered_for_as_long_as_the_command_runs(homeport: Processes, serving: Serving) -> None:
    process = homeport.start("register", "batch", "--port", "9000", "--ttl", "10", "--id", "b")
    assert homeport.line(process).startswith("b on node ")
    assert homeport.run("instances", "batch").returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert homeport.run("instances", "batch").returncode == 1


def test_explain_says_what_a_check_said(homeport: Processes, serving: Serving, unused_port: int) -> None:
    at = f"127.0.0.1:{unused_port}"
    homeport.run("register", "orders", "--port", str(unused_port), "--id", "o-1", "--check-tcp", at)
    said = homeport.run("explain", "orders", "o-1", "--json")
    assert said.returncode == 1
    [explained] = json.loads(said.stdout)
    assert explained["available"] is False
    assert explained["reasons"][0] == "out of rotation: critical"
    assert any("check tcp (tcp) is critical" in reason for reason in explained["reasons"])
    assert any("no lease" in reason for reason in explained["reasons"])


@pytest.mark.parametrize("command", ["explain", "instances"])
def test_a_misspelt_service_is_answered_with_the_one_that_is_there(
    homeport: Processes, serving: Serving, command: str
) -> None:
    homeport.run("register", "orders", "--port", "1")
    said = homeport.run(command, "ordres")
    assert said.returncode == 1
    assert "Did you mean 'orders'?" in said.stderr


def test_a_shell_completes_commands_options_and_services(homeport: Processes, serving: Serving) -> None:
    homeport.run("register", "orders", "--port", "1")

    def completed(words: str) -> list[str]:
        homeport.variables = {
            "_HOMEPORT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        found = homeport.run().stdout.split()
        homeport.variables = {}
        return [each.partition(",")[2] for each in found]

    assert completed("homeport inst") == ["instances"]
    assert "--json" in completed("homeport services --")
    # A shell waits for half a second and no longer, in which a busy machine may not get there.
    eventually(lambda: completed("homeport instances or") == ["orders"], "the service is completed")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_that_its_shell_takes(homeport: Processes, shell: str) -> None:
    script = homeport.quick("completion", shell)
    assert "_HOMEPORT_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=30)


def test_the_doctor_finds_a_well_registry_well(homeport: Processes, serving: Serving, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    args = ("doctor", "--http", serving.http, "--dns", serving.http, "--data-dir", str(tmp_path), "--json")
    said = homeport.run(*args)
    findings = {each["what"]: each for each in json.loads(said.stdout)}
    assert findings[f"registry at {serving.rpc}"]["verdict"] == "well"
    assert findings[f"HTTP API at {serving.http}"]["found"] == "ready"
    assert findings["clocks"]["verdict"] == "well"
    assert findings[f"data in {tmp_path}"]["verdict"] == "well"
    assert findings[f"DNS at {serving.http}"]["verdict"] == "warning"  # nothing speaks DNS there
    assert said.returncode == (1 if any(each["verdict"] == "wrong" for each in findings.values()) else 0)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "found"),
    [
        (0.9, 1.1, "well", "agree"),
        (-9.0, 2.0, "well", "agree"),  # ten seconds on the way, and stamped in between
        (4.5, 5.0, "warning", "-4 s off"),
        (-9.0, -3.0, "warning", "+4 s off"),
    ],
)
def test_a_clock_is_off_by_what_no_slow_answer_explains(before: float, after: float, verdict: str, found: str) -> None:
    (finding,) = clock("Thu, 01 Jan 1970 00:00:01 GMT", before, after)
    assert finding.verdict == verdict
    assert found in finding.found


def test_the_doctor_says_what_to_do(homeport: Processes, tmp_path: Path, unused_port: int) -> None:
    at = f"127.0.0.1:{unused_port}"
    tmp_path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = f"127.0.0.1:{silent.getsockname()[1]}"
        gone = f"unix:{tmp_path}/no-socket"
        where = ["--registry", f"{at},{gone}", "--http", at, "--dns", at, "--data-dir", str(tmp_path)]
        said = homeport.run("doctor", *where, "--json")
        assert said.returncode == 1
        findings = {each["what"]: each for each in json.loads(said.stdout)}
        assert "nobody listens there: start one" in findings[f"registry at {at}"]["advice"]
        assert "there is no socket" in findings[f"registry at {gone}"]["advice"]
        if os.name == "posix":
            assert f"chmod 700 {tmp_path}" in findings[f"data in {tmp_path}"]["advice"]
        said = homeport.run("doctor", "--registry", other, "--http", at, "--dns", at, "--json")
        findings = {each["what"]: each for each in json.loads(said.stdout)}
        assert "somebody else listens" in findings[f"registry at {other}"]["advice"]


def test_the_bench_measures_and_prints_a_table(homeport: Processes) -> None:
    rows = json.loads(homeport.run("bench", "--seconds", "0.5", "--json").stdout)
    assert len(rows) == 5
    assert all(row["per_second"] > 0 and row["p50_us"] <= row["p99_us"] for row in rows)
