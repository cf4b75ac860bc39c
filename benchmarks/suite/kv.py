"""How fast is a key-value store that is read four times as often as it is written? Beside etcd and ZooKeeper."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeVar

from benchmarks.case import JVM_WARM_UPS, Case, Contender, Measure, Scale
from benchmarks.contenders import etcd, homeport, zookeeper
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import Calls, ClosedLoop, GrpcCalls, RpcCalls, ZooKeeperCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.load.zookeeper import create, get_data, set_data
from benchmarks.servers import Server
from benchmarks.stage import Stage
from benchmarks.suite.puts import entries
from homeport.client.core.messages import KvGet, KvPut

_CONNECTIONS: Final = 64
_DEPTH: Final = 16
_READS_PER_WRITE: Final = 4
_SEED: Final = 2  # everyone reads and writes the same keys in the same order

T = TypeVar("T")


def cases(scale: Scale) -> tuple[Case, ...]:
    """One mix, keys at random."""
    written = entries(scale.keys)
    return (
        Case(
            "kv/mix",
            "how many operations a second does a mix of reads and writes of keys get through?",
            f"{_READS_PER_WRITE} gets for each put of 200 bytes, {scale.keys} keys at random, {_CONNECTIONS} "
            f"connections with {_DEPTH} in flight",
            "homeport durable",
            (
                Contender("homeport durable", "homeport serve --data-dir, every write synced", _ours(scale, True)),
                Contender("homeport memory", "homeport serve, in memory: not durable", _ours(scale, False)),
                Contender("etcd", f"{etcd.ABOUT}; serializable gets", _etcd(scale, written), etcd.missing()),
                Contender("zookeeper", zookeeper.ABOUT, _zookeeper(scale, written), zookeeper.missing(), JVM_WARM_UPS),
            ),
        ),
    )


def mixed(read: Callable[[bytes], T], write: Callable[[bytes, bytes], T], keys: int) -> list[T]:
    """A call for each key: a put of every fifth, a get of the others, in an order of their own."""
    rng = random.Random(_SEED)
    calls = [
        read(key) if at % (_READS_PER_WRITE + 1) else write(key, value) for at, (key, value) in enumerate(entries(keys))
    ]
    rng.shuffle(calls)
    return calls


def _ours(scale: Scale, durable: bool) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        data_dir = stage.new_folder("homeport") if durable else None
        registry = homeport.serve(stage, data_dir=data_dir, name=f"homeport-{'durable' if durable else 'memory'}")
        with registry.server:
            port = registry.rpc_port
            puts = [rpc_body(KvPut(key=key, value=value)) for key, value in entries(scale.keys)]
            driver.closed_loop(_plan(port, RpcCalls(puts), operations_max=len(puts)), stage.generators, ())
            calls = mixed(
                lambda key: rpc_body(KvGet(key=key)),
                lambda key, value: rpc_body(KvPut(key=key, value=value)),
                scale.keys,
            )
            yield _measure(stage, registry.server, _plan(port, RpcCalls(calls), scale.turn_s))

    return turns


def _etcd(scale: Scale, written: Sequence[tuple[bytes, bytes]]) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server:
            puts = GrpcCalls(protobuf.PUT, [protobuf.put_request(key, value) for key, value in written])
            driver.closed_loop(_plan(running.port, puts, operations_max=len(written)), stage.generators, ())
            calls = mixed(
                lambda key: (protobuf.RANGE, protobuf.get_request(key)),
                lambda key, value: (protobuf.PUT, protobuf.put_request(key, value)),
                scale.keys,
            )
            both = GrpcCalls("", [message for _, message in calls], paths=[path for path, _ in calls])
            yield _measure(stage, running.server, _plan(running.port, both, scale.turn_s))

    return turns


def _zookeeper(
    scale: Scale, written: Sequence[tuple[bytes, bytes]]
) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        running = zookeeper.serve(stage)
        with running.server:
            zookeeper.call(stage, running, [create("/bench", b"")])
            zookeeper.call(stage, running, [create(f"/{key.decode()}", value) for key, value in written])
            calls = mixed(
                lambda key: get_data(f"/{key.decode()}"),
                lambda key, value: set_data(f"/{key.decode()}", value),
                scale.keys,
            )
            yield _measure(stage, running.server, _plan(running.port, ZooKeeperCalls(calls), scale.turn_s))

    return turns


def _plan(port: int, calls: Calls, duration_s: float = 3600.0, *, operations_max: int = 0) -> ClosedLoop:
    return ClosedLoop(
        port=port,
        connections=_CONNECTIONS,
        depth=_DEPTH,
        calls=calls,
        duration_s=duration_s,
        operations_max=operations_max,
    )


def _measure(stage: Stage, server: Server, plan: ClosedLoop) -> Measure:
    return lambda: driver.closed_loop(plan, stage.generators, [server.pid])
