"""What do callers notice when an instance dies, or hangs? Ours beside proxies with their own health checks.

A third of the instances is killed (SIGKILL) or stopped (SIGSTOP) one second into a load of 500 requests/s that never
tries anything twice. Everyone checks each instance over HTTP once a second, gives it half a second to answer, and
retries what may be retried; nobody has a time-out below the caller's patience, which would end slow answers, too. Each
turn starts everything afresh.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import homeport, proxies
from benchmarks.load import driver
from benchmarks.load.plan import Hardy, OpenLoop
from benchmarks.servers import Server, accepts, answers, free_port
from benchmarks.stage import Stage
from homeport.client.core.model import Check, Instance

_SERVICE: Final = "orders"
_INSTANCES: Final = 3
_RATE: Final = 500
_CONNECTIONS: Final = 64
_LOAD_S: Final = 5.0  # longer than anyone's checks take to find out
_BEFORE_S: Final = 1.0  # of that before something breaks
_PATIENCE_S: Final = 10.0  # of a caller; a request that takes longer has failed
_TURNS: Final = 5
_METRICS: Final = (
    Metric("failed", "requests", "lower", headline=True),
    Metric("last_failure", "ms", "lower", headline=True),
    Metric("slowest", "ms", "lower", headline=True),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """Killed, where connections break; and stopped, where they do not."""

    def contenders(number: signal.Signals) -> tuple[Contender, ...]:
        def contender(name: str, about: str, start: proxies.Start, missing: str = "") -> Contender:
            return Contender(name, about, _turns(start, number, _LOAD_S), missing)

        return (
            contender("homeport", "homeport serve and sidecar; checks each 1 s, thresholds of 2", _homeport),
            contender(
                "haproxy",
                "HAProxy; checks each 1 s, fall 2, three retries on everything that can be repeated, redispatch",
                proxies.haproxy_checked,
                proxies.missing("haproxy"),
            ),
            contender(
                "envoy",
                "Envoy; checks each 1 s, unhealthy after 2, outlier detection, two retries on another host",
                proxies.envoy_checked,
                proxies.missing("envoy"),
            ),
        )

    load = f"{_RATE} GET requests/s, {_INSTANCES} instances; 'slowest' is the longest wait for an answer that came"
    return tuple(
        Case(
            f"failover/{name}",
            f"what do callers notice when one of {_INSTANCES} instances is {name}?",
            load,
            "homeport",
            contenders(number),
            metrics=_METRICS,
            rounds_max=_TURNS,
            warm_ups=0,
        )
        for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))
    )


def _turns(
    start: proxies.Start, number: signal.Signals, duration_s: float
) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        yield lambda: _turn(stage, start, number, duration_s)

    return turns


def _turn(stage: Stage, start: proxies.Start, number: signal.Signals, duration_s: float) -> Turn:
    with ExitStack() as running:
        ports = [free_port() for _ in range(_INSTANCES)]
        servers = []
        for at, port in enumerate(ports):
            command = [sys.executable, "-m", "benchmarks.contenders.body_sink", str(port)]
            server = stage.server(f"instance-{at}", command, accepts(port), stage.cores.upstream)
            servers.append(running.enter_context(server))
        proxy, port = start(stage, ports)
        running.enter_context(proxy)
        answered = answers(f"http://127.0.0.1:{port}/", host=_SERVICE)
        for _ in range(4 * _INSTANCES):  # until everybody takes part
            proxy.wait_ready(answered)
        victim = servers[1].pid

        def break_it() -> float:
            time.sleep(_BEFORE_S)
            os.kill(victim, number)
            return time.monotonic()

        load = OpenLoop(port=port, rate=_RATE, connections=_CONNECTIONS, duration_s=duration_s, host=_SERVICE)
        try:
            return driver.hardy(Hardy(load=load, patience_s=_PATIENCE_S), stage.generators, break_it)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)  # else it could not be told to end


def _homeport(stage: Stage, ports: Sequence[int]) -> tuple[Server, int]:
    registry = homeport.serve(stage, cores=stage.cores.upstream, name="registry")
    with ExitStack() as undo:
        undo.enter_context(registry.server)
        checks = [
            Check(name="http", kind="http", url=f"http://127.0.0.1:{port}/", interval_s=1.0, timeout_s=0.5)
            for port in ports
        ]
        instances = [
            Instance(service=_SERVICE, id=f"orders-{port}", address="127.0.0.1", port=port, checks=(check,))
            for port, check in zip(ports, checks, strict=True)
        ]
        homeport.register(stage, registry, instances)
        server, port = homeport.sidecar(stage, registry, _SERVICE)
        undo.pop_all()
    server.with_it(registry.server)
    return server, port
