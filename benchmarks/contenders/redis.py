"""Redis: no registry, but the least that a network server can do for a lookup, measured by its own generator."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from benchmarks import proc
from benchmarks.case import Turn
from benchmarks.servers import MeasurementError, Server, accepts, affinity, environment, free_port
from benchmarks.stage import Stage

ABOUT: Final = "Redis GET by redis-benchmark: the ceiling; not durable, no instances, no health"
_REQUESTS: Final = 100_000  # at once; repeated until a turn's time is over
_PATIENCE_S: Final = 60.0
# test, requests a second, then latencies in ms: average, least, p50, p95, p99, most.
_FIGURES: Final = re.compile(r'^"GET [^"]*","([^"]+)","[^"]+","[^"]+","([^"]+)","[^"]+","([^"]+)"', re.MULTILINE)


def missing() -> str:
    """Why it cannot take part, or nothing."""
    for program in ("redis-server", "redis-benchmark", "redis-cli"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return ""


def serve(stage: Stage) -> tuple[Server, int]:
    """Start it, in memory."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    return stage.server("redis", command, accepts(port)), port


def fill(port: int, values: Sequence[bytes]) -> None:
    """Set a key for each value, named as redis-benchmark names the ones it asks for at random."""
    keys = [b"service:%012d" % number for number in range(len(values))]
    commands = b"".join(
        b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
        for key, value in zip(keys, values, strict=True)
    )
    done = subprocess.run(
        ["redis-cli", "-p", str(port), "--pipe"], input=commands, capture_output=True, check=False, timeout=60
    )
    if done.returncode:
        raise MeasurementError(f"redis-cli failed: {done.stderr.decode(errors='replace')}")


def get(stage: Stage, server: Server, port: int, keys: int, connections: int, depth: int, duration_s: float) -> Turn:
    """Measure GETs of keys at random."""
    command = ["redis-benchmark", "-p", str(port), "-c", str(connections), "-P", str(depth), "-n", str(_REQUESTS)]
    command += ["-r", str(keys), "--csv", "GET", "service:__rand_int__"]
    before = proc.cpu_s([server.pid])
    requests, running_s, p50_ms, p99_ms = 0, 0.0, 0.0, 0.0
    while running_s < duration_s:
        with affinity(frozenset(stage.cores.generators)):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S, env=environment()
            )
        found = _FIGURES.search(done.stdout)
        if done.returncode or not found:
            raise MeasurementError(f"redis-benchmark failed: {done.stderr or done.stdout}")
        rate, p50_ms, p99_ms = (float(each) for each in found.groups())
        requests += _REQUESTS
        running_s += _REQUESTS / rate
    cpu_s = proc.cpu_s([server.pid]) - before
    figures = {"rate": requests / running_s, "server_cpu": cpu_s / requests * 1e6, "p50": p50_ms, "p99": p99_ms}
    return Turn(figures, min(1.0, cpu_s / running_s))
