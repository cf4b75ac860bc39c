"""Clients that are slow, or too many: cut off or told so, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

SIZE = 300_000
ASK = b"GET /v1/kv/big?raw HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def impatient(registry: Registry, http: Http) -> AsyncIterator[HttpFront]:
    """A front that waits a second for slow clients; `http` talks to it."""
    front = HttpFront(
        registry.operations, rng=random.Random(1), first_head_s_max=1.0, stalled_s_max=1.0, bodies_bytes_max=400_000
    )
    http.at = await front.listen("127.0.0.1:0")
    http.front = front
    yield front
    await front.close()


async def connect(http: Http) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = http.at.split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost:"])
async def test_a_connection_that_does_not_get_to_ask_is_cut_off(
    http: Http, impatient: HttpFront, said: bytes, eventually: Eventually
) -> None:
    reader, writer = await connect(http)
    writer.write(said)
    try:
        async with asyncio.timeout(30):
            assert await reader.read() == b""
    finally:
        writer.close()
    assert impatient.numbers.connections_cut == 1
    await eventually(lambda: impatient.numbers.connections == 0)
    assert (await http("GET", "/healthz")).status == 200


async def test_a_connection_that_asked_once_may_be_idle_for_longer(http: Http, impatient: HttpFront) -> None:
    reader, writer = await connect(http)
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        writer.write(ask)
        async with asyncio.timeout(30):
            await reader.readuntil(b"ok\n")
            silent, other = await connect(http)
            assert await silent.read() == b"", "one that came later is cut off meanwhile"
            other.close()
            writer.write(ask)
            await reader.readuntil(b"ok\n")
    finally:
        writer.close()


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(
    http: Http, impatient: HttpFront, eventually: Eventually
) -> None:
    assert (await http("PUT", "/v1/kv/big", b"x" * SIZE)).status == 200
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        host, port = http.at.split(":")
        await asyncio.get_running_loop().sock_connect(slow, (host, int(port)))
        await asyncio.get_running_loop().sock_sendall(slow, ASK * 40)
        await eventually(lambda: impatient.numbers.connections_cut == 1)
    assert (await http("GET", "/v1/kv/big?raw")).body == b"x" * SIZE


async def test_a_client_that_reads_slowly_but_reads_gets_it_all(http: Http, impatient: HttpFront) -> None:
    assert (await http("PUT", "/v1/kv/big", b"x" * SIZE)).status == 200
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.setblocking(False)
        host, port = http.at.split(":")
        await loop.sock_connect(slow, (host, int(port)))
        await loop.sock_sendall(slow, ASK * 40)
        taken = 0
        async with asyncio.timeout(60):
            while taken < 40 * SIZE:
                taken += len(await loop.sock_recv(slow, 200_000))
                turn = asyncio.Event()
                loop.call_later(0.01, turn.set)
                await turn.wait()
    assert impatient.numbers.connections_cut == 0


async def test_bodies_share_a_budget_and_a_crowd_of_them_is_told_to_come_back(
    http: Http, impatient: HttpFront, eventually: Eventually
) -> None:
    head = b"PUT /v1/kv/part HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
    first_reader, first = await connect(http)
    try:
        first.write(head + b"1" * 299_999)
        await eventually(lambda: impatient.numbers.body_bytes == 299_999)
        second_reader, second = await connect(http)
        second.write(head + b"2" * 299_999)
        async with asyncio.timeout(30):
            refused = await second_reader.readuntil(b"\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 429 ")
            assert b"Retry-After: 1" in refused
            second.close()
            first.write(b"1")
            assert (await first_reader.readline()).startswith(b"HTTP/1.1 200 ")
    finally:
        first.close()
    assert (await http("GET", "/v1/kv/part?raw")).body == b"1" * 300_000
    assert (await http("PUT", "/v1/kv/part", b"3" * 300_000)).status == 200, "what was refused is free again"


async def test_blocking_queries_beyond_the_limit_are_told_to_come_back(registry: Registry, http: Http) -> None:
    front = HttpFront(registry.operations, rng=random.Random(1), blocked_max=1)
    http.at = await front.listen("127.0.0.1:0")
    http.front = front
    first = await http.blocked("/v1/kv/a?index=1")
    second = await http("GET", "/v1/kv/a?index=1")
    assert (second.status, second.headers["Retry-After"]) == (429, "1")
    await http("PUT", "/v1/kv/a", b"")
    assert (await first).status == 200
    await front.close()


def test_slow_clients_and_those_too_many_are_seen_to_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def body() -> None:
        async with Registry() as registry:
            front = HttpFront(registry.operations, connections_max=1, first_head_s_max=1.0, stalled_s_max=1.0)
            at = await front.listen("127.0.0.1:0")
            host, port = at.split(":")
            silent, silent_writer = await asyncio.open_connection(host, int(port))
            refused, refused_writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(30):
                refused_writer.write(ASK)
                assert (await refused.read()).startswith(b"HTTP/1.1 429 ")
                assert await silent.read() == b""
            assert (front.numbers.connections_refused, front.numbers.connections_cut) == (1, 1)
            silent_writer.close()
            refused_writer.close()
            await front.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())
