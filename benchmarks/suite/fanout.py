"""How long until everybody knows? Very many watches of one key, and the time from a put to the last delivery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Metric, Scale
from benchmarks.contenders import etcd, homeport
from benchmarks.load import driver
from benchmarks.load.plan import FanOut
from benchmarks.stage import Stage

_METRICS: Final = (
    Metric("last_delivery", "ms", "lower", headline=True),
    Metric("p50", "ms", "lower", headline=True),
    Metric("p99", "ms", "lower", headline=True),
    Metric("slowest_put", "ms", "lower"),
    Metric("server_cpu", "us/op", "lower", headline=True),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """One load; each turn opens its watches anew and puts only when all of them stand."""
    return (case("fanout", scale.watches, scale.watch_connections, scale.deliveries),)


def case(name: str, watches: int, connections: int, puts: int) -> Case:
    """So many watches of one key, and what becomes of puts of it."""

    def plan(port: int, system: str) -> FanOut:
        return FanOut(port=port, system=system, connections=connections, watches=watches, puts=puts)

    @contextmanager
    def ours(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage)
        with registry.server:
            yield lambda: driver.fan_out(plan(registry.rpc_port, "rpc"), stage.generators, [registry.server.pid])

    @contextmanager
    def peer(stage: Stage) -> Iterator[Measure]:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server:
            yield lambda: driver.fan_out(plan(running.port, "grpc"), stage.generators, [running.server.pid])

    return Case(
        name,
        "how long does it take from a put until the last of many watches has heard of it?",
        f"{watches} watches of one key on {connections} connections, {puts} puts of "
        "200 bytes a turn, one after the other; an operation is one delivery",
        "homeport",
        (
            Contender("homeport", "homeport serve, in memory, `watch_kv`", ours),
            Contender("etcd", f"{etcd.ABOUT}; a connection's watches on one stream", peer, etcd.missing()),
        ),
        metrics=_METRICS,
    )
