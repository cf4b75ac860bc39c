"""An instance dies, or hangs: how long until the last of its clients knows? Leases of three seconds everywhere.

Nobody is told by the instance itself. What decides is how soon a lease (or a session) that is not renewed ends, and
how fast that news travels; and whether a registry that can also look for itself, by a health check, is sooner. All of
that is waiting: the contenders of a round wait at the same time, each for an instance of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import IO, Final

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import etcd, homeport, zookeeper
from benchmarks.load.holder import SERVICE
from benchmarks.servers import ROOT, MeasurementError, Server, accepts, affinity, environment, free_port
from benchmarks.stage import Stage
from homeport.client.core.model import Check, Instance

_TTL_S: Final = 3.0
_WITNESSES: Final = 100
_TICK_MS: Final = 500  # of ZooKeeper, so that it allows sessions as short as that; by default 4 s are the least
_BEFORE_S: Final = 0.3  # after all watch, until nothing is busy with that
_JITTER_S: Final = 0.37  # more before each turn: anywhere within the period of renewals, which is a second
_APART_S: Final = 0.1  # from one contender's to the next one's: their deaths, within a round, take no time from another
_PATIENCE_S: Final = 30.0
_METRICS: Final = (
    Metric("last_client_knows", "s", "lower", headline=True),
    Metric("first_client_knows", "s", "lower"),
)

# Starts a registry; returns it with the port that clients use, and how the victim is started.
Start = Callable[[Stage], tuple[Server, int, Callable[[], subprocess.Popen[bytes]]]]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Killed, and stopped."""

    def contenders(number: signal.Signals) -> tuple[Contender, ...]:
        def contender(name: str, about: str, system: str, start: Start, missing: str = "") -> Contender:
            return Contender(name, about, _turns(system, start, number, next(apart_s)), missing)

        apart_s = itertools.count(0.0, _APART_S)

        return (
            contender("homeport lease", "homeport serve; a lease of 3 s, renewed by the client", "homeport", _leased),
            contender(
                "homeport check",
                "homeport serve; an HTTP check each second, 0.5 s to answer, thresholds of 2; no lease",
                "homeport",
                _checked,
            ),
            contender("etcd", f"{etcd.ABOUT}; a lease of 3 s, kept alive", "etcd", _etcd, etcd.missing()),
            contender(
                "zookeeper",
                f"{zookeeper.ABOUT}, but ticks of {_TICK_MS} ms; an ephemeral node of a session of 3 s",
                "zookeeper",
                _zookeeper,
                zookeeper.missing(),
            ),
        )

    return tuple(
        Case(
            f"departure/{name}",
            f"how long after an instance was {name} does the last of its clients know?",
            f"{_WITNESSES} clients, each with a connection and a watch of its own",
            "homeport lease",
            contenders(number),
            metrics=_METRICS,
            rounds_factor=2 if number == signal.SIGSTOP else 1,  # a third of the lease depends on the last renewal
            warm_ups=0,
            together=True,
        )
        for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))
    )


def _turns(
    system: str, start: Start, number: signal.Signals, apart_s: float
) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        turn = 0

        def measure() -> Turn:
            nonlocal turn
            turn += 1
            return _turn(stage, system, start, number, _BEFORE_S + turn * _JITTER_S % 1.0 + apart_s)

        yield measure

    return turns


def _turn(stage: Stage, system: str, start: Start, number: signal.Signals, before_s: float) -> Turn:
    with ExitStack() as running:
        server, port, start_victim = start(stage)
        running.enter_context(server)
        victim = running.enter_context(_ended(start_victim()))
        witnesses = running.enter_context(_ended(_process(stage, "witnesses", system, str(port), str(_WITNESSES))))
        _expect(witnesses.stdout, b"watching\n")
        stage.abreast()
        time.sleep(before_s)
        os.kill(victim.pid, number)
        gone_at = time.monotonic()
        try:
            out, _ = witnesses.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"not all of them knew after {_PATIENCE_S:.0f} s") from None
        if witnesses.returncode:
            raise MeasurementError("the witnesses failed")
        first, last = json.loads(out)
        return Turn({"first_client_knows": first - gone_at, "last_client_knows": last - gone_at})


def _process(stage: Stage, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    with affinity(frozenset(stage.cores.generators)):
        return subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.load.{module}", *arguments],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, killed at the end, stopped or not."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _expect(out: IO[bytes] | None, line: bytes) -> None:
    assert out is not None
    if out.readline() != line:
        raise MeasurementError("a process ended before it was ready")


def _leased(stage: Stage) -> tuple[Server, int, Callable[[], subprocess.Popen[bytes]]]:
    registry = homeport.serve(stage)
    return registry.server, registry.rpc_port, lambda: _holder(stage, "homeport", registry.rpc_port)


def _checked(stage: Stage) -> tuple[Server, int, Callable[[], subprocess.Popen[bytes]]]:
    registry = homeport.serve(stage)

    def start() -> subprocess.Popen[bytes]:
        port = free_port()
        with affinity(frozenset(stage.cores.generators)):
            victim = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contenders.body_sink", str(port)],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=environment(),
            )
        try:
            _wait(accepts(port))
            check = Check(name="http", kind="http", url=f"http://127.0.0.1:{port}/", interval_s=1.0, timeout_s=0.5)
            instance = Instance(
                service="orders", id="orders-that-dies", address="127.0.0.1", port=port, checks=(check,)
            )
            homeport.register(stage, registry, [instance])
            _wait(homeport.healthy(registry, SERVICE))
        except BaseException:
            victim.kill()
            raise
        return victim

    return registry.server, registry.rpc_port, start


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        if time.monotonic() > deadline:
            raise MeasurementError("the instance was not ready in time")
        time.sleep(0.02)


def _etcd(stage: Stage) -> tuple[Server, int, Callable[[], subprocess.Popen[bytes]]]:
    running = etcd.serve(stage, stage.new_folder("etcd"))
    return running.server, running.port, lambda: _holder(stage, "etcd", running.port)


def _zookeeper(stage: Stage) -> tuple[Server, int, Callable[[], subprocess.Popen[bytes]]]:
    running = zookeeper.serve(stage, tick_ms=_TICK_MS)
    return running.server, running.port, lambda: _holder(stage, "zookeeper", running.port)


def _holder(stage: Stage, system: str, port: int) -> subprocess.Popen[bytes]:
    """An instance that has registered itself."""
    victim = _process(stage, "holder", system, str(port), str(_TTL_S))
    try:
        _expect(victim.stdout, b"held\n")
    except BaseException:
        victim.kill()
        raise
    return victim
