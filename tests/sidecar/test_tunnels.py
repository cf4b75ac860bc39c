"""Tunnels: CONNECT to names of the catalogue, upgrades, and how each direction of them ends by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from homeport.sidecar import Timeouts

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw

CONNECT = b"CONNECT orders:443 HTTP/1.1\r\nHost: orders:443\r\n\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
BIG = b"0123456789abcdef" * (1 << 18)  # 4 MiB


async def shout(raw: Raw) -> None:
    """Whatever comes goes back in capitals, until the other end has nothing more to say."""
    while data := await raw.reader.read(1 << 16):
        raw.send(data.upper())
        await raw.writer.drain()


async def test_connect_to_a_name_of_the_catalogue_is_a_tunnel_to_one_of_its_instances(net: Net) -> None:
    sidecar = await net.proxy_to(await net.upstream(shout))
    client = await net.dial(sidecar)
    client.send(CONNECT + b"ahead ")  # who does not wait for the answer loses nothing
    head = await client.head()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length" not in head.lower()
    client.send(b"\0\xff\r\n\r\nget")
    client.writer.write_eof()
    assert await client.until_end() == b"AHEAD \0\xff\r\n\r\nGET"
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0


@pytest.mark.parametrize("target", [b"127.0.0.1:22", b"example.com:443", b"[::1]:22", b"localhost:80"])
async def test_connect_to_anything_else_is_404_nr(net: Net, target: bytes) -> None:
    sidecar = await net.proxy_to()
    answer = await net.ask(sidecar, b"CONNECT %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"flags: NR\r\n" in answer
    assert not net.registrar.asked.is_set()


@pytest.mark.parametrize("target", [b"orders", b"orders:", b"orders:http", b"me@orders:80", b"/", b"http://orders:80/"])
async def test_connect_needs_host_and_port(net: Net, target: bytes) -> None:
    made = await net.answering(net.ok())
    answer = await net.ask(await net.proxy_to(made), b"CONNECT %b HTTP/1.1\r\nHost: orders\r\n\r\nGET" % target)
    assert answer.startswith(b"HTTP/1.1 40"), answer
    assert made.connections == 0


async def test_connect_goes_to_another_instance_when_the_first_does_not_take_it(net: Net) -> None:
    alive = await net.upstream(shout)
    dead = await net.upstream(shout)
    dead.port = 1
    sidecar = await net.proxy_to(dead, alive)
    for _ in range(4):
        client = await net.dial(sidecar)
        client.send(CONNECT + b"x")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.exactly(1) == b"X"


async def test_inbound_refuses_connect(net: Net) -> None:
    made = await net.answering(net.ok())
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=made.address)
    answer = await net.ask(sidecar, CONNECT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), "inbound")
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_a_tunnel_whose_both_directions_have_ended_is_closed_after_its_last_byte(
    net: Net, first: str, eventually: Eventually
) -> None:
    ended = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(SWITCHED)
        if first == "client":
            assert await raw.until_end() == BIG
        raw.send(BIG)
        raw.writer.write_eof()
        if first == "upstream":
            assert await raw.until_end() == BIG
        else:
            await raw.writer.drain()
        ended.set()
        await asyncio.Event().wait()  # the connection is left to the proxy to close

    sidecar = await net.proxy_to(await net.upstream(script))
    client = await net.dial(sidecar)
    client.send(UPGRADE)
    head = await client.head()
    assert head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")), head
    if first == "client":
        client.send(BIG)
        client.writer.write_eof()
    assert await client.until_end() == BIG
    if first == "upstream":
        client.send(BIG)
        client.writer.write_eof()
    async with asyncio.timeout(net.patience_s):
        await ended.wait()
    outbound = sidecar.outbound
    assert outbound is not None
    await eventually(lambda: not outbound.active and not outbound.connections)
    (endpoint,) = outbound.clusters["orders"].endpoints.values()
    assert endpoint.active == 0


async def test_a_client_that_ended_before_the_upgrade_was_answered_is_heard_to_have_ended(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(SWITCHED)
        raw.send(b"last words: %b" % await raw.until_end())

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(UPGRADE + b"bye")
    client.writer.write_eof()
    assert (await client.until_end()).endswith(b"last words: bye")


async def test_a_silent_tunnel_ends_and_a_talking_one_outlives_the_total_timeout(net: Net) -> None:
    sidecar = await net.proxy_to(await net.upstream(shout), timeouts=Timeouts(tunnel_s=2.0, total_s=1.0))
    client = await net.dial(sidecar)
    client.send(CONNECT)
    head = await client.head()
    assert head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")), head
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < began + 1.5:
        client.send(b"a")
        assert await client.exactly(1) == b"A"
        await asyncio.sleep(0.05)
    assert await client.until_end() == b""


async def test_a_tunnel_holds_back_whichever_end_is_ahead(net: Net) -> None:
    go = asyncio.Event()

    async def script(raw: Raw) -> None:
        await go.wait()
        await shout(raw)

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(CONNECT)
    head = await client.head()
    assert head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")), head
    sent = 0
    while True:  # until nothing more goes in
        client.send(BIG)
        sent += len(BIG)
        try:
            async with asyncio.timeout(0.3):
                await client.writer.drain()
        except TimeoutError:
            break
    assert sent < 64 << 20
    go.set()
    got = 0
    client.writer.write_eof()
    while data := await client.reader.read(1 << 16):
        got += len(data)
    assert got == sent
