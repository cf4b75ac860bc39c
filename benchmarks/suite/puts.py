"""How fast are writes? Beside etcd, on the same disk, both pinned to one core.

With many writes in flight both systems share one sync among several of them; with one at a time the figure is the
latency of a single write, sync included. In memory shows what the disk costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Scale
from benchmarks.contenders import etcd, homeport
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, GrpcCalls, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.stage import Stage
from homeport.client.core.messages import KvPut

_VALUE_BYTES: Final = 200
_KEYS: Final = 10_000  # written over and over in a shuffled order
_SEED: Final = 1  # everyone writes the same


def cases(scale: Scale) -> tuple[Case, ...]:
    """Many writers, and one that waits for each write."""
    load = f"puts of {_VALUE_BYTES} bytes to {_KEYS} keys, {{}}"
    return (
        Case(
            "puts/64x16",
            "how many writes a second, when many clients write at once?",
            load.format("64 connections with 16 in flight"),
            "homeport durable",
            _contenders(scale, connections=64, depth=16),
        ),
        Case(
            "puts/1x1",
            "how long does one write take, when nobody else writes?",
            load.format("1 connection with 1 in flight"),
            "homeport durable",
            _contenders(scale, connections=1, depth=1),
        ),
    )


def _contenders(scale: Scale, connections: int, depth: int) -> tuple[Contender, ...]:
    def rpc(durable: bool) -> Callable[[Stage], AbstractContextManager[Measure]]:
        @contextmanager
        def turns(stage: Stage) -> Iterator[Measure]:
            data_dir = stage.new_folder("homeport") if durable else None
            registry = homeport.serve(stage, data_dir=data_dir, name=f"homeport-{'durable' if durable else 'memory'}")
            with registry.server:
                plan = ClosedLoop(
                    port=registry.rpc_port,
                    connections=connections,
                    depth=depth,
                    calls=RpcCalls([rpc_body(KvPut(key=key, value=value)) for key, value in entries(_KEYS)]),
                    duration_s=scale.turn_s,
                )
                yield lambda: driver.closed_loop(plan, stage.generators, [registry.server.pid])

        return turns

    @contextmanager
    def peer(stage: Stage) -> Iterator[Measure]:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server:
            plan = ClosedLoop(
                port=running.port,
                connections=connections,
                depth=depth,
                calls=GrpcCalls(protobuf.PUT, [protobuf.put_request(key, value) for key, value in entries(_KEYS)]),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [running.server.pid])

    return (
        Contender(
            "homeport durable",
            "homeport serve --data-dir, every write synced",
            rpc(True),
        ),
        Contender("homeport memory", "homeport serve, in memory: not durable", rpc(False)),
        Contender("etcd", etcd.ABOUT, peer, etcd.missing()),
    )


def entries(count: int) -> list[tuple[bytes, bytes]]:
    """So many keys in a shuffled order, with values that do not compress to nothing."""
    rng = random.Random(_SEED)
    found = [(b"bench/%08d" % number, rng.randbytes(_VALUE_BYTES)) for number in range(count)]
    rng.shuffle(found)
    return found
