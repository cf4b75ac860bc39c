"""A pair of PostgreSQL servers under Patroni, with this registry as its Consul: one leader, whatever happens.

Patroni holds its leader lock on a session and follows it with blocking queries: an index that moves for nothing makes
it spin, a session that ends early costs a failover, and one that never ends costs the database.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront
from tests.ports import free_port

SETTLED_S: Final = 90.0  # for what must come about: a TTL, a round of Patroni's loop, a start of PostgreSQL, and slack
QUIET_S: Final = 20.0  # how long requests are counted while nothing happens
REQUESTS_PER_MINUTE_MAX: Final = 240  # of a quiet pair: ten a round of 5 s each; one that spins makes thousands
TTL_S: Final = 20  # the least that Patroni takes; its session asks for half
CONFIGURATION: Final = """
scope: pair
name: {name}
restapi: {{listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"}}
consul: {{host: "{consul}"}}
bootstrap:
  dcs: {{ttl: {ttl}, loop_wait: 5, retry_timeout: 5, maximum_lag_on_failover: 1048576}}
  initdb: [{{encoding: UTF8}}, {{locale: C}}, no-sync]
postgresql:
  listen: "127.0.0.1:{port}"
  connect_address: "127.0.0.1:{port}"
  data_dir: {folder}/{name}
  bin_dir: {binaries}
  pgpass: {folder}/{name}.pgpass
  authentication:
    replication: {{username: replicator, password: r}}
    superuser: {{username: postgres, password: p}}
  pg_hba: ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"]
  parameters: {{unix_socket_directories: {folder}, fsync: "off", shared_buffers: 16MB, max_connections: 20}}
"""


def _binaries() -> str:
    """Where PostgreSQL's programs are: Debian keeps each version's by themselves."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return str(found[-1].parent)
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    return str(Path(initdb).resolve().parent)


class Node:
    """One of the pair: a Patroni process and the PostgreSQL it looks after."""

    def __init__(self, name: str, rest: int, process: asyncio.subprocess.Process, data: Path, log: Path) -> None:
        self.name = name
        self.rest = f"http://127.0.0.1:{rest}"
        self.process = process
        self.data = data
        self.log = log

    def kill(self) -> None:
        """The machine is gone: Patroni first, so that it starts nothing anew, then PostgreSQL."""
        with suppress(ProcessLookupError):
            self.process.kill()
        with suppress(OSError, ValueError, IndexError):
            os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


class Pair:
    """The nodes, what each says it is, and whether two ever said that they lead."""

    def __init__(self, session: aiohttp.ClientSession, front: HttpFront, start: Callable[[str], Awaitable[Node]]):
        self._session = session
        self._start = start
        self.front = front
        self.nodes: dict[str, Node] = {}

    async def start(self, name: str) -> None:
        self.nodes[name] = await self._start(name)

    async def states(self) -> dict[str, str]:
        """Per node "primary", "replica" or nothing."""
        return {name: await self._state(node) for name, node in self.nodes.items()}

    async def _state(self, node: Node) -> str:
        for role in ("primary", "replica"):
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(f"{node.rest}/{role}") as response:
                    if response.status == 200:
                        return role
        return ""

    async def becomes(self, **states: str) -> None:
        """Wait until the nodes are what is said; there are never two leaders meanwhile."""
        last: dict[str, str] = {}
        try:
            async with asyncio.timeout(SETTLED_S):
                while last != states:
                    last = await self.states()
                    assert list(last.values()).count("primary") <= 1, f"two leaders: {last}"
                    await _pass(0.2)
        except TimeoutError:
            logs = "\n".join(f"--- {name}\n{node.log.read_text()[-3000:]}" for name, node in self.nodes.items())
            pytest.fail(f"{last} did not become {states} within {SETTLED_S:.0f} s\n{logs}")

    async def switch(self, leader: str, candidate: str) -> None:
        body: dict[str, Any] = {"leader": leader, "candidate": candidate}
        timeout = aiohttp.ClientTimeout(SETTLED_S)
        async with self._session.post(f"{self.nodes[leader].rest}/switchover", json=body, timeout=timeout) as response:
            assert response.status == 200, await response.text()

    async def kill(self, name: str) -> None:
        """The node is gone, and no longer one of the pair."""
        node = self.nodes[name]
        node.kill()
        await node.process.wait()
        del self.nodes[name]

    async def requests_per_minute(self) -> float:
        before = sum(self.front.numbers.requests.values())
        await _pass(QUIET_S)
        return (sum(self.front.numbers.requests.values()) - before) / QUIET_S * 60


async def _pass(seconds: float) -> None:
    """Let real time go by: what is measured here is other programs' behaviour in it."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    patroni = shutil.which("patroni", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if patroni is None:
        pytest.skip("Patroni is not installed (Debian: apt-get install patroni python3-consul)")
    binaries = _binaries()
    user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="homeport-patroni-"))
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    async with Registry(node="home") as registry, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
        front = HttpFront(registry.operations)
        at = await front.listen("127.0.0.1:0")

        async def start(name: str) -> Node:
            rest = free_port()
            settings = CONFIGURATION.format(
                name=name, rest=rest, port=free_port(), consul=at, ttl=TTL_S, folder=folder, binaries=binaries
            )
            file = folder / f"{name}.yml"
            file.write_text(settings)
            file.chmod(0o644)
            log = folder / f"{name}.log"
            env = {name: value for name, value in os.environ.items() if not name.startswith(("PATRONI_", "PG"))}
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    patroni,
                    str(file),
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env=env | {"HOME": str(folder)},
                    **user,
                )
            return Node(name, rest, process, folder / name, log)

        running = Pair(session, front, start)
        try:
            yield running
        finally:
            for name in tuple(running.nodes):
                await running.kill(name)
            await front.close()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(400)
async def test_a_pair_keeps_one_leader_through_a_switchover_and_a_kill_and_does_not_spin(pair: Pair) -> None:
    await pair.start("a")
    await pair.becomes(a="primary")
    await pair.start("b")
    await pair.becomes(a="primary", b="replica")
    rate = await pair.requests_per_minute()
    assert await pair.states() == {"a": "primary", "b": "replica"}, "a quiet pair stays as it is"
    print(f"a quiet pair makes {rate:.0f} requests a minute")
    assert 0 < rate < REQUESTS_PER_MINUTE_MAX
    await pair.switch("a", "b")
    await pair.becomes(a="replica", b="primary")
    await pair.kill("b")
    await pair.becomes(a="primary")
