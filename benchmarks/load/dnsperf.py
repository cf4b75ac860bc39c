"""DNS load by dnsperf: so many questions in flight over UDP, with EDNS, for a given time."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import proc
from benchmarks.case import Turn
from benchmarks.load.driver import children_cpu_s
from benchmarks.servers import Cores, MeasurementError, affinity, environment

_GRACE_S = 20.0  # beyond the load itself: to start, and to wait for late answers


def missing() -> str:
    """Why there is no DNS load, or nothing."""
    return "" if shutil.which("dnsperf") else "dnsperf is not installed"


def dnsperf(port: int, questions: Path, *, cores: Cores, server: int, in_flight: int, duration_s: float) -> Turn:
    """Measure questions ("NAME TYPE" a line) in turn.

    Raises:
        MeasurementError: a question was lost, or answered with an error.
    """
    options: Sequence[str] = ["-q", str(in_flight), "-c", "8", "-T", "1", "-l", str(duration_s), "-e", "-t", "5"]
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(questions), *options]
    before, used_before, started_at = proc.cpu_s([server]), children_cpu_s(), time.perf_counter()
    with affinity(frozenset(cores.generators)):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=duration_s + _GRACE_S, env=environment()
        )
    wall_s = time.perf_counter() - started_at
    server_cpu_s = proc.cpu_s([server]) - before
    share = (children_cpu_s() - used_before) / wall_s
    completed = _number(r"Queries completed:\s+(\d+)", done.stdout)
    lost = _number(r"Queries lost:\s+(\d+)", done.stdout)
    good = _number(r"NOERROR (\d+)", done.stdout)
    if done.returncode or not completed:
        raise MeasurementError(f"dnsperf failed: {(done.stderr or done.stdout).strip()[-300:]}")
    if lost or good != completed:
        raise MeasurementError(f"of {completed:.0f} questions {lost:.0f} were lost and {completed - good:.0f} failed")
    figures = {
        "rate": _number(r"Queries per second:\s+([\d.]+)", done.stdout),
        "server_cpu": server_cpu_s / completed * 1e6,
        "latency": _number(r"Average Latency \(s\):\s+([\d.]+)", done.stdout) * 1e3,
    }
    return Turn(figures, server_cpu_s / wall_s, share)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0
