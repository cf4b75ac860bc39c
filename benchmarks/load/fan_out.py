"""Watches one key very often and times each put until the last watch has heard of it.

Every put carries a mark that occurs nowhere else, and deliveries are counted by looking for it in the bytes that
arrive: the cheapest way, and the same for both systems. A delivery that never comes is a timeout, and an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from benchmarks.load import protobuf
from benchmarks.load.grpc import GrpcConnection, open_stream, streaming_frame, unary_call
from benchmarks.load.plan import BURST, FanOut, FanOutOutcome
from benchmarks.load.rpc import RpcConnection, head, rpc_body
from benchmarks.spread import histogram
from homeport.client.core.messages import KvPut, WatchKv

HOST: Final = "127.0.0.1"
_STANDING_S: Final = 60.0  # until all watches stand
_DELIVERY_S: Final = 60.0  # until the last of 10,000 has heard; both systems take well under a second
_BURST: Final = 100  # watches asked for at once, so that no HTTP/2 window is filled


class Tally:
    """How many watches have heard of the present mark."""

    def __init__(self, watches: int) -> None:
        self.mark = b""
        self.latencies_us: dict[int, int] = {}
        self._watches = watches
        self._heard = 0
        self._put_at = 0.0
        self._chunks: list[tuple[float, int]] = []  # when some were heard, and how many
        self._everybody: asyncio.Future[float] | None = None

    def expect(self, mark: bytes) -> asyncio.Future[float]:
        """Count deliveries of `mark` from now on; the result is when the last one came."""
        self.mark, self._heard = mark, 0
        self._everybody = asyncio.get_running_loop().create_future()
        self._put_at = time.perf_counter()
        return self._everybody

    def heard(self, count: int) -> None:
        if not count:
            return
        self._heard += count
        now = time.perf_counter()
        self._chunks.append((now - self._put_at, count))
        if self._heard >= self._watches and self._everybody is not None and not self._everybody.done():
            self._everybody.set_result(now)

    def tally(self) -> None:
        """Enter what was heard into the histogram: between puts, not while deliveries come."""
        for latency_s, count in self._chunks:
            (bucket,) = histogram((latency_s * 1e6,))
            self.latencies_us[bucket] = self.latencies_us.get(bucket, 0) + count
        self._chunks.clear()


class Listener:
    """One connection's share: asks for its watches burst by burst, then counts marks, also over chunk borders."""

    def __init__(self, tally: Tally, watches: int, ask: Callable[[range], None]) -> None:
        self.standing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._watches = watches
        self._ask = ask
        self._asked = self._answered = 0
        self._tail = b""

    def begin(self) -> None:
        burst = range(self._asked + 1, min(self._asked + _BURST, self._watches) + 1)
        self._asked += len(burst)
        self._ask(burst)

    def answered(self, count: int) -> None:
        """So many more watches stand."""
        self._answered += count
        if self._answered == self._watches:
            self.standing.set_result(None)
        elif self._answered == self._asked:
            self.begin()

    def arrived(self, data: bytes) -> None:
        mark = self._tally.mark
        data = self._tail + data
        self._tally.heard(data.count(mark))
        self._tail = data[1 - len(mark) :]


class RpcWatcher(RpcConnection):
    """Watches over MessagePack-RPC."""

    def __init__(self, tally: Tally, key: bytes, watches: int) -> None:
        super().__init__()
        self._key = key
        self.listener = Listener(tally, watches, self._ask)

    def _ask(self, numbers: range) -> None:
        asks = [head(0) + rpc_body(WatchKv(watch=number, key=self._key)) for number in numbers]
        self.transport.write(b"".join(asks))

    def messages_received(self, messages: list[bytes]) -> None:
        self.listener.answered(len(messages))

    def data_received(self, data: bytes) -> None:
        if self.listener.standing.done():
            self.listener.arrived(data)
        else:
            super().data_received(data)


