"""What do callers notice when an instance dies, or hangs? Ours beside proxies with their own health checks.

A third of the instances is killed (SIGKILL) or stopped (SIGSTOP) soon after a load of 500 requests/s has begun, which
never tries anything twice. Everyone checks each instance over HTTP once a second, gives it half a second to answer, and
retries what may be retried; nobody has a time-out below the caller's patience, which would end slow answers, too. Each
turn starts everything afresh. While requests of one turn hang, the next one begins.
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

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Unfinished
from benchmarks.contenders import homeport, proxies
from benchmarks.load import driver
from benchmarks.load.plan import Hardy, OpenLoop
from benchmarks.servers import Server, accepts, answers, free_port
from benchmarks.stage import Stage
from homeport.client.core.model import Check, Instance

_SERVICE: Final = "orders"
_INSTANCES: Final = 3
_RATE: Final = 500
_CONNECTIONS: Final = 64  # at first
_BEFORE_S: Final = 0.5  # of the load, before something breaks: every connection is used by then
_PATIENCE_S: Final = 10.0  # of a caller; a request that takes longer has failed
_METRICS: Final = (
    Metric("failed", "requests", "lower", headline=True),
    Metric("last_failure", "ms", "lower", headline=True),
    Metric("slowest", "ms", "lower", headline=True),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """Killed, where connections break; and stopped, where they do not."""

    def contenders(number: signal.Signals, after_s: float) -> tuple[Contender, ...]:
        def contender(name: str, about: str, start: proxies.Start, missing: str = "") -> Contender:
            return Contender(name, about, _turns(start, number, after_s), missing)

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
    # After the fault, a load lasts longer than anyone's checks take to find out: two, which each may wait for its turn,
    # and for an answer from who is stopped.
    return tuple(
        Case(
            f"failover/{name}",
            f"what do callers notice when one of {_INSTANCES} instances is {name}?",
            load,
            "homeport",
            contenders(number, after_s),
            metrics=_METRICS,
            warm_ups=0,
        )
        for name, number, after_s in (("killed", signal.SIGKILL, 3.0), ("stopped", signal.SIGSTOP, 4.0))
    )


def _turns(
    start: proxies.Start, number: signal.Signals, after_s: float
) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        yield lambda: _turn(stage, start, number, after_s)

    return turns


def _turn(stage: Stage, start: proxies.Start, number: signal.Signals, after_s: float) -> Unfinished:
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

        running.callback(_goes_on, victim)
        duration_s = _BEFORE_S + after_s
        load = OpenLoop(port=port, rate=_RATE, connections=_CONNECTIONS, duration_s=duration_s, host=_SERVICE)
        return driver.hardy(Hardy(load=load, patience_s=_PATIENCE_S), stage.generators, break_it, running)


def _goes_on(victim: int) -> None:
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
