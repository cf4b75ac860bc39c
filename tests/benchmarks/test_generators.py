"""Generators: a process each, told apart from one another, and never left behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load.generators import Generators
from benchmarks.load.plan import FanOut, OpenLoop, Outcome, Plan
from benchmarks.servers import MeasurementError

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATIENCE_S = 30.0


@pytest.fixture
def generators(tmp_path: Path) -> Iterator[Generators]:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with Generators(cores, tmp_path / "generators.log") as started:
        yield started


@pytest.fixture
def port() -> Iterator[int]:
    """Somebody who answers every request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(ConnectionError):
                while connection.recv(65_536):
                    connection.sendall(ANSWER)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _asks(port: int, duration_s: float = 0.05) -> OpenLoop:
    return OpenLoop(port=port, rate=100, connections=1, duration_s=duration_s, host="orders")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_each_load_is_a_new_process_on_its_core_with_cpu_seconds_of_its_own(generators: Generators, port: int) -> None:
    core = generators.cores[-1]
    pids = set()
    for _ in range(2):
        generator = generators.start(_asks(port), core)
        try:
            generator.wait_ready()
            (pid,) = _children(generators.pid)
            pids.add(pid)
            assert os.sched_getaffinity(pid) == {core}
            generator.go()
            outcome = generator.outcome(Outcome, PATIENCE_S)
        finally:
            generator.kill()
        assert outcome.operations == 5
        assert 0 <= outcome.cpu_s < outcome.wall_s, "what its parent has used is not counted"
    assert len(pids) == 2


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (_asks(1), "ConnectionRefusedError"),
        (FanOut(port=1, system="rpc", connections=2, watches=3, puts=1), "AssertionError: as many watches"),
    ],
    ids=["refused", "a defect"],
)
def test_a_generator_that_fails_says_why_and_the_next_one_starts(
    generators: Generators, port: int, plan: Plan, why: str
) -> None:
    failing = generators.start(plan, generators.cores[0])
    with pytest.raises(MeasurementError, match=f"a load generator failed: {why}"):
        failing.wait_ready()
    failing.kill()
    standing = generators.start(_asks(port), generators.cores[0])
    standing.wait_ready()
    standing.kill()


def test_a_generator_that_is_killed_is_told_of(generators: Generators, port: int) -> None:
    generator = generators.start(_asks(port, duration_s=PATIENCE_S), generators.cores[0])
    try:
        generator.wait_ready()
        (pid,) = _children(generators.pid)
        generator.go()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(MeasurementError, match="without a word"):
            generator.outcome(Outcome, PATIENCE_S)
    finally:
        generator.kill()


def test_a_generator_that_does_not_end_in_time_is_no_measurement_and_is_gone(generators: Generators, port: int) -> None:
    generator = generators.start(_asks(port, duration_s=PATIENCE_S), generators.cores[0])
    generator.wait_ready()
    (pid,) = _children(generators.pid)
    watched = os.pidfd_open(pid)
    generator.go()
    with pytest.raises(MeasurementError, match="did not end within"):
        generator.outcome(Outcome, 0.01)
    generator.kill()
    assert select.select([watched], (), (), 0)[0]
    os.close(watched)


def test_no_generator_is_started_by_what_has_ended(generators: Generators, port: int) -> None:
    generators.start(_asks(port), generators.cores[0]).kill()
    os.kill(generators.pid, signal.SIGKILL)
    watched = os.pidfd_open(generators.pid)
    assert select.select([watched], (), (), PATIENCE_S)[0]
    os.close(watched)
    with pytest.raises(MeasurementError, match="no load generator was started"):
        generators.start(_asks(port), generators.cores[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_generators_go_with_whoever_drives_them(root: Path, tmp_path: Path, port: int, number: signal.Signals) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from benchmarks.__main__ import _stop\n"
        "from benchmarks.load.generators import Generators\n"
        "from benchmarks.load.plan import OpenLoop\n"
        "signal.signal(signal.SIGTERM, _stop)\n"
        f"plan = OpenLoop(port={port}, rate=100, connections=1, duration_s=600, host='orders')\n"
        f"with Generators((min(os.sched_getaffinity(0)),), pathlib.Path({str(tmp_path / 'log')!r})) as generators:\n"
        "    generator = generators.start(plan, generators.cores[0])\n"
        "    generator.wait_ready()\n"
        "    generator.go()\n"
        "    print(generators.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as runner:
        assert runner.stdout is not None
        parent = int(runner.stdout.readline())
        watched = [os.pidfd_open(pid) for pid in (parent, *_children(parent))]
        assert len(watched) == 2
        runner.send_signal(number)
        for each in watched:
            assert select.select([each], (), (), PATIENCE_S)[0]
            os.close(each)
