"""The five services, in one process with a real registry and one real sidecar between them."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from homeport.client import Client
from homeport.mesh.demo.apps.service import build_app
from homeport.mesh.demo.apps.settings import Settings
from homeport.mesh.demo.load import picture
from homeport.mesh.demo.site import SERVICES
from homeport.mesh.one_try import Answer, Connection
from homeport.registry import Registry
from homeport.sidecar import Sidecar

TIMEOUT_S = 60
PNG = {"content-type": "image/png"}


class Site:
    """One instance of each service that was asked for, reached through one sidecar."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = AsyncExitStack()
        self.client: Client
        self.sidecar: Sidecar
        self.rpc = ""

    async def open(self) -> None:
        registry = await self.stack.enter_async_context(Registry(node="test"))
        self.rpc = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        self.client = await self.stack.enter_async_context(registry.client())
        self.sidecar = await self.stack.enter_async_context(Sidecar(self.client, outbound="127.0.0.1:0"))

    async def put(self, settings: Settings) -> None:
        for key, value in settings.entries().items():
            await self.client.kv.put(key, value)

    async def start(self, *services: str) -> None:
        for service in services:
            module = importlib.import_module(f"homeport.mesh.demo.apps.{service.replace('-', '_')}")
            app = build_app(
                module.routes,
                getattr(module, "SCHEMA", ""),
                getattr(module, "NEEDS", ()),
                database=str(self.directory / f"{service}.sqlite"),
                registry=self.rpc,
                proxy=f"http://{self.sidecar.at['outbound']}",
                instance=f"{service}-1",
            )
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self.stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            await self.stack.enter_async_context(self.client.register(service, port=port, id=f"{service}-1"))

    async def ask(
        self, method: str, service: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        connection = Connection(self.sidecar.at["outbound"])
        try:
            return await connection.request(
                method, target, host=service, timeout_s=TIMEOUT_S, headers=headers or {}, body=body
            )
        finally:
            connection.close()

    async def json(self, service: str, target: str) -> Any:
        answer = await self.ask("GET", service, target)
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body)

    async def eventually(self, service: str, target: str, right: Callable[[Answer], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not right(await self.ask("GET", service, target)):
                pass


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.open()
    yield site
    await site.stack.aclose()


async def sign_up(site: Site, *names: str) -> None:
    for name in names:
        answer = await site.ask("PUT", "user-profile", f"/users/{name}", b'{"bio": "%s!"}' % name.encode())
        assert answer.status == 200


async def test_an_uploaded_photo_is_in_the_feeds_of_followers_and_in_searches(site: Site) -> None:
    await site.put(Settings())
    await site.start(*SERVICES)
    await sign_up(site, "ada", "bob")
    image = picture(random.Random(3))
    target = "/photos/p1?by=bob&taken_ms=5&tags=boat,fog"
    for _ in range(2):  # twice is once
        assert (await site.ask("PUT", "photo-upload", target, image, PNG)).status == 200
    assert (await site.ask("PUT", "follower", "/users/ada/following/bob")).status == 200
    shown = [{"id": "p1", "owner": "bob", "taken_ms": 5, "bio": "bob!"}]
    assert (await site.json("feed", "/feeds/ada"))["photos"] == shown
    assert (await site.json("feed", "/feeds/bob"))["photos"] == []
    assert (await site.json("search", "/search?tag=fog"))["photos"] == shown
    assert (await site.json("search", "/search?tag=gull"))["photos"] == []
    assert (await site.ask("GET", "photo-upload", "/photos/p1")).body == image


@pytest.mark.parametrize(
    ("target", "body", "content_type", "status"),
    [
        ("/photos/p?by=bob&taken_ms=1", b"GIF89a", "image/gif", 415),
        ("/photos/p?by=bob&taken_ms=1", b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png", 413),
        ("/photos/p?by=bob&taken_ms=1", b"not a png", "image/png", 400),
        ("/photos/p?by=bob&taken_ms=soon", b"\x89PNG\r\n\x1a\n", "image/png", 400),
        ("/photos/p?by=nobody&taken_ms=1", b"\x89PNG\r\n\x1a\n", "image/png", 404),
    ],
)
async def test_an_upload_that_the_settings_or_the_users_do_not_allow_is_refused_and_not_kept(
    site: Site, target: str, body: bytes, content_type: str, status: int
) -> None:
    await site.put(Settings(photo_types=("image/png",), photo_bytes_max=64))
    await site.start("user-profile", "photo-upload")
    await site.eventually("photo-upload", "/healthz", lambda answer: answer.status == 200)
    await sign_up(site, "bob")
    answer = await site.ask("PUT", "photo-upload", target, body, {"content-type": content_type})
    assert (answer.status, list(msgspec.json.decode(answer.body))) == (status, ["error"])
    assert (await site.ask("GET", "photo-upload", "/photos/p")).status == 404


async def test_a_service_is_ready_once_it_has_read_the_settings_and_then_follows_them(site: Site) -> None:
    await site.start(*SERVICES)
    await site.eventually("feed", "/healthz", lambda answer: answer.body.startswith(b"settings"))
    await site.put(Settings(page_size=3))
    await site.eventually("feed", "/healthz", lambda answer: answer.status == 200)
    assert (await site.json("feed", "/feeds/ada"))["page_size"] == 3
    await site.client.kv.put("pictures/settings/page_size", b"not a number")
    await site.client.kv.put("pictures/settings/page_size", b"4")
    await site.eventually("feed", "/feeds/ada", lambda answer: msgspec.json.decode(answer.body)["page_size"] == 4)


async def test_a_service_is_ready_once_it_has_reached_those_it_needs(site: Site) -> None:
    await site.put(Settings())
    await site.start("follower")
    await site.eventually("follower", "/healthz", lambda answer: answer.body.startswith(b"not reached"))
    await site.start("user-profile")
    await site.eventually("follower", "/healthz", lambda answer: answer.status == 200)


async def test_a_service_whose_peer_is_missing_answers_502_so_that_its_caller_may_try_another(site: Site) -> None:
    await site.put(Settings())
    await site.start("feed")
    answer = await site.ask("GET", "feed", "/feeds/ada")
    assert answer.status == 502
    assert answer.body.startswith(b"follower: ")
