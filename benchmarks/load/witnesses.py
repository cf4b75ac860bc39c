"""Clients that want to know who is there: `python -m benchmarks.load.witnesses SYSTEM PORT COUNT`.

Each has a connection and a watch of its own. It says `watching` when all of them know the instance of `holder`, and at
its end the seconds of the monotonic clock when the first and when the last of them heard that it is gone.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from benchmarks.load import protobuf
from benchmarks.load.grpc import GrpcConnection, open_stream, streaming_frame
from benchmarks.load.holder import ID, PATH, SERVICE
from benchmarks.load.zookeeper import EVENT, connect, exists, framed, ping
from homeport.client import Client

_HOST: Final = "127.0.0.1"
_SESSION_S: Final = 10.0  # of ZooKeeper's watchers, who ping at a third of it

Heard = Callable[[], None]


@asynccontextmanager
async def _homeport(port: int, count: int, heard: Heard) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(count):
            client = await stack.enter_async_context(Client(f"{_HOST}:{port}", name="witness"))
            following = client.subscribe(SERVICE)
            assert await following.wait_known(10.0)
            assert any(instance.id == ID and instance.available for instance in following.instances.values())
            told = _once(heard)

            def changed(_event: object, following: object = following, told: Heard = told) -> None:
                there = following.instances.values()  # type: ignore[attr-defined]  # a Subscription
                if not any(instance.id == ID and instance.available for instance in there):
                    told()

            following.listen(changed)
        yield


def _once(heard: Heard) -> Heard:
    """Only the first time counts."""
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            heard()

    return tell


class _EtcdWatcher(GrpcConnection):
    """One watch of one key; whatever comes after the answer that it stands is the deletion."""

    def __init__(self, authority: str, heard: Heard) -> None:
        super().__init__()
        self.standing = asyncio.get_running_loop().create_future()
        self._authority = authority
        self._heard = _once(heard)

    def begin(self) -> None:
        request = protobuf.watch_create_request(f"s/{SERVICE}/{ID}".encode())
        self.transport.write(open_stream(protobuf.WATCH, self._authority) + streaming_frame(request))

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        if not self.standing.done():
            self.standing.set_result(None)
        else:
            self._heard()


@asynccontextmanager
async def _etcd(port: int, count: int, heard: Heard) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        _, watcher = await loop.create_connection(lambda: _EtcdWatcher(f"{_HOST}:{port}", heard), _HOST, port)
        await watcher.opened
        watcher.begin()
        await watcher.standing
    yield


class _ZooKeeperWatcher(asyncio.Protocol):
    """One session with one watch of one node."""

    def __init__(self, heard: Heard) -> None:
        self.standing = asyncio.get_running_loop().create_future()
        self._heard = _once(heard)
        self._received = b""
        self._frames = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(connect(_SESSION_S))

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 4:
            (size,) = struct.unpack_from(">i", self._received)
            if len(self._received) < 4 + size:
                return
            frame, self._received = self._received[4 : 4 + size], self._received[4 + size :]
            self._frames += 1
            if self._frames == 1:
                self._transport.write(framed(1, exists(PATH)))
            elif self._frames == 2:
                self.standing.set_result(None)
                self._ping()
            elif struct.unpack_from(">i", frame)[0] == EVENT:
                self._heard()

    def _ping(self) -> None:
        self._transport.write(ping())
        asyncio.get_running_loop().call_later(_SESSION_S / 3, self._ping)


@asynccontextmanager
async def _zookeeper(port: int, count: int, heard: Heard) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        _, watcher = await loop.create_connection(lambda: _ZooKeeperWatcher(heard), _HOST, port)
        await watcher.standing
    yield


SYSTEMS: Final = {"homeport": _homeport, "etcd": _etcd, "zookeeper": _zookeeper}


async def _run(system: str, port: int, count: int) -> None:
    moments: list[float] = []
    everybody = asyncio.Event()

    def heard() -> None:
        moments.append(time.monotonic())
        if len(moments) == count:
            everybody.set()

    async with SYSTEMS[system](port, count, heard):
        print("watching", flush=True)
        await everybody.wait()
        print(json.dumps([moments[0], moments[-1]]), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
