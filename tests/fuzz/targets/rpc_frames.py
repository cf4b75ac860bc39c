"""A connection sends anything: every call has one answer at most, the connection ends, and nobody else is hurt.

The first byte of a case says whether a hello comes first and how the rest is cut into pieces; the rest is what is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import msgpack

from homeport.client.core import wire
from homeport.client.core.messages import Hello
from homeport.mesh.testing.running import run_virtual
from homeport.registry import Registry

_ADDRESS = "127.0.0.1:7400"
_OPEN_S = 60.0  # past every time that a connection may take to say something
_HELLO = wire.ask(1, Hello(client="fuzzed"))
_ASK, _ANSWER, _TELL = 0, 1, 2


def one(data: bytes) -> None:
    """Run one case."""
    if data:
        run_virtual(_case(data[0], data[1:]), seed=1)


async def _case(mode: int, sent: bytes) -> None:
    if mode & 1:
        sent = _HELLO + sent
    size = mode // 2 + 1 if mode & 2 else len(sent) or 1
    async with Registry(node="fuzzed") as registry, registry.client() as other:
        await registry.serve(rpc=_ADDRESS)
        await other.kv.put("mine", b"1")
        host, port = _ADDRESS.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for at in range(0, len(sent), size):
            writer.write(sent[at : at + size])
        writer.write_eof()
        async with asyncio.timeout(_OPEN_S):
            try:
                received = await reader.read()
            except ConnectionError:
                received = b""
        writer.close()
        _check(sent, received)
        assert await other.kv.get("mine") is not None or b"mine" in sent, "another's key is gone"
        async with asyncio.timeout(_OPEN_S):
            assert isinstance(await other.services(), dict)


def _check(sent: bytes, received: bytes) -> None:
    asked = Counter(number for kind, number in _heads(sent) if kind == _ASK)
    for kind, number in _heads(received):
        assert kind in (_ANSWER, _TELL), "a registry asks nothing"
        if kind == _ANSWER:
            assert asked[number] > 0, f"nobody asked {number}, or it was answered before"
            asked[number] -= 1


def _heads(data: bytes) -> list[tuple[object, object]]:
    """Kind and number of each message at the beginning of some bytes, by another reader than ours."""
    whole = msgpack.Unpacker()
    whole.feed(data)
    found: list[tuple[object, object]] = []
    at = 0
    with contextlib.suppress(msgpack.UnpackException, ValueError, TypeError):  # no message, or not all of one
        while True:
            whole.skip()
            one = msgpack.Unpacker(raw=True)
            one.feed(data[at : whole.tell()])
            at = whole.tell()
            if one.read_array_header() >= 2:
                kind, number = one.unpack(), one.unpack()
                found.append((kind, number if isinstance(number, int) else None))
    return found
