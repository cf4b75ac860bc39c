"""What does a key cost in memory, and how soon is a server there? Every turn starts a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import etcd, homeport
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, GrpcCalls, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.servers import Server
from benchmarks.stage import Stage
from benchmarks.suite.puts import entries
from homeport.client.core.messages import KvPut

_LOADERS: Final = 16
_DEPTH: Final = 16
_SETTLED_S: Final = 0.5  # after the last write, for what is still being synced, applied or freed
_TURNS: Final = 5
_METRICS: Final = (
    Metric("bytes_per_key", "B", "lower", headline=True),
    Metric("empty", "MiB", "lower"),
    Metric("start", "s", "lower"),
    Metric("restart", "s", "lower", headline=True),
    Metric("load_cpu", "us/op", "lower"),
)

# Starts a server on a folder and returns it with its port.
Start = Callable[[Stage, Path], tuple[Server, int]]


def cases(scale: Scale) -> tuple[Case, ...]:
    """One load: many keys, written once each."""

    def rpc(durable: bool) -> Start:
        def start(stage: Stage, data_dir: Path) -> tuple[Server, int]:
            registry = homeport.serve(
                stage,
                data_dir=data_dir if durable else None,
                name=f"homeport-{'durable' if durable else 'memory'}",
            )
            return registry.server, registry.rpc_port

        return start

    def ours() -> RpcCalls:
        return RpcCalls([rpc_body(KvPut(key=key, value=value)) for key, value in entries(scale.keys)])

    def peer(stage: Stage, data_dir: Path) -> tuple[Server, int]:
        running = etcd.serve(stage, data_dir)
        return running.server, running.port

    def theirs() -> GrpcCalls:
        return GrpcCalls(protobuf.PUT, [protobuf.put_request(key, value) for key, value in entries(scale.keys)])

    return (
        Case(
            "memory",
            "how much memory does a key cost, and how long does a start take, empty and with all keys?",
            f"{scale.keys} keys of 14 bytes with values of 200, written once; resident memory with them minus without",
            "homeport durable",
            (
                Contender(
                    "homeport durable",
                    "homeport serve --data-dir",
                    _turns(rpc(True), ours, durable=True),
                ),
                Contender("homeport memory", "homeport serve, in memory", _turns(rpc(False), ours, durable=False)),
                Contender("etcd", etcd.ABOUT, _turns(peer, theirs, durable=True), etcd.missing()),
            ),
            metrics=_METRICS,
            rounds_max=_TURNS,
            warm_ups=0,
        ),
    )


def _once(port: int, calls: RpcCalls | GrpcCalls) -> ClosedLoop:
    """Every call once."""
    count = len(calls.bodies if isinstance(calls, RpcCalls) else calls.messages)
    return ClosedLoop(port=port, connections=_LOADERS, depth=_DEPTH, calls=calls, operations_max=count)


def _turns(
    start: Start, keys: Callable[[], RpcCalls | GrpcCalls], *, durable: bool
) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        calls = keys()

        def measure() -> Turn:
            data_dir = stage.new_folder("data")
            server, port = start(stage, data_dir)
            plan = _once(port, calls)
            with server:
                empty_bytes = server.rss_bytes
                loaded = driver.closed_loop(plan, stage.generators, [server.pid])
                time.sleep(_SETTLED_S)
                used_bytes = server.rss_bytes - empty_bytes
            figures = {
                "bytes_per_key": used_bytes / plan.operations_max,
                "empty": empty_bytes / 2**20,
                "start": server.ready_s,
                "load_cpu": loaded.figures["server_cpu"],
            }
            if durable:
                again, _ = start(stage, data_dir)
                with again:
                    figures["restart"] = again.ready_s
            return Turn(figures, loaded.server_share, loaded.generator_share)

        yield measure

    return turns
