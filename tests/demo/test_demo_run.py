"""The demo itself, on real processes: nobody notices what breaks, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeport.mesh.demo.site import SERVICES

DEADLINE_S = 60

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the demo keeps its files; every process of it carries this path in its environment."""
    yield tmp_path
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "homeport.mesh.cli", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
    )


def processes_of(directory: Path) -> list[int]:
    """Every process of the demo that was started with this directory and has not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"TMPDIR={directory}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


def await_none(directory: Path) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while left := processes_of(directory):
        assert time.monotonic() < give_up, f"still running: {left}"


@linux_only
def test_no_user_notices_what_breaks_and_no_process_survives_a_killed_demo(directory: Path) -> None:
    demo = start(directory, "--seconds", "2", "--seed", "7", "--keep")
    assert demo.stdout is not None
    assert demo.stderr is not None
    counts = json.loads(demo.stdout.readline())
    print(counts)
    assert counts["failed"] == 0
    assert "error" not in counts
    assert counts["requests"] > 100
    assert counts["instances_killed"] >= 3
    assert (counts["registry_restarts"], counts["rolled"]) == (1, 1)
    assert counts["instances"] == sum(SERVICES.values())
    assert 0 < counts["p50_ms"] <= counts["p99_ms"]
    # --keep: everything still runs. A demo that is killed takes it all with it.
    assert len(processes_of(directory)) >= 2 * sum(SERVICES.values())
    demo.kill()
    demo.wait(DEADLINE_S)
    await_none(directory)
    demo.stdout.close()
    demo.stderr.close()


@linux_only
def test_a_demo_that_is_interrupted_leaves_neither_processes_nor_files(directory: Path) -> None:
    demo = start(directory)
    assert demo.stderr is not None
    for line in demo.stderr:
        if "instances of" in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 128 + signal.SIGINT
    assert processes_of(directory) == []
    assert list(directory.iterdir()) == []


@linux_only
def test_a_demo_that_does_not_end_in_time_fails_and_says_where_the_logs_are(directory: Path) -> None:
    hurried = "from homeport.mesh.demo import performance; performance.TOTAL_S_MAX = 0.5; "
    run = subprocess.run(
        [sys.executable, "-c", hurried + "from homeport.mesh.cli import main; main()", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | {"TMPDIR": str(directory)},
        check=False,
    )
    assert run.returncode == 1
    assert "did not end within" in json.loads(run.stdout)["error"]
    (logs,) = directory.iterdir()
    assert f"the logs are in {logs}" in run.stderr
    assert (logs / "registry.log").exists()
    assert processes_of(directory) == []
