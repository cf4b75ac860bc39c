"""How fast are lookups? In a Python process, and over the network beside etcd.

In process, a plain dict is the ceiling: no registry can be faster than the structure that it would be. Over the
network, every contender holds the same instances and is asked for all the healthy ones of one service after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Scale
from benchmarks.contenders import etcd, homeport, redis, zookeeper
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, GrpcCalls, RpcCalls, ZooKeeperCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.load.zookeeper import create, get_data
from benchmarks.servers import Stage
from homeport.client.core import wire
from homeport.client.core.messages import Resolve

_CONNECTIONS: Final = 16
_DEPTH: Final = 8
_IN_PROCESS_S: Final = 60.0  # beyond a turn's own duration: to register everything, too


def cases(scale: Scale) -> tuple[Case, ...]:
    """In process and over the network: the two are different questions."""
    size = f"{scale.services} services of {scale.instances} instances, asked for in turn"
    return (
        Case(
            "lookups/in-process",
            "how many lookups a second can one Python process do?",
            f"one coroutine, {size}",
            "cached client",
            (
                Contender("dict", "dict[str, tuple]: the ceiling", _in_process("dict", scale)),
                Contender(
                    "cached client",
                    "Client.resolve from its watch-fed cache: the healthy instances, as objects",
                    _in_process("client", scale),
                ),
                Contender(
                    "catalogue",
                    "the registry's own answer, encoded for the wire, as its fronts take it",
                    _in_process("catalogue", scale),
                ),
            ),
            metrics=(RATE, SERVER_CPU),
        ),
        Case(
            "lookups/network",
            "how many lookups a second can a registry answer, and what does each cost?",
            f"{_CONNECTIONS} connections with {_DEPTH} in flight (HTTP: {_CONNECTIONS * _DEPTH} with one), {size}",
            "homeport rpc",
            (
                Contender("homeport rpc", "homeport serve, in memory, `resolve` over MessagePack-RPC", _rpc(scale)),
                Contender(
                    "homeport http",
                    "homeport serve, in memory, /v1/health/service/NAME?passing, wrk",
                    _http(scale),
                    driver.wrk_missing(),
                ),
                Contender(
                    "etcd", f"{etcd.ABOUT}; serializable Range of a prefix, same values", _etcd(scale), etcd.missing()
                ),
                Contender(
                    "zookeeper",
                    f"{zookeeper.ABOUT}; getData of one node that holds all of a service's instances",
                    _zookeeper(scale),
                    zookeeper.missing(),
                ),
                Contender("redis", redis.ABOUT, _redis(scale), redis.missing()),
            ),
        ),
    )


def _in_process(what: str, scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    """A new process for each turn, on the servers' core: what is measured is the process itself."""

    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        command = [sys.executable, "-m", "benchmarks.load.in_process", what]
        command += [str(scale.services), str(scale.instances), str(scale.turn_s / 2)]

        yield lambda: driver.in_process(command, stage.cores, scale.turn_s + _IN_PROCESS_S)

    return turns


def _rpc(scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name="homeport-rpc")
        with registry.server:
            homeport.register(stage, registry, homeport.example_instances(scale.services, scale.instances))
            bodies = [rpc_body(Resolve(service=homeport.service_name(number))) for number in range(scale.services)]
            plan = ClosedLoop(
                port=registry.rpc_port,
                connections=_CONNECTIONS,
                depth=_DEPTH,
                calls=RpcCalls(bodies),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.cores, [registry.server.pid])

    return turns


def _http(scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name="homeport-http")
        with registry.server:
            homeport.register(stage, registry, homeport.example_instances(scale.services, scale.instances))
            paths = [f"/v1/health/service/{homeport.service_name(number)}?passing" for number in range(scale.services)]
            yield lambda: driver.wrk(
                registry.http_port,
                paths,
                cores=stage.cores,
                servers=[registry.server.pid],
                connections=_CONNECTIONS * _DEPTH,
                duration_s=scale.turn_s,
            )

    return turns


def _etcd(scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        peer = etcd.serve(stage, stage.new_folder("etcd"))
        with peer.server:
            instances = homeport.example_instances(scale.services, scale.instances)
            puts = [
                protobuf.put_request(f"s/{one.service}/{one.node}/{one.id}".encode(), wire.encode(one))
                for one in instances
            ]
            etcd.call(stage, peer, protobuf.PUT, puts)
            prefixes = (f"s/{homeport.service_name(number)}/".encode() for number in range(scale.services))
            ranges = [protobuf.range_request(prefix, serializable=True) for prefix in prefixes]
            plan = ClosedLoop(
                port=peer.port,
                connections=_CONNECTIONS,
                depth=_DEPTH,
                calls=GrpcCalls(protobuf.RANGE, ranges),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.cores, [peer.server.pid])

    return turns


def _whole_services(scale: Scale) -> list[bytes]:
    """All instances of each service as one value: what a system without ranges would store."""
    instances = homeport.example_instances(scale.services, scale.instances)
    return [wire.encode(instances[at : at + scale.instances]) for at in range(0, len(instances), scale.instances)]


def _zookeeper(scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        peer = zookeeper.serve(stage)
        with peer.server:
            paths = [f"/{homeport.service_name(number)}" for number in range(scale.services)]
            zookeeper.call(stage, peer, [create(*each) for each in zip(paths, _whole_services(scale), strict=True)])
            plan = ClosedLoop(
                port=peer.port,
                connections=_CONNECTIONS,
                depth=_DEPTH,
                calls=ZooKeeperCalls([get_data(path) for path in paths]),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.cores, [peer.server.pid])

    return turns


def _redis(scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        server, port = redis.serve(stage)
        with server:
            redis.fill(port, _whole_services(scale))
            yield lambda: redis.get(stage, server, port, scale.services, _CONNECTIONS, _DEPTH, scale.turn_s)

    return turns
