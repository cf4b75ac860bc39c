"""How fast do instances come and go? Registered with a lease each, then deregistered, beside etcd and ZooKeeper.

What a registration is differs: one call here; a lease and a key in etcd, asked for one after the other as its clients
must; an ephemeral node in ZooKeeper, whose lease is the session's. Everyone writes the same bytes to the same disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from msgspec.structs import replace

from benchmarks.case import JVM_WARM_UPS, Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import etcd, homeport, zookeeper
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import Calls, ClosedLoop, GrpcCalls, RpcCalls, ZooKeeperCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.load.zookeeper import create, delete
from benchmarks.servers import Server
from benchmarks.stage import Stage
from homeport.client.core import wire
from homeport.client.core.messages import Deregister, Register
from homeport.client.core.model import Instance

_CONNECTIONS: Final = 64
_DEPTH: Final = 16
_WARM_UPS: Final = 2 * JVM_WARM_UPS  # a turn here is some 10,000 operations, and fewer than elsewhere
_TTL_S: Final = 3600  # none ends while it is measured
_METRICS: Final = (
    Metric("register", "/s", "higher", headline=True),
    Metric("register_cpu", "us/op", "lower", headline=True),
    Metric("deregister", "/s", "higher", headline=True),
    Metric("deregister_cpu", "us/op", "lower", headline=True),
)

# What brings all instances, and what takes them away: each a list of calls that are made once, one list after another.
Steps = tuple[Sequence[Calls], Sequence[Calls]]


def cases(scale: Scale) -> tuple[Case, ...]:
    """One load: many new instances, then none of them."""
    instances = [
        replace(instance, ttl_s=float(_TTL_S)) for instance in homeport.example_instances(scale.registrations // 2, 2)
    ]
    return (
        Case(
            "registration",
            "how many instances a second can come and go?",
            f"{len(instances)} instances with a lease each, {_CONNECTIONS} connections with {_DEPTH} in flight",
            "homeport durable",
            (
                Contender("homeport durable", "homeport serve --data-dir, every write synced", _ours(instances, True)),
                Contender("homeport memory", "homeport serve, in memory: not durable", _ours(instances, False)),
                Contender(
                    "etcd",
                    f"{etcd.ABOUT}; LeaseGrant, then Put; LeaseRevoke",
                    _etcd(instances),
                    etcd.missing(),
                ),
                Contender(
                    "zookeeper",
                    f"{zookeeper.ABOUT}; an ephemeral node, deleted again; no lease of its own",
                    _zookeeper(instances),
                    zookeeper.missing(),
                    _WARM_UPS,
                ),
            ),
            metrics=_METRICS,
        ),
    )


def _ours(instances: Sequence[Instance], durable: bool) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        data_dir = stage.new_folder("homeport") if durable else None
        registry = homeport.serve(stage, data_dir=data_dir, name=f"homeport-{'durable' if durable else 'memory'}")
        come = RpcCalls([rpc_body(Register(instance=each)) for each in instances])
        go = RpcCalls([rpc_body(Deregister(id=each.id, node=each.node)) for each in instances])
        with registry.server:
            yield lambda: _turn(stage, registry.server, registry.rpc_port, len(instances), ([come], [go]))

    return turns


def _etcd(instances: Sequence[Instance]) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        leases = range(1, len(instances) + 1)
        grants = [protobuf.lease_grant_request(lease, _TTL_S) for lease in leases]
        puts = [
            protobuf.put_request(f"s/{each.service}/{each.node}/{each.id}".encode(), wire.encode(each), lease=lease)
            for lease, each in zip(leases, instances, strict=True)
        ]
        come = (GrpcCalls(protobuf.LEASE_GRANT, grants), GrpcCalls(protobuf.PUT, puts))
        go = GrpcCalls(protobuf.LEASE_REVOKE, [protobuf.lease_revoke_request(lease) for lease in leases])
        with running.server:
            yield lambda: _turn(stage, running.server, running.port, len(instances), (come, [go]))

    return turns


def _zookeeper(instances: Sequence[Instance]) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        running = zookeeper.serve(stage)
        come = ZooKeeperCalls([create(f"/{each.id}", wire.encode(each), ephemeral=True) for each in instances])
        go = ZooKeeperCalls([delete(f"/{each.id}") for each in instances])
        with running.server:
            yield lambda: _turn(stage, running.server, running.port, len(instances), ([come], [go]))

    return turns


def _turn(stage: Stage, server: Server, port: int, count: int, steps: Steps) -> Turn:
    """All come, then all go; what takes several calls takes their times together."""
    figures: dict[str, float] = {}
    shares: list[float] = []
    for name, calls in zip(("register", "deregister"), steps, strict=True):
        seconds, cpu_us = 0.0, 0.0
        for each in calls:
            plan = ClosedLoop(port=port, connections=_CONNECTIONS, depth=_DEPTH, calls=each, operations_max=count)
            turn = driver.closed_loop(plan, stage.generators, [server.pid])
            seconds += 1 / turn.figures["rate"]
            cpu_us += turn.figures["server_cpu"]
            shares.append(turn.generator_share or 0.0)
        figures |= {name: 1 / seconds, f"{name}_cpu": cpu_us}
    return Turn(figures, None, max(shares))
