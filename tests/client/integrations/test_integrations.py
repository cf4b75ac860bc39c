"""`http://orders/…` in the libraries that people already use: balanced, past the dead, and nobody else's business."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import aiohttp
import grpc
import grpc.aio
import httpx
import pytest
import requests
from aiohttp import web
from starlette.applications import Starlette

from homeport.client import Client, Closed, Unavailable, blocking
from homeport.client.integrations.aiohttp import HomeportMiddleware, HomeportResolver
from homeport.client.integrations.asgi import registered
from homeport.client.integrations.grpc import GrpcChannel
from homeport.client.integrations.httpx import AsyncHomeportTransport, HomeportTransport
from homeport.client.integrations.requests import HomeportAdapter
from homeport.client.integrations.sending import service_of
from homeport.registry import Registry, RegistryThread

MODULES = ("aiohttp", "httpx", "requests", "grpc", "asgi")


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("orders", "orders"),
        ("Orders", "orders"),
        ("orders.service.homeport", "orders"),
        ("localhost", None),
        ("example.com", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_host_names_a_service_only_without_dots_or_in_the_mesh_s_domain(host: str, service: str | None) -> None:
    assert service_of(host) == service


@pytest.mark.parametrize("name", MODULES)
def test_importing_one_never_imports_another(name: str) -> None:
    others = sorted({"aiohttp", "httpx", "requests", "grpc", "starlette", "homeport.registry"} - {name})
    code = f"import sys, homeport.client.integrations.{name}; print(sorted(set({others!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- async ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(client: Client, *names: str, dead: int = 0) -> AsyncIterator[None]:
    """Instances of `orders` that answer with their names and what they were asked; and some that nobody serves."""
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()

        def handler(name: str) -> Any:
            async def handle(request: web.BaseRequest) -> web.Response:
                body = (await request.read()).decode()
                return web.Response(text=f"{name} {request.method} {request.headers['Host']}{request.path_qs} {body}")

            return handle

        for name in names:
            app = web.Server(handler(name))
            server = await loop.create_server(app, "127.0.0.1", 0)
            stack.callback(server.close)
            stack.push_async_callback(app.shutdown, 0)
            port = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(client.register("orders", id=name, port=port))
        for number in range(dead):
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            server.close()
            await stack.enter_async_context(client.register("orders", id=f"dead-{number}", port=port))
        yield


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Registry() as registry, registry.client() as client:
        yield client


async def test_aiohttp_balances_each_request_and_passes_the_dead(client: Client) -> None:
    middlewares = [HomeportMiddleware(client)]
    async with serving(client, "a", "b", dead=1), aiohttp.ClientSession(middlewares=middlewares) as session:
        seen = set()
        for _ in range(40):
            async with session.post("http://orders/x?y=1", data=b"body") as response:
                assert response.status == 200
                name, *rest = (await response.text()).split(" ")
                assert rest == ["POST", "orders/x?y=1", "body"]
                seen.add(name)
        assert seen == {"a", "b"}


async def test_aiohttp_says_that_nobody_serves_a_service(client: Client) -> None:
    async with aiohttp.ClientSession(middlewares=[HomeportMiddleware(client)]) as session:
        with pytest.raises(Unavailable, match="nobody serves 'orders': it has no instance"):
            await session.get("http://orders/")


async def test_aiohttp_s_connector_takes_our_resolver(client: Client) -> None:
    async with serving(client, "a"):
        connector = aiohttp.TCPConnector(resolver=HomeportResolver(client), use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get("http://orders/") as response:
                assert (await response.text()).startswith("a GET orders/")
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get("http://nobody/")


async def test_httpx_balances_each_request_and_passes_the_dead(client: Client) -> None:
    transport = AsyncHomeportTransport(client)
    async with serving(client, "a", "b", dead=1), httpx.AsyncClient(transport=transport) as http:
        seen = set()
        for _ in range(40):
            response = await http.post("http://orders/x?y=1", content=b"body")
            name, *rest = response.text.split(" ")
            assert rest == ["POST", "orders/x?y=1", "body"]
            seen.add(name)
        assert seen == {"a", "b"}
        with pytest.raises(Unavailable):
            await http.get("http://nobody/")


async def test_who_answers_with_errors_is_passed_over_for_a_moment(client: Client) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(503 if request.url.host == "10.0.0.1" else 200)

    transport = AsyncHomeportTransport(client, httpx.MockTransport(answer))
    async with (
        client.register("orders", id="sick", address="10.0.0.1", port=1),
        client.register("orders", id="well", address="10.0.0.2", port=1),
        httpx.AsyncClient(transport=transport) as http,
    ):
        while "10.0.0.1" not in asked:
            await http.get("http://orders/")
        statuses = {(await http.get("http://orders/")).status_code for _ in range(20)}
        assert statuses == {200}


@pytest.mark.parametrize("error", [ValueError("ours"), httpx.PoolTimeout("ours: no connection is left")])
async def test_an_error_of_the_caller_s_own_does_not_speak_against_an_instance(
    client: Client, error: Exception
) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise error

    resolver = client.resolver()
    transport = AsyncHomeportTransport(resolver, httpx.MockTransport(answer))
    async with (
        client.register("orders", id="a", address="10.0.0.1", port=1),
        client.register("orders", id="b", address="10.0.0.2", port=1),
        httpx.AsyncClient(transport=transport) as http,
    ):
        for _ in range(20):
            with pytest.raises(type(error), match="ours"):
                await http.get("http://orders/")
        assert resolver.state("orders").ejected == 0
        await http.aclose()
        assert resolver.lookup("orders"), "whoever made the resolver closes it"
        await resolver.close()


async def test_a_lifespan_registers_the_app_while_it_lives(client: Client) -> None:
    app = Starlette(lifespan=registered("shop", client=lambda: _borrowed(client), port=8080, tags=["asgi"]))
    async with app.router.lifespan_context(app):
        [instance] = await client.resolve("shop")
        assert (instance.port, instance.tags) == (8080, ("asgi",))
        assert await app.state.homeport.services() == {"shop": ("asgi",)}
    assert await client.resolve("shop") == ()


def _borrowed(client: Client) -> Client:
    """Another client of the same registry."""
    return Client(transport=client._connection.transports[0])


async def test_grpc_follows_the_instances(client: Client) -> None:
    @asynccontextmanager
    async def serve(name: bytes) -> AsyncIterator[None]:
        async def who(_request: bytes, _context: Any) -> bytes:
            return name

        server = grpc.aio.server()
        handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Orders", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with client.register("orders", id=name.decode(), port=port):
            yield
        await server.stop(1)

    async with serve(b"a"), GrpcChannel(client, "orders") as channel:
        call = channel.unary_unary("/Orders/Who")  # as a stub makes it: once
        assert await call(b"", wait_for_ready=True, timeout=10) == b"a"
        subscription = client.subscribe("orders")
        async with serve(b"b"):
            async for _ in subscription.events():
                if len(subscription.instances) == 2:
                    break
            answers = {await call(b"", wait_for_ready=True, timeout=10) for _ in range(50)}
            assert answers <= {b"a", b"b"}
            assert b"b" in answers or await _until(call, b"b")
        async for _ in subscription.events():
            if len(subscription.instances) == 1:
                break
        assert await call(b"", wait_for_ready=True, timeout=10) == b"a"
        subscription.close()


async def test_a_grpc_channel_whose_start_is_cancelled_follows_nothing(
    eventually: Callable[..., Awaitable[None]],
) -> None:
    async with Registry() as registry, registry.client() as client:
        await client.wait_connected()
        channel = GrpcChannel(client, "orders")
        starting = asyncio.ensure_future(channel.start())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.cancelled()
        await eventually(lambda: registry.peers.watches == 0)
        async with channel:
            with pytest.raises(Closed, match="started already"):
                await channel.start()


async def _until(call: Any, wanted: bytes) -> bool:
    while await call(b"", wait_for_ready=True, timeout=10) != wanted:
        pass
    return True


# --- blocking ---------------------------------------------------------------------------------------------------


@contextmanager
def served(registry: RegistryThread, name: str) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = f"{name} {self.headers['Host']}{self.path}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    register(registry, name, server.server_address[1])
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def register(registry: RegistryThread, name: str, port: int) -> None:
    async def work() -> None:
        async with registry.registry.client() as client:
            await client.register("orders", id=name, port=port, ttl_s=0).start()

    registry.run(work())


def test_requests_balances_and_passes_the_dead(homeport_registry: RegistryThread, unused_port: int) -> None:
    with served(homeport_registry, "a"), served(homeport_registry, "b"):
        register(homeport_registry, "dead", unused_port)
        with blocking.Client(client=homeport_registry.client) as client, requests.Session() as session:
            session.mount("http://", HomeportAdapter(client))
            seen = set()
            for _ in range(30):
                response = session.get("http://orders/x?y=1", timeout=5)
                name, rest = response.text.split(" ")
                assert rest == "orders/x?y=1"
                assert response.url == "http://orders/x?y=1"
                seen.add(name)
            assert seen == {"a", "b"}
            with pytest.raises(Unavailable):
                session.get("http://nobody/", timeout=5)


def test_httpx_in_blocking_code(homeport_registry: RegistryThread, unused_port: int) -> None:
    with served(homeport_registry, "a"):
        register(homeport_registry, "dead", unused_port)
        with (
            blocking.Client(client=homeport_registry.client) as client,
            httpx.Client(transport=HomeportTransport(client)) as http,
        ):
            assert {http.get("http://orders/x").text for _ in range(20)} == {"a orders/x"}
