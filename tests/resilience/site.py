"""A little mesh of real processes: a registry, instances of one service with their sidecars, and an edge that is asked.

Every request is asked exactly once, by `Load`. What its users did not get is a failure, and one is too many, but for
those that nobody could have tried again: the answer had begun, or the method is not idempotent, and the witness of a
process that was killed or that lies shows that the request had been delivered there. Where a sidecar dies with its app,
a request may end in the sidecar; then the witness is the edge, which says `UC` of what it had sent in vain.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from homeport.client import Client, Unavailable
from homeport.mesh.demo.processes import FreePorts, Process, spawn
from homeport.mesh.demo.report import Failure, Tally, split_failures
from homeport.mesh.one_try import Connection, TryError

APP = Path(__file__).with_name("app.py")
SERVICE = "orders"
SEED = 20_260_301
PATIENCE_S = 90.0  # a process that takes longer to get where it should be has failed
REQUEST_TIMEOUT_S = 25.0  # above the 15 s after which the sidecar gives up on a try
CLIENTS = 8
THINK_S = 0.01
METHODS = {"GET": 8, "PUT": 1, "POST": 1}  # relative shares


@dataclass
class Load:
    """Users of the edge. `tally` counts what they got."""

    edge: str
    rng: random.Random
    tally: Tally = field(default_factory=Tally)
    _asked: int = 0
    _sent: set[str] = field(default_factory=set)  # what the edge says it had sent over a connection that broke

    @asynccontextmanager
    async def running(self, clients: int = CLIENTS) -> AsyncIterator[None]:
        """Ask all the while; at the end, every request that was begun is answered or counted as failed."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._user(stop))
            try:
                yield
            finally:
                stop.set()

    async def more(self, count: int) -> None:
        """Return when so many more requests have come to an end."""
        until = self.tally.requests + count
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if self.tally.requests >= until:
                    return
                await asyncio.sleep(THINK_S)

    def judge(self, witness: Sequence[str] = ()) -> list[Failure]:
        """Assert that nothing failed but what could not have been tried again; return those.

        Args:
            witness: ids of requests that were delivered to processes that were killed or that lie.
        """
        delivered = self._sent.union(witness) if witness else set()
        failed, unsafe = split_failures(self.tally.failures, delivered)
        print(f"seed {SEED}: {self.tally.requests} requests, {len(failed)} failed, {len(unsafe)} unsafe failed")
        assert not failed, failed[:5]
        assert self.tally.requests > 0
        return unsafe

    async def _user(self, stop: asyncio.Event) -> None:
        connection = Connection(self.edge)
        try:
            while not stop.is_set():
                (method,) = self.rng.choices(list(METHODS), list(METHODS.values()))
                await self._ask(connection, method)
                await asyncio.sleep(self.rng.uniform(0, 2 * THINK_S))
        finally:
            connection.close()

    async def _ask(self, connection: Connection, method: str) -> None:
        self._asked += 1
        request_id = f"r{self._asked}"
        body = b"" if method == "GET" else b"x" * 100
        final, started = method == "POST", time.perf_counter()
        try:
            answer = await connection.request(
                method,
                f"/{request_id}",
                host=SERVICE,
                timeout_s=REQUEST_TIMEOUT_S,
                headers={"x-request-id": request_id},
                body=body,
            )
            right = answer.status == 200 and answer.body == request_id.encode()
            if answer.status == 502 and answer.headers.get("x-homeport-response-flags") == "UC":
                self._sent.add(request_id)
            wrong = None if right else f"{answer.status} {answer.headers} {answer.body[:200]!r}"
        except TryError as error:
            wrong, final = str(error), final or error.began
        latency_ms = (time.perf_counter() - started) * 1000
        if wrong is None:
            self.tally.done(method, latency_ms, "")
        else:
            self.tally.failed(Failure(request_id, method, f"{method} {request_id}: {wrong}", final), latency_ms)


def _unseen(options: Sequence[str]) -> list[str]:
    """Without an admin listener, unless one is asked for."""
    return list(options) if "--admin" in options else ["--admin", "off", *options]


