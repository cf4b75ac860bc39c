"""aiohttp, client and server, over the memory network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from homeport.mesh.testing import NotVirtualError, connector_factory, running_loop, virtual_now, virtual_time


async def answer(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), headers={"X-Path": request.path})


async def linger(request: web.Request) -> web.Response:
    await asyncio.sleep(3_600)
    return web.Response()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[web.AppRunner]:
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/linger", linger)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


@virtual_time()
async def test_a_session_reaches_a_server_through_the_memory_connector() -> None:
    async with serving() as runner, aiohttp.ClientSession(connector=connector_factory()) as session:
        await web.TCPSite(runner, "127.0.0.1", 8_080).start()
        for host in ("127.0.0.1", "localhost"):
            async with session.post(f"http://{host}:8080/orders", data=b"x" * 1_000_000) as response:
                assert response.status == 200
                assert response.headers["X-Path"] == "/orders"
                assert await response.read() == b"x" * 1_000_000


@virtual_time()
async def test_a_server_made_by_the_loop_is_reached_on_the_port_it_got() -> None:
    async with serving() as runner, aiohttp.ClientSession(connector=connector_factory()) as session:
        assert runner.server is not None
        server = await running_loop().create_server(runner.server, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with session.get(f"http://127.0.0.1:{port}/") as response:
            assert response.status == 200
        server.close()


@virtual_time()
async def test_a_session_reaches_a_server_through_a_unix_connector() -> None:
    async with serving() as runner, aiohttp.ClientSession(connector=aiohttp.UnixConnector("/run/orders")) as session:
        await web.UnixSite(runner, "/run/orders").start()
        async with session.post("http://orders/", data=b"hello") as response:
            assert await response.read() == b"hello"


@virtual_time()
async def test_many_requests_share_their_connections() -> None:
    async with serving() as runner, aiohttp.ClientSession(connector=connector_factory()) as session:
        await web.TCPSite(runner, "127.0.0.1", 8_080).start()

        async def call(number: int) -> None:
            async with session.post("http://127.0.0.1:8080/", data=b"%d" % number) as response:
                assert await response.read() == b"%d" % number

        for _ in range(5):
            await asyncio.gather(*[call(number) for number in range(10)])
        assert len(running_loop().network.streams) == 20  # ten connections, two ends each


@virtual_time()
async def test_a_total_timeout_passes_in_virtual_time() -> None:
    async with serving() as runner, aiohttp.ClientSession(connector=connector_factory()) as session:
        await web.TCPSite(runner, "127.0.0.1", 8_080).start()
        before = virtual_now()
        with pytest.raises(TimeoutError):
            await session.get("http://127.0.0.1:8080/linger", timeout=aiohttp.ClientTimeout(total=2))
        assert 2 <= virtual_now() - before < 3


@virtual_time()
async def test_a_connect_timeout_passes_in_virtual_time() -> None:
    network = running_loop().network
    with network.host("10.0.0.2"):
        await asyncio.start_server(lambda _, writer: writer.close(), "10.0.0.2", 80)
    network.partition("10.0.0.2")
    async with aiohttp.ClientSession(connector=connector_factory()) as session:
        before = virtual_now()
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.get("http://10.0.0.2/", timeout=aiohttp.ClientTimeout(sock_connect=2))
        assert 2 <= virtual_now() - before < 3


@virtual_time()
async def test_a_refused_connection_is_aiohttps_own_error() -> None:
    async with aiohttp.ClientSession(connector=connector_factory()) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get("http://127.0.0.1:1/")
        assert isinstance(caught.value.os_error, ConnectionRefusedError)


@virtual_time()
async def test_a_reset_connection_is_aiohttps_own_error() -> None:
    network = running_loop().network
    async with serving() as runner, aiohttp.ClientSession(connector=connector_factory()) as session:
        await web.TCPSite(runner, "127.0.0.1", 8_080).start()
        running_loop().call_later(5, network.reset_all, 8_080)
        with pytest.raises(aiohttp.ClientOSError):
            await session.post("http://127.0.0.1:8080/linger")  # aiohttp tries a GET again


@virtual_time()
async def test_tls_and_proxies_are_refused() -> None:
    async with aiohttp.ClientSession(connector=connector_factory()) as session:
        with pytest.raises(NotVirtualError, match="TLS"):
            await session.get("https://127.0.0.1:1/")
        with pytest.raises(NotVirtualError, match="proxied"):
            await session.get("http://127.0.0.1:1/", proxy="http://127.0.0.1:2")
