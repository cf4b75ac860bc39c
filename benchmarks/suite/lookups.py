"""How fast are lookups? In a Python process, and over the network beside etcd.

In process, a plain dict is the ceiling: no registry can be faster than the structure that it would be. Over the
network, every contender holds the same instances and is asked for all the healthy ones of one service after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.case import JVM_WARM_UPS, RATE, SERVER_CPU, Case, Contender, Measure, Scale
from benchmarks.contenders import etcd, homeport, redis, zookeeper
from benchmarks.contenders.program import program
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, GrpcCalls, RpcCalls, ZooKeeperCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.load.zookeeper import create, get_data
from benchmarks.stage import Stage
from homeport.client.core import wire
from homeport.client.core.messages import Resolve

_CONNECTIONS: Final = 16
_DEPTH: Final = 8
_HUNDREDS: Final = 100  # of connections: more take a notable part of half a second to open
_GRID_ROUNDS: Final = 5  # at most: there are many cases


@dataclass(frozen=True)
class Load:
    """Whole services, asked for in turn."""

    services: int
    instances: int
    connections: int
    depth: int
    turn_s: float

    @property
    def size(self) -> str:
        return f"{self.services} services of {self.instances} instances, asked for in turn"


def cases(scale: Scale) -> tuple[Case, ...]:
    """In process and over the network: the two are different questions; then one number varied after the other."""

    def in_process(what: str) -> Callable[[Stage], AbstractContextManager[Measure]]:
        return program("in_process", what, scale.services, scale.instances, turn_s=scale.turn_s)

    load = Load(scale.services, scale.instances, _CONNECTIONS, _DEPTH, scale.turn_s)
    return (
        Case(
            "lookups/in-process",
            "how many lookups a second can one Python process do?",
            f"one coroutine, {load.size}",
            "resolver",
            (
                Contender("dict", "dict[str, tuple]: the ceiling", in_process("dict")),
                Contender(
                    "resolver",
                    "Resolver.lookup: the healthy instances, as objects, in any thread",
                    in_process("lookup"),
                ),
                Contender(
                    "cached client",
                    "Client.resolve from its watch-fed cache: the healthy instances, as objects",
                    in_process("client"),
                ),
                Contender(
                    "catalogue",
                    "the registry's own answer, encoded for the wire, as its fronts take it",
                    in_process("catalogue"),
                ),
            ),
            metrics=(RATE, SERVER_CPU),
            warm_ups=0,
        ),
        Case(
            "lookups/network",
            "how many lookups a second can a registry answer, and what does each cost?",
            f"{_CONNECTIONS} connections with {_DEPTH} in flight (HTTP: {_CONNECTIONS * _DEPTH} with one), {load.size}",
            "homeport rpc",
            (
                Contender("homeport rpc", "homeport serve, in memory, `resolve` over MessagePack-RPC", _rpc(load)),
                _over_http(load),
                Contender(
                    "etcd", f"{etcd.ABOUT}; serializable Range of a prefix, same values", _etcd(load), etcd.missing()
                ),
                Contender(
                    "zookeeper",
                    f"{zookeeper.ABOUT}; getData of one node that holds all of a service's instances",
                    _zookeeper(load),
                    zookeeper.missing(),
                    JVM_WARM_UPS,
                ),
                Contender("redis", redis.ABOUT, _redis(load), redis.missing()),
            ),
        ),
        *(_varied(load, what, count) for what, counts in _grid(scale) for count in counts),
    )


def _grid(scale: Scale) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What is varied, and through which counts; the middle one is the load of lookups/network."""
    most = 30 * scale.services
    return (
        ("services", (10, most)),
        ("instances", (1, 30)),
        ("connections", (1, 256)),
        ("depth", (1, 64)),
    )


