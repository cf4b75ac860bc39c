"""Real sockets for the proxy's tests: scripted upstreams, hand-fed discovery, raw clients; on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from homeport.client.core.model import Instance, InstanceKey, ServiceEvent
from homeport.sidecar import Sidecar, Workers
from homeport.sidecar.route_watch import Keys

SEED = 20_260_101
PATIENCE_S = 30.0  # a test that waits longer for an event has failed


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs on both loops, but those of workers, whose own loop is uvloop in any case."""
    if item.path.name == "test_workers.py":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Feed:
    """One service's instances, changed by the test."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.known = False
        self.live = True
        self.held = False
        self.revision = 0
        self.instances: Mapping[InstanceKey, Instance] = {}
        self.closed = False
        self.age = 0.0
        self._listeners: list[Callable[[ServiceEvent], None]] = []

    def age_s(self) -> float:
        return 0.0 if self.live else self.age

    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None:
        self.known, self.live, self.revision, self.age = True, False, revision, age_s
        self.instances = {instance.key: instance for instance in instances}

    def listen(self, changed: Callable[[ServiceEvent], None]) -> Callable[[], None]:
        self._listeners.append(changed)
        return lambda: self._listeners.remove(changed)

    def close(self) -> None:
        self.closed = True

    def say(self, *instances: Instance) -> None:
        """The registry says that these are all there are."""
        self.known = True
        self.revision += 1
        self.instances = {instance.key: instance for instance in instances}
        event = ServiceEvent(service=self.service, revision=self.revision, snapshot=True, changed=instances)
        for changed in list(self._listeners):
            changed(event)


class Registrar:
    """A registry's client, hand-fed."""

    store_id = "made-up"
    kv: Keys | None = None

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.asked = asyncio.Event()

    def feed(self, service: str) -> Feed:
        return self.feeds.setdefault(service, Feed(service))

    def subscribe(self, service: str) -> Feed:
        self.asked.set()
        return self.feed(service)


@dataclass
class Raw:
    """A connection of bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(count)

    async def until_end(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(mark)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Raw], Awaitable[None]]


@dataclass
class Upstream:
    """A server whose every connection runs the test's script."""

    port: int
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def instance(self, service: str = "orders", **fields: Any) -> Instance:
        return Instance(service=service, id=self.address, address="127.0.0.1", port=self.port, **fields)


class Net:
    """What a test builds its little mesh from; everything is closed at its end."""

    patience_s = PATIENCE_S
    seed = SEED

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.registrar = Registrar()

    async def upstream(self, script: Script) -> Upstream:
        made = Upstream(0)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made.connections += 1
            raw = Raw(reader, writer)
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await script(raw)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            except asyncio.CancelledError:
                pass  # the test is over
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)

        async def stop() -> None:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._stack.push_async_callback(stop)
        made.port = server.sockets[0].getsockname()[1]
        return made

    async def answering(self, answer: bytes | Callable[[bytes], bytes], *, name: bytes = b"") -> Upstream:
        """An upstream that reads bodiless requests for ever, and answers each alike."""
        made: Upstream

        async def script(raw: Raw) -> None:
            while True:
                head = await raw.head()
                made.heads.append(head)
                raw.send(answer(head) if callable(answer) else answer)

        made = await self.upstream(script)
        return made

    async def sidecar(self, **options: Any) -> Sidecar:
        options.setdefault("outbound", "127.0.0.1:0")
        options.setdefault("rng", random.Random(SEED))
        if "static" not in options:
            options.setdefault("client", self.registrar)
        return await self._stack.enter_async_context(Sidecar(**options))

    async def proxy_to(self, *upstreams: Upstream, service: str = "orders", **options: Any) -> Sidecar:
        """A sidecar that already knows these instances."""
        self.registrar.feed(service).say(*(upstream.instance(service) for upstream in upstreams))
        return await self.sidecar(**options)

    async def dial(self, sidecar: Sidecar | Workers, listener: str = "outbound") -> Raw:
        host, port = sidecar.at[listener].split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        self._stack.callback(writer.close)
        return Raw(reader, writer)

    async def ask(self, sidecar: Sidecar | Workers, request: bytes, listener: str = "outbound") -> bytes:
        """Send bytes on a connection of their own and return everything that comes back until its end."""
        raw = await self.dial(sidecar, listener)
        raw.send(request)
        return await raw.until_end()

    @staticmethod
    def get(
        path: str = "/", host: str = "orders", *, method: str = "GET", close: bool = True, extra: str = ""
    ) -> bytes:
        """A bodiless request."""
        end = "Connection: close\r\n" if close else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}{end}\r\n".encode()

    @staticmethod
    def ok(body: bytes = b"hi", *, extra: bytes = b"", status: bytes = b"200 OK") -> bytes:
        """An answer with a known length."""
        return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, extra, len(body), body)


@asynccontextmanager
async def _net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with _net() as made:
        yield made
