"""Opens the connections of a `ClosedLoop`, waits for the word to go, and reports what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.load.grpc import IN_FLIGHT_BYTES_MAX, StreamingLane, UnaryLane, streaming_frame, unary_frame
from benchmarks.load.meter import Meter
from benchmarks.load.plan import DEPTH_MAX, ClosedLoop, GrpcCalls, Outcome, RpcCalls, ZooKeeperCalls
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


def _prepare(plan: ClosedLoop) -> tuple[Meter[bytes], Callable[[], Lane]]:
    match plan.calls:
        case RpcCalls(bodies):
            meter = Meter(bodies, plan.operations_max)
            return meter, lambda: RpcLane(meter, plan.depth)
        case ZooKeeperCalls(bodies):
            meter = Meter(bodies, plan.operations_max)
            return meter, lambda: ZooKeeperLane(meter, plan.depth)
        case GrpcCalls(path, messages, streaming):
            frames = [(streaming_frame if streaming else unary_frame)(each) for each in messages]
            # Headers come on top, about 150 bytes for each call.
            assert plan.depth * (max(map(len, frames)) + 150) <= IN_FLIGHT_BYTES_MAX
            meter = Meter(frames, plan.operations_max)
            lane = StreamingLane if streaming else UnaryLane
            return meter, lambda: lane(meter, plan.depth, path, f"{HOST}:{plan.port}")