def _varied(load: Load, what: str, count: int) -> Case:
    load = replace(load, **{what: count})
    return Case(
        f"lookups/{what}-{count}",
        f"how many lookups a second with {count} {what}?",
        f"{load.connections} connections with {load.depth} in flight (HTTP: {load.connections * load.depth} with one), "
        f"{load.size}",
        "homeport rpc",
        (
            Contender("homeport rpc", "homeport serve, in memory, `resolve` over MessagePack-RPC", _rpc(load)),
            _over_http(load),
            Contender("etcd", f"{etcd.ABOUT}; serializable Range of a prefix", _etcd(load), etcd.missing()),
            Contender(
                "zookeeper",
                f"{zookeeper.ABOUT}; getData of one node that holds all of a service's instances",
                _zookeeper(load),
                zookeeper.missing(),
                JVM_WARM_UPS,
            ),
        ),
        rounds_max=_GRID_ROUNDS,
    )


def _over_http(load: Load) -> Contender:
    """A connection has one request in flight, so there are as many as the others have requests."""
    return Contender(
        "homeport http",
        "homeport serve, in memory, /v1/health/service/NAME?passing, wrk",
        _http(load),
        driver.wrk_missing(),
    )


def _rpc(load: Load) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name="homeport-rpc")
        with registry.server:
            homeport.register(stage, registry, homeport.example_instances(load.services, load.instances))
            bodies = [rpc_body(Resolve(service=homeport.service_name(number))) for number in range(load.services)]
            plan = ClosedLoop(
                port=registry.rpc_port,
                connections=load.connections,
                depth=load.depth,
                calls=RpcCalls(bodies),
                duration_s=load.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [registry.server.pid])

    return turns


def _http(load: Load) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name="homeport-http")
        with registry.server:
            homeport.register(stage, registry, homeport.example_instances(load.services, load.instances))
            connections = load.connections * load.depth
            paths = [f"/v1/health/service/{homeport.service_name(number)}?passing" for number in range(load.services)]
            yield lambda: driver.wrk(
                registry.http_port,
                paths,
                cores=stage.cores,
                servers=[registry.server.pid],
                connections=connections,
                # wrk opens them within its time, and the others' generators before it.
                duration_s=2 * load.turn_s if connections > _HUNDREDS else load.turn_s,
            )

    return turns


def _etcd(load: Load) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        peer = etcd.serve(stage, stage.new_folder("etcd"))
        with peer.server:
            instances = homeport.example_instances(load.services, load.instances)
            puts = [
                protobuf.put_request(f"s/{one.service}/{one.node}/{one.id}".encode(), wire.encode(one))
                for one in instances
            ]
            etcd.call(stage, peer, protobuf.PUT, puts)
            prefixes = (f"s/{homeport.service_name(number)}/".encode() for number in range(load.services))
            ranges = [protobuf.range_request(prefix, serializable=True) for prefix in prefixes]
            plan = ClosedLoop(
                port=peer.port,
                connections=load.connections,
                depth=load.depth,
                calls=GrpcCalls(protobuf.RANGE, ranges),
                duration_s=load.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [peer.server.pid])

    return turns


def _whole_services(load: Load) -> list[bytes]:
    """All instances of each service as one value: what a system without ranges would store."""
    instances = homeport.example_instances(load.services, load.instances)
    return [wire.encode(instances[at : at + load.instances]) for at in range(0, len(instances), load.instances)]


def _zookeeper(load: Load) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        peer = zookeeper.serve(stage)
        with peer.server:
            paths = [f"/{homeport.service_name(number)}" for number in range(load.services)]
            zookeeper.call(stage, peer, [create(*each) for each in zip(paths, _whole_services(load), strict=True)])
            plan = ClosedLoop(
                port=peer.port,
                connections=load.connections,
                depth=load.depth,
                calls=ZooKeeperCalls([get_data(path) for path in paths]),
                duration_s=load.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [peer.server.pid])

    return turns


def _redis(load: Load) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        server, port = redis.serve(stage)
        with server:
            redis.fill(port, _whole_services(load))
            yield lambda: redis.get(stage, server, port, load.services, load.connections, load.depth, load.turn_s)

    return turns
