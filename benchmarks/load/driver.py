"""Drives generator processes and wrk, one load at a time, and makes a `Turn` of what they and the servers did.

A load with failed operations is no measurement: it raises.
"""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from benchmarks import proc
from benchmarks.case import Turn, Unfinished
from benchmarks.load.generators import Generator, Generators
from benchmarks.load.plan import ClosedLoop, Crowd, FanOut, FanOutOutcome, Hardy, HardyOutcome, OpenLoop, Outcome, Plan
from benchmarks.servers import ROOT, Cores, MeasurementError, Server, affinity, environment
from benchmarks.spread import merged, percentile

T = TypeVar("T")

_GRACE_S: Final = 60.0  # beyond a load's own duration, for it to end
_LATE_S: Final = 0.2  # after a load's end, for what does not hang to be answered
_SETTLED_S: Final = 0.5  # after the last connection stands, for what is still being read or freed
_LUA: Final = Path(__file__).with_name("wrk.lua")


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _drive(
    plans: Sequence[Plan],
    generators: Generators,
    servers: Sequence[int],
    kind: type[T],
    standing: Callable[[], None] = lambda: None,
) -> tuple[list[T], float]:
    """Carry out plans at once, one process and core each; return outcomes and the servers' CPU seconds meanwhile.

    `standing` is called when all connections (and watches) stand and nothing has been asked.
    """
    started: list[Generator] = []
    try:
        for plan, core in zip(plans, generators.cores, strict=False):
            started.append(generators.start(plan, core))
        for generator in started:
            generator.wait_ready()
        standing()
        before = proc.cpu_s(servers)
        for generator in started:
            generator.go()
        longest_s = max(map(_duration_s, plans))
        outcomes = [generator.outcome(kind, longest_s + _GRACE_S) for generator in started]
        return outcomes, proc.cpu_s(servers) - before
    finally:
        for generator in started:
            generator.kill()


def _duration_s(plan: Plan) -> float:
    return plan.duration_s if isinstance(plan, ClosedLoop | OpenLoop) else 0.0


def closed_loop(plan: ClosedLoop, generators: Generators, servers: Sequence[int]) -> Turn:
    """Measure a closed loop against servers (process ids), its connections divided among the generators' cores.

    Raises:
        MeasurementError: an operation failed, or the load did not come about.
    """
    count = 1 if plan.operations_max else min(len(generators.cores), plan.connections)
    share, rest = divmod(plan.connections, count)
    plans = [msgspec.structs.replace(plan, connections=share + (at < rest)) for at in range(count)]
    outcomes, server_cpu_s = _drive(plans, generators, servers, Outcome)
    operations = sum(outcome.operations for outcome in outcomes)
    error = next((outcome.first_error for outcome in outcomes if outcome.first_error), "")
    _expect_success(operations, sum(outcome.failed for outcome in outcomes), error)
    wall_s = max(outcome.wall_s for outcome in outcomes)
    latencies = merged(outcome.latencies_us for outcome in outcomes)
    return Turn(
        {
            "rate": operations / wall_s,
            "server_cpu": server_cpu_s / operations * 1e6,
            "p50": percentile(latencies, 0.50) / 1e3,
            "p99": percentile(latencies, 0.99) / 1e3,
        },
        server_cpu_s / wall_s,
        max(outcome.cpu_s / outcome.wall_s for outcome in outcomes),
    )


def open_loop(plan: OpenLoop, generators: Generators, servers: Sequence[int]) -> Turn:
    """Measure latencies at a fixed rate of requests, by one generator.

    Raises:
        MeasurementError: a request failed, or the load did not come about.
    """
    (outcome,), server_cpu_s = _drive([plan], generators, servers, Outcome)
    _expect_success(outcome.operations, outcome.failed, outcome.first_error)
    return Turn(
        {
            "server_cpu": server_cpu_s / outcome.operations * 1e6,
            "p50": percentile(outcome.latencies_us, 0.50) / 1e3,
            "p90": percentile(outcome.latencies_us, 0.90) / 1e3,
            "p99": percentile(outcome.latencies_us, 0.99) / 1e3,
        },
        server_cpu_s / outcome.wall_s,
        outcome.cpu_s / outcome.wall_s,
    )


