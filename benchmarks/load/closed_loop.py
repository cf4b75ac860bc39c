"""Opens the connections of a `ClosedLoop`, waits for the word to go, and reports what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.load.grpc import (
    IN_FLIGHT_BYTES_MAX,
    StreamingLane,
    UnaryCall,
    UnaryLane,
    streaming_frame,
    unary_parts,
)
from benchmarks.load.meter import Meter
from benchmarks.load.plan import BURST, DEPTH_MAX, ClosedLoop, GrpcCalls, Outcome, RpcCalls, ZooKeeperCalls
from benchmarks.load.rpc import RpcLane
from benchmarks.load.zookeeper import ZooKeeperLane

HOST: Final = "127.0.0.1"
_OPEN_S: Final = 30.0  # for all connections and their hellos

Lane = RpcLane | UnaryLane | StreamingLane | ZooKeeperLane


async def run(plan: ClosedLoop, ready: Callable[[], Awaitable[None]]) -> Outcome:
    """Carry out the plan; `ready` says so to whoever drives this process and returns when it shall begin.

    Raises:
        OSError: there is no connection, or it was lost.
    """
    assert plan.depth <= DEPTH_MAX
    loop = asyncio.get_running_loop()
    meter, make = _prepare(plan)
    lanes: list[Lane] = []
    async with asyncio.timeout(_OPEN_S):
        for _ in range(plan.connections):
            _, lane = await loop.create_connection(make, HOST, plan.port)
            lanes.append(lane)
            if len(lanes) % BURST == 0:
                await asyncio.gather(*(each.opened for each in lanes[-BURST:]))
        await asyncio.gather(*(lane.opened for lane in lanes))
    await ready()
    meter.start()
    for lane in lanes:
        lane.begin()
    timer = loop.call_later(plan.duration_s, meter.stop)
    await meter.finished
    timer.cancel()
    for lane in lanes:
        lane.transport.abort()
    return meter.outcome()


def _prepare(plan: ClosedLoop) -> tuple[Meter[bytes] | Meter[UnaryCall], Callable[[], Lane]]:
    match plan.calls:
        case RpcCalls(bodies):
            rpc = Meter(bodies, plan.operations_max)
            return rpc, lambda: RpcLane(rpc, plan.depth)
        case ZooKeeperCalls(bodies):
            zookeeper = Meter(bodies, plan.operations_max)
            return zookeeper, lambda: ZooKeeperLane(zookeeper, plan.depth)
        case GrpcCalls() as calls:
            authority = f"{HOST}:{plan.port}"
            # Headers come on top, about 150 bytes for each call.
            assert plan.depth * (max(map(len, calls.messages)) + 160) <= IN_FLIGHT_BYTES_MAX
            if calls.streaming:
                stream = Meter([streaming_frame(each) for each in calls.messages], plan.operations_max)
                return stream, lambda: StreamingLane(stream, plan.depth, calls.path, authority)
            paths = calls.paths or [calls.path] * len(calls.messages)
            whole = [unary_parts(path, authority, each) for path, each in zip(paths, calls.messages, strict=True)]
            unary = Meter(whole, plan.operations_max)
            return unary, lambda: UnaryLane(unary, plan.depth)