class RpcPutter(RpcConnection):
    """Puts over MessagePack-RPC."""

    def put(self, key: bytes, value: bytes) -> None:
        self.transport.write(head(0) + rpc_body(KvPut(key=key, value=value)))

    def messages_received(self, messages: list[bytes]) -> None:
        """The answer; what counts is the delivery."""


class GrpcWatcher(GrpcConnection):
    """Watches over etcd's Watch call, all of a connection's on one stream, as its clients do."""

    def __init__(self, tally: Tally, key: bytes, watches: int, authority: str) -> None:
        super().__init__()
        self._ask_frame = streaming_frame(protobuf.watch_create_request(key))
        self._authority = authority
        self._open = False
        self.listener = Listener(tally, watches, self._ask)

    def _ask(self, numbers: range) -> None:
        opening = b"" if self._open else open_stream(protobuf.WATCH, self._authority)
        self._open = True
        self.transport.write(opening + self._ask_frame * len(numbers))

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        self.listener.answered(1)  # that the watch was created: one small message, one frame

    def data_received(self, data: bytes) -> None:
        if self.listener.standing.done():  # nothing is sent any more, so the server has no pings to be answered
            self.listener.arrived(data)
        else:
            super().data_received(data)


class GrpcPutter(GrpcConnection):
    """Puts over etcd's Put call."""

    def __init__(self, authority: str) -> None:
        super().__init__()
        self._authority = authority
        self._next_stream = 1

    def put(self, key: bytes, value: bytes) -> None:
        request = protobuf.put_request(key, value)
        self.transport.write(unary_call(protobuf.PUT, self._authority, self._next_stream, request))
        self._next_stream += 2

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        """The answer; what counts is the delivery."""


class _Watcher(Protocol):
    listener: Listener
    opened: asyncio.Future[None]
    transport: asyncio.Transport


async def run(plan: FanOut, ready: Callable[[], Awaitable[None]]) -> FanOutOutcome:
    """Carry out the plan; `ready` says so to whoever drives this process and returns when it shall begin.

    Raises:
        OSError: there is no connection, or a delivery did not come (TimeoutError).
    """
    loop = asyncio.get_running_loop()
    share, rest = divmod(plan.watches, plan.connections)
    assert not rest, "as many watches on every connection"
    tally = Tally(plan.watches)
    authority = f"{HOST}:{plan.port}"
    watchers: list[_Watcher] = []
    putter: RpcPutter | GrpcPutter
    for _ in range(plan.connections):
        if plan.system == "rpc":
            _, rpc_watcher = await loop.create_connection(lambda: RpcWatcher(tally, plan.key, share), HOST, plan.port)
            watchers.append(rpc_watcher)
        else:
            _, grpc_watcher = await loop.create_connection(
                lambda: GrpcWatcher(tally, plan.key, share, authority), HOST, plan.port
            )
            watchers.append(grpc_watcher)
        if len(watchers) % BURST == 0:
            await asyncio.gather(*(watcher.opened for watcher in watchers[-BURST:]))
    if plan.system == "rpc":
        _, putter = await loop.create_connection(RpcPutter, HOST, plan.port)
    else:
        _, putter = await loop.create_connection(lambda: GrpcPutter(authority), HOST, plan.port)
    async with asyncio.timeout(_STANDING_S):
        await asyncio.gather(putter.opened, *(watcher.opened for watcher in watchers))
        for watcher in watchers:
            watcher.listener.begin()
        await asyncio.gather(*(watcher.listener.standing for watcher in watchers))
    await ready()
    cpu_at, started_at = time.process_time(), time.perf_counter()
    deliveries_s = []
    for number in range(plan.puts):
        mark = b"<mark %09d>" % number
        everybody = tally.expect(mark)
        put_at = time.perf_counter()
        putter.put(plan.key, mark.ljust(plan.value_bytes, b"."))
        async with asyncio.timeout(_DELIVERY_S):
            deliveries_s.append(await everybody - put_at)
        tally.tally()
    wall_s, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_at
    outcome = FanOutOutcome(deliveries_s, wall_s, cpu_s, tally.latencies_us)
    for watcher in watchers:
        watcher.transport.abort()
    putter.transport.abort()
    return outcome