class Site:
    """Make one with `Site.opened`."""

    def __init__(self, directory: Path, stack: AsyncExitStack, *, durable: bool = False) -> None:
        self._durable = durable
        self.rng = random.Random(SEED)
        self.directory = directory
        self.members: dict[str, Process] = {}
        self.ports = FreePorts(random.Random())
        self.rpc = f"127.0.0.1:{self.ports.take()}"
        self.http = f"127.0.0.1:{self.ports.take()}"
        self.edge = f"127.0.0.1:{self.ports.take()}"
        self._stack = stack
        self._client = Client(*self.rpc.split(","), name="the tests")
        self.registry: Process | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, directory: Path, *, durable: bool = False) -> AsyncIterator[Site]:
        """A registry and nothing else yet, in memory or on disk; everything is killed at the end."""
        async with AsyncExitStack() as stack:
            site = cls(directory, stack, durable=durable)
            await site.start_registry()
            await stack.enter_async_context(site._client)
            yield site

    async def spawn(self, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> Process:
        """Start a `homeport` command that ends with the test."""
        variables = {"HOMEPORT_STATE_DIR": str(self.directory), **(env or {})}
        process = await spawn(name, command, self.directory / f"{name}.log", variables)
        self._stack.push_async_callback(self._end, process)
        return process

    @staticmethod
    async def _end(process: Process) -> None:
        process.signal(signal.SIGCONT)
        await process.kill()

    async def start_registry(self) -> None:
        kept = ["--data-dir", str(self.directory / "registry")] if self._durable else ["--memory"]
        self.registry = await self.spawn(
            "registry", ["serve", *kept, "--http", self.http, "--dns", "off", "--rpc", self.rpc]
        )

    @property
    def _edge_command(self) -> list[str]:
        return ["sidecar", "--registry", self.rpc, "--outbound", self.edge]

    async def start_edge(self, *options: str) -> Process:
        """A sidecar that everyone asks; return once it listens."""
        edge = await self.spawn("edge", [*self._edge_command, *_unseen(options)])
        await self.listens(self.edge)
        return edge

    async def replace_edge(self, old: Process, *options: str) -> None:
        """Start a sidecar that takes the edge over; return once the old one has finished and left."""
        new = await self.spawn("edge", [*self._edge_command, "--takeover", *_unseen(options)])
        left, failed = (asyncio.create_task(each.child.wait()) for each in (old, new))
        try:
            done, _ = await asyncio.wait([left, failed], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            assert left in done, f"the old edge goes on: {new.log.read_text()}"
            assert left.result() == 0, old.log.read_text()
        finally:
            left.cancel()
            failed.cancel()

    async def listens(self, address: str) -> None:
        """Return when something accepts connections there."""
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    _reader, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def add(
        self, name: str, *, manners: str = "good", options: Sequence[str] = (), command: Sequence[str] = ()
    ) -> Process:
        """Start one more instance; it takes traffic some time after this returns.

        Args:
            command: instead of the app of these tests, with `{port}` where its port belongs.
        """
        port = str(self.ports.take())
        options = [*options, "--name", SERVICE, "--id", name, "--port", port, "--registry", self.rpc]
        options += ["--outbound", "off", "--inbound", "127.0.0.1:0", "--admin", "off", "--ttl", "1"]
        options += ["--check-path", "/healthz", "--check-interval", "0.5"]
        app = [word.replace("{port}", port) for word in command] or [sys.executable, str(APP)]
        env = {"WITNESS": str(self.directory / f"{name}.witness"), "MANNERS": manners}
        process = await self.spawn(name, ["run", *options, "--", *app], env)
        self.members[name] = process
        return process

    async def fill(self, count: int) -> None:
        """Start that many well-mannered instances, and wait until they and those before them take traffic."""
        before = set(self.members)
        for number in range(1, count + 1):
            await self.add(f"orders-{number}")
        await self.available(*before, *(f"orders-{number}" for number in range(1, count + 1)))

    async def available(self, *names: str) -> None:
        """Return when exactly these instances take traffic, as the registry sees it."""
        seen: set[str] = set()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        seen = {each.id for each in await self._client.resolve(SERVICE)}
                    except Unavailable:
                        seen = set()
                    if seen == set(names):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE_S} s: {names} available; but: {sorted(seen)}") from None

    def witness(self, name: str) -> list[str]:
        """The ids of all requests that were delivered to an instance."""
        path = self.directory / f"{name}.witness"
        return path.read_text().split() if path.exists() else []

    def load(self) -> Load:
        return Load(self.edge, self.rng)
