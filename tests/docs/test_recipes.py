"""The recipes do what they say: each block is the file that its first line names, and runs against a real registry."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest
from aiohttp import web

from homeport.mesh.cli import cli
from homeport.registry import At, RegistryThread

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


class Orders(BaseHTTPRequestHandler):
    """The service that every recipe calls."""

    def do_GET(self) -> None:
        body = f"order {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def orders(homeport_registry: RegistryThread) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Orders)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    async def register() -> None:
        async with homeport_registry.registry.client() as client:
            await client.register("orders", port=server.server_address[1], ttl_s=0).start()

    homeport_registry.run(register())
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def recipes(
    tmp_path: Path, homeport_addresses: At, orders: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The modules of the page, imported when asked for."""
    names = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", RECIPES, flags=re.DOTALL)
    for name, code in names:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOMEPORT_REGISTRY", str(homeport_addresses.rpc))

    class Modules(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return importlib.import_module(name)

    yield Modules()
    made = sys.modules.get("services")
    if made is not None:
        made.services.close()
        made.homeport.close()
    for name, _ in names:
        sys.modules.pop(name, None)


def test_flask(recipes: dict[str, Any]) -> None:
    shop = recipes["flask_shop"].app.test_client()
    assert shop.get("/").text == "order /1"
    assert shop.get("/greeting").text == "hello"
    recipes["services"].homeport.kv.put("shop/greeting", b"good day")
    assert shop.get("/greeting").text == "good day"


def test_django(recipes: dict[str, Any]) -> None:
    import django
    from django.conf import settings
    from django.test import RequestFactory

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="of a test")
        django.setup()
    assert recipes["views"].index(RequestFactory().get("/")).content == b"order /1"


def test_celery(recipes: dict[str, Any]) -> None:
    assert recipes["tasks"].ship.apply(args=(7,)).get() == "order /7"
    assert recipes["services"].homeport.kv.get("shipped/7").value == b"order /7"


def test_gunicorn(recipes: dict[str, Any]) -> None:
    recipes["gunicorn_conf"].post_fork(None, None)
    assert "homeport client" in [thread.name for thread in threading.enumerate()]
    assert recipes["services"].services.get("http://orders/2", timeout=30).text == "order /2"
    recipes["gunicorn_conf"].worker_exit(None, None)
    assert "homeport client" not in [thread.name for thread in threading.enumerate()]


async def test_aiohttp_web(recipes: dict[str, Any], homeport_registry: RegistryThread) -> None:
    runner = web.AppRunner(recipes["aiohttp_shop"].make_app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/") as answer:
        assert await answer.text() == "order /1"
    async with homeport_registry.client() as client:
        assert [each.port for each in await client.resolve("shop")] == [8080]
        await runner.cleanup()
        assert await client.services() == {"orders": ()}


@pytest.mark.parametrize("line", re.findall(r"^\$ (homeport .*)$", RECIPES, flags=re.MULTILINE))
def test_every_command_parses(line: str) -> None:
    words = shlex.split(line)
    context = click.Context(cli, info_name="homeport")
    name, command, rest = cli.resolve_command(context, words[1:])
    assert command is not None
    command.make_context(name, rest, parent=context)
