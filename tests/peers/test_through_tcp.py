"""gRPC and PostgreSQL through a port that stands for their service, and through the death of an instance."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from homeport.sidecar import Sidecar
from tests.ports import free_port

PROGRAMS: Final = Path(__file__).parent / "programs"
DEADLINE_S: Final = 60.0


@asynccontextmanager
async def standing_for(service: str, ports: Sequence[int]) -> AsyncIterator[str]:
    """A sidecar's port for the instances at these ports."""
    async with Sidecar(
        outbound=None,
        tcp={service: "127.0.0.1:0"},
        static={service: [f"127.0.0.1:{port}" for port in ports]},
        rng=random.Random(1),
    ) as sidecar:
        yield sidecar.at[f"tcp:{service}"]


class Servers:
    """Processes of a test, each killed at its end."""

    def __init__(self) -> None:
        self.running: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, port: int, *command: str, ready: bytes, **options: Any) -> None:
        """Start one that will listen at `port`; return when it has printed `ready`."""
        process = self.running[port] = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, **options
        )
        assert process.stdout is not None
        said = []
        async with asyncio.timeout(DEADLINE_S):
            while ready not in (line := await process.stdout.readline()):
                said.append(line.decode())
                assert line, f"{command[0]} ended: {''.join(said)}"

    async def kill(self, port: int) -> None:
        process = self.running.pop(port)
        process.kill()
        await process.communicate()


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    made = Servers()
    yield made
    for port in list(made.running):
        await made.kill(port)


async def test_grpc_goes_on_when_an_instance_is_killed(servers: Servers) -> None:
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed (make peers)")
    ports = [free_port(), free_port()]
    for port in ports:
        await servers.start(port, sys.executable, str(PROGRAMS / "grpc_served.py"), str(port), ready=b"ready")
    pids = {str(servers.running[port].pid).encode(): port for port in ports}
    async with (
        standing_for("test", ports) as at,
        grpc.aio.insecure_channel(at, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        who, each = channel.unary_unary("/homeport.Test/Who"), channel.unary_stream("/homeport.Test/Each")

        async def ask() -> bytes:
            answer: bytes = await who(b"", wait_for_ready=True, timeout=DEADLINE_S)
            return answer

        first = await ask()
        assert sum([len(piece) async for piece in each(b"500", timeout=DEADLINE_S)]) == 5_000_000
        await servers.kill(pids[first])
        second = await _answered(ask)
        assert {first, second} == set(pids)
        for _ in range(50):
            assert await ask() == second


async def _answered(ask: Any) -> bytes:
    """The first answer; calls in flight on the connection that broke may still be told of it."""
    grpc = pytest.importorskip("grpc")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                answer: bytes = await ask()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                return answer


@pytest.fixture
def binaries() -> Path:
    """Where PostgreSQL's programs are: Debian keeps each version's by themselves."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found or shutil.which("psql") is None:
        pytest.skip("PostgreSQL is not installed")
    return found[-1].parent


@pytest.fixture
async def databases(servers: Servers, binaries: Path) -> AsyncIterator[list[int]]:
    """The ports of two PostgreSQL servers; each has its port as its `cluster_name`."""
    folder = Path(tempfile.mkdtemp(prefix="homeport-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    options: dict[str, Any] = {**user, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    ports = [free_port(), free_port()]
    try:
        for port in ports:
            data = str(folder / str(port))
            made = await asyncio.create_subprocess_exec(
                *(str(binaries / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"),
                stdout=asyncio.subprocess.DEVNULL,
                **options,
            )
            assert await made.wait() == 0
            await servers.start(
                port,
                *(str(binaries / "postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1", "-F"),
                *("-k", str(folder), "-c", f"cluster_name={port}", "-c", "shared_buffers=16MB"),
                ready=b"ready to accept connections",
                **options,
            )
        yield ports
    finally:
        for port in ports:
            if port in servers.running:
                servers.running[port].send_signal(signal.SIGQUIT)  # else its children would stay a moment longer
                await servers.kill(port)
        shutil.rmtree(folder, ignore_errors=True)


class Session:
    """One psql, which keeps its connection from one question to the next."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def opened(cls, stack: AsyncExitStack, at: str) -> Session:
        host, port = at.split(":")
        process = await asyncio.create_subprocess_exec(
            *("psql", "-h", host, "-p", port, "-U", "postgres", "-AtqX", "-v", "ON_ERROR_STOP=1", "postgres"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

        stack.push_async_callback(end)
        return cls(process)

    async def ask(self, question: str) -> str:
        """The first line of the answer; empty when the connection is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{question};\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            return (await self.process.stdout.readline()).decode().strip()


async def test_postgresql_goes_on_when_an_instance_is_killed(servers: Servers, databases: list[int]) -> None:
    async with standing_for("postgres", databases) as at, AsyncExitStack() as stack:
        session = await Session.opened(stack, at)
        first = await session.ask("show cluster_name")
        await session.ask("create table seen as select generate_series(1, 100000) as number; select 1")
        assert await session.ask("select sum(number) from seen") == "5000050000"  # over the same connection
        servers.running[int(first)].send_signal(signal.SIGQUIT)  # immediate shutdown: as a crash, of all its processes
        await servers.kill(int(first))
        assert await session.ask("select 1") == ""  # no proxy can move a session to another database
        for _ in range(10):
            again = await Session.opened(stack, at)
            assert {first, await again.ask("show cluster_name")} == {str(port) for port in databases}
