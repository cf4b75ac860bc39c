"""`homeport watch` over real processes: a line for each change, a command for each, a table on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.mesh_cli.apps import DEADLINE_S
from tests.mesh_cli.conftest import HOMEPORT
from tests.mesh_cli.test_render import put, register

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving


def test_a_pipe_gets_all_instances_at_first_and_after_each_change(homeport: Processes, serving: Serving) -> None:
    process = homeport.start("watch", "web", "--passing")
    assert json.loads(homeport.line(process)) == []
    register(serving, "web1", 80)
    assert [one["id"] for one in json.loads(homeport.line(process))] == ["web1"]
    register(serving, "web2", 81)
    assert [one["port"] for one in json.loads(homeport.line(process))] == [80, 81]
    put(serving, "/v1/agent/service/maintenance/web1?enable=true")
    assert [one["id"] for one in json.loads(homeport.line(process))] == ["web2"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_a_command_gets_them_on_its_standard_input_one_run_after_the_other(
    homeport: Processes, serving: Serving
) -> None:
    reader = "import json, sys; print([one['id'] for one in json.load(sys.stdin)], flush=True); sys.exit(3)"
    process = homeport.start("watch", "web", "--", sys.executable, "-c", reader)
    assert homeport.line(process) == "[]\n"
    assert "exit code 3" in homeport.line(process)
    register(serving, "web1", 80)
    assert homeport.line(process) == "['web1']\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_a_command_that_does_not_read_hurts_nobody(homeport: Processes, serving: Serving) -> None:
    process = homeport.start("watch", "web", "--", sys.executable, "-c", "print('ran', flush=True)")
    assert homeport.line(process) == "ran\n"
    register(serving, "web1", 80)
    assert homeport.line(process) == "ran\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_a_terminal_shows_a_table_in_place(homeport: Processes, serving: Serving) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HOMEPORT, "watch", "web"], stdin=theirs, stdout=theirs, stderr=theirs, env={**homeport.env, "COLUMNS": "120"}
    )
    os.close(theirs)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        seen = b""
        while b"0 instances" not in seen:
            seen += os.read(ours, 4096)
        register(serving, "web1", 80)
        while not (b"1 instance" in seen and b"passing" in seen):
            seen += os.read(ours, 4096)
        assert b"\x1b[1A" in seen  # the cursor went up, to draw over what was there
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        watchdog.cancel()
        os.close(ours)
    assert process.returncode == 0
