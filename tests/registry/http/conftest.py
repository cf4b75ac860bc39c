"""A registry with its HTTP front on a real socket, and a client that sends paths exactly as they are written."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from yarl import URL

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront

SEED = 20_260_107
DEADLINE_S = 60.0  # only a failure waits that long
Eventually = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def index(self) -> int:
        return int(self.headers["X-Consul-Index"])


class Http:
    """`await http("GET", "/v1/kv/a")`; a dict or list is sent as JSON."""

    def __init__(self, session: aiohttp.ClientSession, at: str, front: HttpFront, eventually: Eventually) -> None:
        self.session = session
        self.at = at
        self.front = front
        self._eventually = eventually

    async def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            asyncio.timeout(DEADLINE_S),
            self.session.request(
                method, URL(f"http://{self.at}{path}", encoded=True), data=data, headers=names
            ) as response,
        ):
            return Reply(response.status, dict(response.headers), await response.read())

    async def blocked(self, path: str) -> asyncio.Task[Reply]:
        """Start a blocking query and return it once it waits."""
        before = self.front.numbers.blocked
        task = asyncio.create_task(self("GET", path))
        await self._eventually(lambda: task.done() or self.front.numbers.blocked == before + 1)
        assert not task.done(), f"{path} was answered at once: {task.result()}"
        return task


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(node="home", rng=random.Random(SEED)) as registry:
        yield registry


@pytest.fixture
async def http(registry: Registry, eventually: Eventually) -> AsyncIterator[Http]:
    print(f"seed {SEED}")
    front = HttpFront(registry.operations, rng=random.Random(SEED))
    at = await front.listen("127.0.0.1:0")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Http(session, at, front, eventually)
    await front.close()
