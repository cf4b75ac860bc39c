"""How fast is Consul's HTTP API here? Beside the least that aiohttp can do, and woken clients beside plain requests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import homeport
from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, Crowd, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.servers import accepts, free_port
from benchmarks.stage import Stage
from homeport.client.core.messages import KvPut

_CONNECTIONS: Final = 32
_CLIENTS: Final = 1000  # that wait for one key
_KEY: Final = "/v1/kv/key"
_HEALTH: Final = f"/v1/health/service/{homeport.service_name(0)}?passing"
_FEW: Final = 10  # keys or services
_MANY_SERVICES: Final = 10_000
_LOADERS: Final = 4
_LOADER_DEPTH: Final = 64
_METRICS: Final = (
    Metric("last_delivery", "ms", "lower", headline=True),
    Metric("slowest_put", "ms", "lower"),
    Metric("server_cpu", "us/op", "lower", headline=True),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """One key or one service read over and over, and one change that a crowd waits for."""
    missing = driver.wrk_missing()
    return (
        Case(
            "consul/health",
            "how many lookups of healthy instances a second, and what does each cost beyond aiohttp itself?",
            f"wrk, {_CONNECTIONS} connections, GET {_HEALTH}, {scale.instances} instances",
            "homeport",
            (
                Contender(
                    "homeport",
                    f"homeport serve, in memory, {_FEW} services",
                    _asked(scale, _HEALTH, _services(scale, _FEW)),
                    missing,
                ),
                Contender(
                    "homeport, many services",
                    f"the same with {_MANY_SERVICES:,} services: it must not matter",
                    _asked(scale, _HEALTH, _services(scale, _MANY_SERVICES)),
                    missing,
                ),
                Contender(
                    "aiohttp handler",
                    "an aiohttp application with one route, which sends the same bytes",
                    _bare(scale, _HEALTH, _services(scale, _FEW), "--app"),
                    missing,
                ),
                Contender(
                    "aiohttp server",
                    "the same without a router",
                    _bare(scale, _HEALTH, _services(scale, _FEW)),
                    missing,
                ),
            ),
            metrics=(RATE, SERVER_CPU),
        ),
        Case(
            "consul/kv-get",
            "how many reads of a key a second, and what does each cost beyond aiohttp itself?",
            f"wrk, {_CONNECTIONS} connections, GET {_KEY}, 5 bytes",
            "homeport",
            (
                Contender(
                    "homeport", f"homeport serve, in memory, {_FEW} keys", _asked(scale, _KEY, _keys(_FEW)), missing
                ),
                Contender(
                    "homeport, many keys",
                    f"the same with {scale.keys:,} keys: it must not matter",
                    _asked(scale, _KEY, _keys(scale.keys)),
                    missing,
                ),
                Contender(
                    "aiohttp handler",
                    "an aiohttp application with one route, which sends the same bytes",
                    _bare(scale, _KEY, _keys(_FEW), "--app"),
                    missing,
                ),
                Contender("aiohttp server", "the same without a router", _bare(scale, _KEY, _keys(_FEW)), missing),
            ),
            metrics=(RATE, SERVER_CPU),
        ),
        Case(
            "consul/wake",
            "how long until a change has reached everybody who waits for it, beside as many plain requests at once?",
            f"{_CLIENTS} connections, {scale.deliveries} rounds a turn; an operation is one answer, and with blocked "
            "clients its server_cpu holds the asking too",
            "blocked",
            (
                Contender("blocked", "GET /v1/kv/crowd?index=..., and a PUT", _crowd(scale, blocked=True)),
                Contender("plain", "GET /v1/kv/crowd", _crowd(scale, blocked=False)),
            ),
            metrics=_METRICS,
        ),
    )


Fill = Callable[[Stage, homeport.Registry], None]


def _keys(count: int) -> Fill:
    def fill(stage: Stage, registry: homeport.Registry) -> None:
        bodies = [rpc_body(KvPut(key=b"key", value=b"value"))]
        bodies += [rpc_body(KvPut(key=b"other/%06d" % number, value=b"value")) for number in range(count - 1)]
        plan = ClosedLoop(
            port=registry.rpc_port,
            connections=_LOADERS,
            depth=_LOADER_DEPTH,
            calls=RpcCalls(bodies),
            operations_max=len(bodies),
        )
        driver.closed_loop(plan, stage.generators, ())

    return fill


def _services(scale: Scale, count: int) -> Fill:
    return lambda stage, registry: homeport.register(
        stage, registry, homeport.example_instances(count, scale.instances)
    )


def _asked(scale: Scale, path: str, fill: Fill) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage)
        with registry.server:
            fill(stage, registry)
            yield lambda: _wrk(scale, stage, registry.http_port, path, registry.server.pid)

    return turns


def _bare(scale: Scale, path: str, fill: Fill, *options: str) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.contenders.aiohttp_bytes", "--listen", str(port), *options]
        registry = homeport.serve(stage, name="homeport-example")
        with registry.server:
            fill(stage, registry)
            command += ["--like", f"http://127.0.0.1:{registry.http_port}{path}"]
            server = stage.server(f"aiohttp{''.join(options)}", command, accepts(port))
            with server:  # the registry stays, and does nothing
                yield lambda: _wrk(scale, stage, port, path, server.pid)

    return turns


def _wrk(scale: Scale, stage: Stage, port: int, path: str, pid: int) -> Turn:
    return driver.wrk(port, [path], cores=stage.cores, servers=[pid], connections=_CONNECTIONS, duration_s=scale.turn_s)


def _crowd(scale: Scale, *, blocked: bool) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name="homeport-blocked" if blocked else "homeport-plain")
        with registry.server:
            plan = Crowd(port=registry.http_port, clients=_CLIENTS, rounds=scale.deliveries, blocked=blocked)
            yield lambda: driver.crowd(plan, stage.generators, [registry.server.pid])

    return turns
