"""What do an instance, a watcher and an idle connection cost a registry in memory? Every turn starts a new server.

Nothing is timed, so both are filled at the same time, each on a core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from msgspec.structs import replace

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import etcd, homeport
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, FanOut, GrpcCalls, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.servers import Server
from benchmarks.stage import Stage
from homeport.client.core import wire
from homeport.client.core.messages import Ping
from homeport.client.core.model import Instance

_CONNECTIONS: Final = 1_000
_INSTANCES_MAX: Final = 30_000  # some 60 MB: far more than a server's memory varies by itself
_TTL_S: Final = 3600  # none ends while it is measured
_TURNS: Final = 5
_SETTLED_S: Final = 0.5  # after the last write, for what is still being applied or freed
_BYTES: Final = (Metric("bytes", "B", "lower", headline=True),)

# What one of it costs a new server, in bytes of its resident memory.
Cost = Callable[[Stage], float]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Instances, watchers, connections."""
    instances = [
        replace(each, ttl_s=float(_TTL_S))
        for each in homeport.example_instances(min(_INSTANCES_MAX, scale.keys) // 2, 2)
    ]
    return (
        _case(
            "holdings/instance",
            "how much memory does a registered instance with a lease cost?",
            f"{len(instances)} instances of about 200 bytes; resident memory with them minus without",
            lambda stage: _instances(stage, instances),
            lambda stage: _instances_of_etcd(stage, instances),
        ),
        _case(
            "holdings/watcher",
            "how much memory does a watch cost?",
            f"{scale.watches} watches of one key on {scale.watch_connections} connections; the connections included",
            lambda stage: _ours(stage, lambda port: _watches(scale, port, "rpc")),
            lambda stage: _etcd(stage, lambda port: _watches(scale, port, "grpc")),
        ),
        _case(
            "holdings/connection",
            "how much memory does an idle connection cost?",
            f"{_CONNECTIONS} connections that have said hello",
            lambda stage: _ours(stage, lambda port: _idle(port, RpcCalls([rpc_body(Ping())]))),
            lambda stage: _etcd(
                stage, lambda port: _idle(port, GrpcCalls(protobuf.RANGE, [protobuf.get_request(b"k")]))
            ),
        ),
    )


def _case(name: str, question: str, load: str, ours: Cost, theirs: Cost) -> Case:
    return Case(
        name,
        question,
        load,
        "homeport",
        (
            Contender("homeport", "homeport serve, in memory", lambda stage: _turns(stage, ours)),
            Contender("etcd", etcd.ABOUT, lambda stage: _turns(stage, theirs), etcd.missing()),
        ),
        metrics=_BYTES,
        rounds_max=_TURNS,
        warm_ups=0,
        together=True,
    )


@contextmanager
def _turns(stage: Stage, cost: Cost) -> Iterator[Measure]:
    yield lambda: Turn({"bytes": cost(stage)})


def _instances(stage: Stage, instances: list[Instance]) -> float:
    registry = homeport.serve(stage)
    with registry.server as server:
        empty = server.rss_bytes
        homeport.register(stage, registry, instances)
        return _grown(server, empty) / len(instances)


def _instances_of_etcd(stage: Stage, instances: list[Instance]) -> float:
    running = etcd.serve(stage, stage.new_folder("etcd"), stage.cores.upstream)
    with running.server as server:
        empty = server.rss_bytes
        leases = range(1, len(instances) + 1)
        etcd.call(
            stage, running, protobuf.LEASE_GRANT, [protobuf.lease_grant_request(lease, _TTL_S) for lease in leases]
        )
        puts = [
            protobuf.put_request(f"s/{each.service}/{each.node}/{each.id}".encode(), wire.encode(each), lease=lease)
            for lease, each in zip(leases, instances, strict=True)
        ]
        etcd.call(stage, running, protobuf.PUT, puts)
        return _grown(server, empty) / len(instances)


def _grown(server: Server, before: int) -> int:
    time.sleep(_SETTLED_S)
    return server.rss_bytes - before


def _ours(stage: Stage, plan: Callable[[int], ClosedLoop | FanOut]) -> float:
    registry = homeport.serve(stage)
    with registry.server as server:
        return _held(stage, server, plan(registry.rpc_port))


def _etcd(stage: Stage, plan: Callable[[int], ClosedLoop | FanOut]) -> float:
    running = etcd.serve(stage, stage.new_folder("etcd"), stage.cores.upstream)
    with running.server as server:
        return _held(stage, server, plan(running.port))


def _held(stage: Stage, server: Server, plan: ClosedLoop | FanOut) -> float:
    count = plan.connections if isinstance(plan, ClosedLoop) else plan.watches
    return driver.held_bytes(plan, stage.generators, server) / count


def _watches(scale: Scale, port: int, system: str) -> FanOut:
    return FanOut(port=port, system=system, connections=scale.watch_connections, watches=scale.watches, puts=1)


def _idle(port: int, calls: RpcCalls | GrpcCalls) -> ClosedLoop:
    return ClosedLoop(port=port, connections=_CONNECTIONS, depth=1, calls=calls, operations_max=_CONNECTIONS)
