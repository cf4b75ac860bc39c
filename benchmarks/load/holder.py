"""An instance that keeps itself registered: `python -m benchmarks.load.holder SYSTEM PORT TTL_S`; says `held`.

What is killed or stopped to see who hears of it, and when. Each system's own way: a registration with a lease that is
renewed; etcd's lease, key and keep-alive stream; ZooKeeper's session with an ephemeral node and pings. All renew at a
third of their time.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Final

from benchmarks.load import protobuf
from benchmarks.load.grpc import GrpcConnection, open_stream, streaming_frame, unary_call
from benchmarks.load.zookeeper import connect, create, framed, ping
from homeport.client import Client

SERVICE: Final = "orders"
ID: Final = "orders-that-dies"  # occurs in every message that tells of it
PATH: Final = f"/{ID}"
_HOST: Final = "127.0.0.1"
_LEASE: Final = 4711
_RENEWALS_PER_TTL: Final = 3


async def _homeport(port: int, ttl_s: float) -> None:
    client = Client(f"{_HOST}:{port}", name="holder")
    async with client, client.register(SERVICE, port=1, id=ID, ttl_s=ttl_s):
        _held()
        await asyncio.Event().wait()


class _Calls(GrpcConnection):
    """Counts answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: asyncio.Queue[int] = asyncio.Queue()

    def data_frame(self, stream: int, data: bytes, start: int, end: int) -> None:
        self.answers.put_nowait(stream)


async def _etcd(port: int, ttl_s: float) -> None:
    authority = f"{_HOST}:{port}"
    _, alive = await asyncio.get_running_loop().create_connection(_Calls, _HOST, port)
    _, calls = await asyncio.get_running_loop().create_connection(_Calls, _HOST, port)
    await asyncio.gather(alive.opened, calls.opened)
    grant = protobuf.lease_grant_request(_LEASE, round(ttl_s))
    calls.transport.write(unary_call(protobuf.LEASE_GRANT, authority, 1, grant))
    await calls.answers.get()
    put = protobuf.put_request(f"s/{SERVICE}/{ID}".encode(), ID.encode(), lease=_LEASE)
    calls.transport.write(unary_call(protobuf.PUT, authority, 3, put))
    await calls.answers.get()
    alive.transport.write(open_stream(protobuf.LEASE_KEEP_ALIVE, authority))
    _held()
    while True:
        alive.transport.write(streaming_frame(protobuf.lease_keep_alive_request(_LEASE)))
        await asyncio.sleep(ttl_s / _RENEWALS_PER_TTL)


async def _zookeeper(port: int, ttl_s: float) -> None:
    reader, writer = await asyncio.open_connection(_HOST, port)
    writer.write(connect(ttl_s))
    await _answer(reader)
    writer.write(framed(1, create(PATH, ID.encode(), ephemeral=True)))
    await _answer(reader)
    _held()
    while True:
        await asyncio.sleep(ttl_s / _RENEWALS_PER_TTL)
        writer.write(ping())
        await _answer(reader)


async def _answer(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


def _held() -> None:
    print("held", flush=True)


SYSTEMS: Final = {"homeport": _homeport, "etcd": _etcd, "zookeeper": _zookeeper}

if __name__ == "__main__":
    asyncio.run(SYSTEMS[sys.argv[1]](int(sys.argv[2]), float(sys.argv[3])))
