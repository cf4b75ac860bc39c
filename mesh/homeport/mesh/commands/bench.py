"""`homeport bench`: what this machine does with lookups and proxying, in about ten seconds.

Everything runs in this one process, the load too, so the figures are lower bounds: each is what one core does while it
also makes the requests. For comparisons with other programs there is the project's own harness.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from typing import Any, Final, NamedTuple, cast

import click

from homeport.client import Client
from homeport.client.core.messages import Resolve
from homeport.mesh.commands.options import json_option
from homeport.mesh.commands.output import print_json, print_table
from homeport.mesh.commands.progress import progress
from homeport.mesh.commands.running import ExitCode, run_and_exit
from homeport.mesh.one_try import Connection
from homeport.registry import Registry
from homeport.sidecar import Sidecar

INSTANCES: Final = 10  # of the service that is looked up: a common size
WORKERS: Final = 16  # that ask at once over a connection, each one request at a time
BURST: Final = 256  # synchronous calls between two looks at the clock
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Row(NamedTuple):
    """One measurement: how many a second, and how long one took at the median and for the slowest of a hundred."""

    what: str
    per_second: float
    p50_us: float
    p99_us: float


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 300),
    default=10.0,
    show_default=True,
    help="In all; each measurement gets its share.",
)
@json_option
def bench(seconds: float, as_json: bool) -> None:
    """Measure lookups, writes and proxying on this machine, all in this one process, and print a table."""

    async def work() -> int:
        rows = await measure(seconds)
        if as_json:
            print_json([row._asdict() for row in rows])
        else:
            print_table(
                ["what", "per second", "p50", "p99"],
                [[row.what, f"{row.per_second:,.0f}", _time(row.p50_us), _time(row.p99_us)] for row in rows],
            )
        return ExitCode.DONE

    run_and_exit(work())


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.2f} us"


class _App(asyncio.Protocol):
    """The service behind the sidecar: answers every request alike, as cheaply as can be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        self._transport.write(_ANSWER * data.count(b"\r\n\r\n"))


async def measure(seconds: float) -> list[Row]:
    """Measure everything, in `seconds` in all."""
    rows: list[Row] = []
    async with Registry(guard=False) as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        assert at.rpc is not None
        app = await asyncio.get_running_loop().create_server(_App, "127.0.0.1", 0)
        port = app.sockets[0].getsockname()[1]
        async with (
            registry.client() as inside,
            Client(at.rpc) as outside,
            Sidecar(outside, outbound="127.0.0.1:0") as sidecar,
        ):
            for number in range(INSTANCES):
                await inside.register("bench", id=f"bench-{number}", port=port, ttl_s=0).start()
            await outside.resolve("bench")
            stack = ExitStack()  # of the connections that the measurements open
            subjects = _subjects(stack, inside, outside, sidecar.at["outbound"], port)
            share_s = seconds / len(subjects)
            with stack, progress("measuring", len(subjects), "steps") as show:
                for done, (what, run) in enumerate(subjects):
                    show(done)
                    rows.append(_row(what, *await run(share_s)))
        app.close()
    return rows


Samples = tuple[int, float, list[float]]  # how many, in how many seconds, and times of some, in microseconds


def _row(what: str, count: int, took_s: float, times_us: list[float]) -> Row:
    times_us.sort()
    last = len(times_us) - 1
    return Row(what, count / took_s, times_us[last // 2], times_us[last * 99 // 100])


def _subjects(
    stack: ExitStack, inside: Client, outside: Client, outbound: str, port: int
) -> list[tuple[str, Callable[[float], Awaitable[Samples]]]]:
    request = Resolve(service="bench")

    async def cached() -> object:
        return await inside.resolve("bench")

    async def remote() -> object:
        return await outside.call(request)

    async def write() -> object:
        return await outside.kv.put("bench", b"value")

    def http(address: str) -> Callable[[], Callable[[], Awaitable[Any]]]:
        def worker() -> Callable[[], Awaitable[Any]]:
            connection = stack.enter_context(closing(Connection(address)))
            return lambda: connection.request("GET", "/", host="bench", timeout_s=10)

        return worker

    return [
        ("lookups from memory (client.resolve)", lambda s: _repeated(cached, s)),
        (f"lookups over RPC, {WORKERS} at once", lambda s: _at_once(lambda: remote, s)),
        (f"writes over RPC, {WORKERS} at once", lambda s: _at_once(lambda: write, s)),
        (f"requests without a sidecar, {WORKERS} at once", lambda s: _at_once(http(f"127.0.0.1:{port}"), s)),
        (f"requests through a sidecar, {WORKERS} at once", lambda s: _at_once(http(outbound), s)),
    ]


async def _repeated(call: Callable[[], Awaitable[Any]], seconds: float) -> Samples:
    """One after the other, without a look at the clock for each: it would cost as much as the call."""
    count, times_us = 0, []
    began = now = time.perf_counter()
    while now - began < seconds:
        for _ in range(BURST):
            await call()
        count += BURST
        last, now = now, time.perf_counter()
        times_us.append((now - last) / BURST * 1e6)
        await asyncio.sleep(0)
    return count, now - began, times_us


async def _at_once(worker: Callable[[], Callable[[], Awaitable[Any]]], seconds: float) -> Samples:
    """By `WORKERS` tasks, each with its own `worker()`."""
    times_us: list[float] = []
    began = time.perf_counter()

    async def work() -> None:
        call = worker()
        now = time.perf_counter()
        while now - began < seconds:
            await call()
            last, now = now, time.perf_counter()
            times_us.append((now - last) * 1e6)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(work())
    return len(times_us), time.perf_counter() - began, times_us
