"""`homeport lock` over real processes: one command at a time, its token, its exit code, its end with the lock."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.mesh_cli.apps import DEADLINE_S

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

SAY = "import os, sys; print(os.environ['HOMEPORT_LOCK_KEY'], os.environ['HOMEPORT_LOCK_TOKEN'], flush=True); "
# Says its key and token once it can hear signals, then every signal it gets; leaves with 7 at SIGTERM.
STAY = (
    "import signal, sys\n"
    "signal.signal(signal.SIGHUP, lambda *_: print('hup', flush=True))\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + SAY + "\n"
    "while True: signal.pause()"
)
unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def test_the_command_finds_its_token_and_its_exit_code_is_ours(homeport: Processes, serving: Serving) -> None:
    tokens = []
    for _ in range(2):
        result = homeport.run("lock", "jobs/nightly", "--", sys.executable, "-c", SAY + "sys.exit(5)")
        assert (result.returncode, result.stderr) == (5, "")
        key, token = result.stdout.split()
        assert key == "jobs/nightly"
        tokens.append(int(token))
    assert 0 < tokens[0] < tokens[1]
    assert homeport.run("lock", "jobs/nightly", "--", "no-such-program").returncode == 1
    assert "jobs/nightly/" not in homeport.run("kv", "list", "jobs/").stdout
    assert homeport.run("lock", "--ttl", "0.1", "l", "--", "true").returncode == 2


@unix
def test_one_at_a_time_and_whoever_will_not_wait_is_told(homeport: Processes, serving: Serving) -> None:
    first = homeport.start("lock", "l", "--", sys.executable, "-c", STAY)
    token = int(homeport.line(first).split()[1])
    for wait in ("0", "0.3"):
        result = homeport.run("lock", "l", "--wait", wait, "--", sys.executable, "-c", SAY)
        assert (result.returncode, result.stdout, result.stderr) == (1, "", "homeport: 'l' is locked\n")
    second = homeport.start("lock", "l", "--", sys.executable, "-c", STAY)
    given_up = homeport.start("lock", "l", "--", "true")
    while len(json.loads(homeport.quick("kv", "list", "l/", "--json"))) < 3:
        pass  # until both wait; the test's own timeout bounds it
    first.send_signal(signal.SIGHUP)
    assert homeport.line(first) == "hup\n"
    given_up.send_signal(signal.SIGTERM)
    assert given_up.wait(DEADLINE_S) == 128 + signal.SIGTERM
    first.send_signal(signal.SIGTERM)
    assert first.wait(DEADLINE_S) == 7
    assert int(homeport.line(second).split()[1]) > token
    second.send_signal(signal.SIGTERM)
    assert second.wait(DEADLINE_S) == 7


@unix
def test_a_command_whose_lock_is_lost_is_stopped(homeport: Processes, serving: Serving) -> None:
    process = homeport.start("lock", "l", "--ttl", "1", "--", sys.executable, "-c", STAY)
    homeport.line(process)
    serving.process.send_signal(signal.SIGSTOP)
    try:
        assert "was lost: stopping" in homeport.line_with(process, "homeport: the lock 'l'")
        assert process.wait(DEADLINE_S) == 1
    finally:
        serving.process.send_signal(signal.SIGCONT)


@unix
def test_a_killed_holder_leaves_no_command_behind_and_another_gets_the_lock(
    homeport: Processes, serving: Serving
) -> None:
    process = homeport.start("lock", "l", "--ttl", "1", "--", sys.executable, "-c", STAY)
    homeport.line(process)
    process.kill()
    assert homeport.run("lock", "l", "--wait", "20", "--", "true").returncode == 0


def test_without_a_registry_it_says_so(homeport: Processes, unused_port: int) -> None:
    homeport.registry = f"127.0.0.1:{unused_port}"
    assert homeport.run("lock", "l", "--", "true").returncode == 3