def hardy(plan: Hardy, generators: Generators, meanwhile: Callable[[], float], held: ExitStack) -> Unfinished:
    """Measure what requests at a fixed rate go through while `meanwhile` breaks something and says when.

    Returns when the last of them has been asked; those that hang are left to be waited for. `held` is what they need.

    Raises:
        MeasurementError: the load did not come about; or, later, nothing was answered at all.
    """
    generator = generators.start(plan, generators.cores[0])
    held.callback(generator.kill)
    generator.wait_ready()
    begun_at_s = time.monotonic()
    generator.go()
    broken_at_s = meanwhile()
    time.sleep(max(0.0, begun_at_s + plan.load.duration_s - time.monotonic()))
    return Unfinished(
        lambda: generator.ended(_LATE_S),
        lambda: _hardy_turn(generator.outcome(HardyOutcome, plan.patience_s + _GRACE_S), broken_at_s),
        held.pop_all(),
    )


def _hardy_turn(outcome: HardyOutcome, broken_at_s: float) -> Turn:
    if not outcome.answered:
        raise MeasurementError("no request was answered")
    after = [at_s - broken_at_s for at_s in outcome.failed_at_s if at_s >= broken_at_s]
    return Turn(
        {
            "last_failure": max(after, default=0.0) * 1e3,
            "failed": float(len(outcome.failed_at_s)),
            "slowest": outcome.slowest_s * 1e3,
        }
    )


def fan_out(plan: FanOut, generators: Generators, servers: Sequence[int]) -> Turn:
    """Measure a fan-out: the median over its puts of the time to the last delivery.

    Raises:
        MeasurementError: a delivery did not come.
    """
    return _last_of_many(plan, plan.puts * plan.watches, generators, servers)


def crowd(plan: Crowd, generators: Generators, servers: Sequence[int]) -> Turn:
    """Measure a crowd of HTTP clients: the median over its rounds of the time to the last answer.

    Raises:
        MeasurementError: an answer did not come, or was an error.
    """
    return _last_of_many(plan, plan.rounds * plan.clients, generators, servers)


def _last_of_many(plan: FanOut | Crowd, operations: int, generators: Generators, servers: Sequence[int]) -> Turn:
    (outcome,), server_cpu_s = _drive([plan], generators, servers, FanOutOutcome)
    ordered = sorted(outcome.deliveries_s)
    figures = {
        "last_delivery": ordered[len(ordered) // 2] * 1e3,
        "slowest_put": ordered[-1] * 1e3,
        "server_cpu": server_cpu_s / operations * 1e6,
    }
    if outcome.latencies_us:
        figures["p50"] = percentile(outcome.latencies_us, 0.50) / 1e3
        figures["p99"] = percentile(outcome.latencies_us, 0.99) / 1e3
    return Turn(figures, server_cpu_s / outcome.wall_s, outcome.cpu_s / outcome.wall_s)


def held_bytes(plan: ClosedLoop | FanOut, generators: Generators, server: Server) -> int:
    """How much a server's resident memory grows while a plan's connections (and watches) stand.

    Raises:
        MeasurementError: they do not come to stand.
    """
    before = server.rss_bytes
    grown = 0

    def look() -> None:
        nonlocal grown
        time.sleep(_SETTLED_S)
        grown = server.rss_bytes - before

    kind = Outcome if isinstance(plan, ClosedLoop) else FanOutOutcome
    _drive([plan], generators, (), kind, standing=look)
    return grown


def _expect_success(operations: int, failed: int, error: str) -> None:
    if failed:
        raise MeasurementError(f"{failed} of {operations} operations failed; the first: {error}")
    if not operations:
        raise MeasurementError("no operation was done")


# --- wrk --------------------------------------------------------------------------------------------------------


def in_process(command: Sequence[str], cores: Cores, timeout_s: float) -> Turn:
    """Run a program on the servers' core that measures itself and prints `[operations, wall seconds, CPU seconds]`.

    Raises:
        MeasurementError: it failed.
    """
    with affinity(cores.server):
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=timeout_s
        )
    if done.returncode:
        raise MeasurementError(done.stderr.strip().rpartition("\n")[2])
    operations, wall_s, cpu_s = json.loads(done.stdout)
    return Turn({"rate": operations / wall_s, "server_cpu": cpu_s / operations * 1e6})


