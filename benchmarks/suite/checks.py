"""How much of a core do ten thousand HTTP checks take, and do they come evenly? Nobody else's prober is beside it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.case import SERVER_CPU, Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import homeport
from benchmarks.load.checked import ARRIVALS
from benchmarks.proc import cpu_s
from benchmarks.servers import MeasurementError, accepts, free_port
from benchmarks.stage import Stage
from homeport.client import Check, Client
from homeport.client.core.messages import Register
from homeport.client.core.model import Instance

_INTERVAL_S: Final = 10.0
_SETTLED_S: Final = 1.1 * _INTERVAL_S  # until every one has run; all begin as passing, so none has a change to write
_AT_ONCE: Final = 32  # registrations under way
_BIN_S: Final = 0.1
_RATE: Final = Metric("rate", "/s", "higher")
_CORE: Final = Metric("core", "%", "lower", headline=True)
_PEAK: Final = Metric("peak", "x mean", "lower", headline=True)  # the busiest tenth of a second


def cases(scale: Scale) -> tuple[Case, ...]:
    """One load: instances with one HTTP check each, all of which pass."""

    @contextmanager
    def ours(stage: Stage) -> Iterator[Measure]:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.load.checked", str(port)]
        with stage.server("checked", command, accepts(port), stage.cores.upstream):
            registry = homeport.serve(stage)
            with registry.server:
                asyncio.run(_register(registry.rpc_port, port, scale.checks))
                time.sleep(_SETTLED_S)
                yield lambda: _turn(registry.server.pid, port, scale.checks)

    return (
        Case(
            "checks",
            "how much of a core do HTTP checks take?",
            f"{scale.checks:,} HTTP checks, one every {_INTERVAL_S:g} s, each on a connection of its own",
            "homeport",
            (Contender("homeport", "homeport serve, in memory; a target on another core", ours),),
            metrics=(_RATE, SERVER_CPU, _CORE, _PEAK),
            rounds_max=5,
            warm_ups=0,
        ),
    )


def _turn(pid: int, port: int, checks: int) -> Turn:
    _arrivals(port)
    cpu, begun = cpu_s([pid]), time.monotonic()
    time.sleep(_INTERVAL_S)
    used, wall_s = cpu_s([pid]) - cpu, time.monotonic() - begun
    arrivals = [when - begun for when in _arrivals(port)]
    if not 0.9 * checks < len(arrivals) < 1.1 * checks:
        raise MeasurementError(f"{len(arrivals)} checks of {checks} came within an interval")
    bins = Counter(int(when / _BIN_S) for when in arrivals)
    mean = len(arrivals) / wall_s * _BIN_S
    return Turn(
        {
            "rate": len(arrivals) / wall_s,
            "server_cpu": used / len(arrivals) * 1e6,
            "core": used / wall_s * 100,
            "peak": max(bins.values()) / mean,
        },
        server_share=used / wall_s,
    )


def _arrivals(port: int) -> list[float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{ARRIVALS}", timeout=30) as answer:
        times: list[float] = json.load(answer)
    return times


async def _register(rpc_port: int, port: int, count: int) -> None:
    async with Client(f"127.0.0.1:{rpc_port}", name="benchmark") as client:
        numbers = iter(range(count))

        async def register() -> None:
            for number in numbers:
                check = Check(
                    name="http",
                    kind="http",
                    url=f"http://127.0.0.1:{port}/{number}",
                    interval_s=_INTERVAL_S,
                    initial="passing",
                )
                one = Instance(
                    service=f"s{number % 100}", id=f"i{number}", address="127.0.0.1", port=port, checks=(check,)
                )
                await client.call(Register(instance=one))

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(register())
