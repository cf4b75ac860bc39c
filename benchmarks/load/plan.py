"""What a generator process is told to do, and what it says afterwards; MessagePack between the two.

Everything that is sent is encoded here, before the clock runs, so that the generator costs less than any server.
"""

from __future__ import annotations

from typing import Final

import msgspec

BURST: Final = 32  # connections opened at once: more than that find a server's line full, and try again after a second
DEPTH_MAX: Final = 128  # slots are MessagePack's one-byte integers


class RpcCalls(msgspec.Struct, frozen=True, tag="rpc"):
    """MessagePack-RPC calls, in turn: each everything that follows the msgid, as `rpc_body` makes it."""

    bodies: list[bytes]


class GrpcCalls(msgspec.Struct, frozen=True, tag="grpc"):
    """gRPC messages, in turn, each a protobuf and a call; with `streaming`, all of a connection are one call.

    `paths`, if there are any, has one for each message, and `path` is not used.
    """

    path: str
    messages: list[bytes]
    streaming: bool = False
    paths: list[str] = []


class ZooKeeperCalls(msgspec.Struct, frozen=True, tag="zookeeper"):
    """ZooKeeper's calls, in turn: each everything that follows the xid."""

    bodies: list[bytes]


Calls = RpcCalls | GrpcCalls | ZooKeeperCalls


class ClosedLoop(msgspec.Struct, frozen=True, kw_only=True, tag="closed_loop"):
    """Each connection keeps `depth` calls in flight for `duration_s`, or until `operations_max` are done, if not 0."""

    port: int
    connections: int
    depth: int
    calls: Calls
    duration_s: float = 3600.0
    operations_max: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """What one generator process did."""

    operations: int
    failed: int
    wall_s: float
    cpu_s: float
    latencies_us: dict[int, int]  # a histogram of `benchmarks.spread`
    first_error: str


class FanOut(msgspec.Struct, frozen=True, kw_only=True, tag="fan_out"):
    """`watches` of one key over `connections`; then `puts` of that key, each when the last was delivered to all."""

    port: int
    system: str  # "rpc" or "grpc"
    connections: int
    watches: int
    puts: int
    key: bytes = b"fanout"
    value_bytes: int = 200


class FanOutOutcome(msgspec.Struct, frozen=True):
    """Seconds from each put to its last delivery; and how long every single one took, where that is counted."""

    deliveries_s: list[float]
    wall_s: float
    cpu_s: float
    latencies_us: dict[int, int] = {}  # a histogram of `benchmarks.spread`


class Crowd(msgspec.Struct, frozen=True, kw_only=True, tag="crowd"):
    """`clients` HTTP connections that want one key, `rounds` times: each blocked until it changes, or all at once."""

    port: int
    clients: int
    rounds: int
    blocked: bool


class OpenLoop(msgspec.Struct, frozen=True, kw_only=True, tag="open_loop"):
    """`rate` HTTP requests a second for `duration_s`, over at most `connections` at once, due at even intervals."""

    port: int
    rate: float
    connections: int
    duration_s: float
    host: str
    path: str = "/"
    body_bytes: int = 0  # of a POST; 0: a GET


class Hardy(msgspec.Struct, frozen=True, kw_only=True, tag="hardy"):
    """An open loop that goes on when requests fail; one that is not answered in `patience_s` has failed."""

    load: OpenLoop
    patience_s: float


class HardyOutcome(msgspec.Struct, frozen=True):
    """What became of the requests; moments are of the system's monotonic clock."""

    answered: int
    failed_at_s: list[float]
    slowest_s: float  # the longest wait for an answer that came


Plan = ClosedLoop | OpenLoop | Hardy | FanOut | Crowd