def wrk_missing() -> str:
    """Why there is no HTTP load, or nothing."""
    return "" if shutil.which("wrk") else "wrk is not installed"


def wrk(
    port: int,
    paths: Sequence[str],
    *,
    cores: Cores,
    servers: Iterable[int],
    beside: Iterable[int] = (),
    connections: int,
    duration_s: float,
    host: str = "",
    body_bytes: int = 0,
) -> Turn:
    """Measure HTTP GETs of `paths`, in turn, over kept-alive connections; POSTs, if they have a body.

    Args:
        servers: process ids whose CPU is the servers'.
        beside: process ids of upstreams, which limit like generators do: their share is the generators', too.
        host: the Host header; empty: the address.

    Raises:
        MeasurementError: a request failed or was answered with an error.
    """
    count = min(len(cores.generators), connections)
    at_most_s = math.ceil(duration_s) + 1  # it counts whole seconds, and ends sooner when it is interrupted
    command = ["wrk", f"-t{count}", f"-c{connections}", f"-d{at_most_s}s", "--timeout", "10s", "-s", str(_LUA)]
    command += ["-H", f"Host: {host}"] if host else []
    command += [f"http://127.0.0.1:{port}{paths[0]}", "--"]
    command += [f"body={body_bytes}"] if body_bytes else []
    command += paths if len(paths) > 1 else []
    servers, beside = tuple(servers), tuple(beside)
    before, beside_before = proc.cpu_s(servers), proc.cpu_s(beside)
    used_before = children_cpu_s()
    started_at = time.perf_counter()
    with affinity(frozenset(cores.generators)):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
    out, error = _interrupted(process, duration_s)
    wall_s = time.perf_counter() - started_at
    server_cpu_s = proc.cpu_s(servers) - before
    wrk_share = (children_cpu_s() - used_before) / wall_s / count
    beside_share = (proc.cpu_s(beside) - beside_before) / wall_s
    same_core = not cores.upstream.isdisjoint(cores.generators)
    found = re.search(r"^homeport-benchmark (.*)$", out, re.MULTILINE)
    if process.returncode or not found:
        raise MeasurementError(f"wrk failed: {_last_line(error or out)}")
    requests, duration_us, failed, p50_us, p99_us = (float(field) for field in found[1].split())
    _expect_success(int(requests), int(failed), "an error status, or a broken connection")
    return Turn(
        {
            "rate": requests / duration_us * 1e6,
            "server_cpu": server_cpu_s / requests * 1e6,
            "p50": p50_us / 1e3,
            "p99": p99_us / 1e3,
        },
        server_cpu_s / wall_s,
        wrk_share + beside_share if same_core else max(wrk_share, beside_share),
    )


def _interrupted(process: subprocess.Popen[str], after_s: float) -> tuple[str, str]:
    """What it says on its two streams, interrupted after a while."""
    with process:
        try:
            try:
                return process.communicate(timeout=after_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                return process.communicate(timeout=_GRACE_S)
        except BaseException:
            process.kill()
            raise


def children_cpu_s() -> float:
    """The CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
