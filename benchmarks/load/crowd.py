"""A crowd of HTTP clients that want one key: each blocks until it changes, or all simply ask for it at once.

Both are timed from the moment that something happens, the change or the asking, to the last whole answer. An answer is
told by its length, which every one of them has.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

from benchmarks.load.plan import BURST, Crowd, FanOutOutcome

HOST: Final = "127.0.0.1"
_ANSWERS_S: Final = 60.0  # until the last of 1,000 has its answer; it takes well under a second
_LENGTH: Final = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)
_INDEX: Final = re.compile(rb"\r\nX-Consul-Index: (\d+)", re.IGNORECASE)
_BLOCKED: Final = re.compile(rb"\nhomeport_http_blocked_queries (\d+)")


class _Client(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._wanted = 0
        self.answer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def ask(self, request: bytes) -> None:
        self.answer, self._wanted = b"", 0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if not self._wanted:
            end = self.answer.find(b"\r\n\r\n")
            length = _LENGTH.search(self.answer, 0, end + 2) if end >= 0 else None
            if length is None:
                return
            self._wanted = end + 4 + int(length[1])
        if len(self.answer) >= self._wanted:
            self._done()


class _Everybody:
    """Counts answers and says when the last one came."""

    def __init__(self) -> None:
        self._missing = 0
        self._last: asyncio.Future[float] | None = None

    def expect(self, count: int) -> asyncio.Future[float]:
        self._missing = count
        self._last = asyncio.get_running_loop().create_future()
        return self._last

    def one(self) -> None:
        self._missing -= 1
        if not self._missing and self._last is not None:
            self._last.set_result(time.perf_counter())


async def run(plan: Crowd, ready: Callable[[], Awaitable[None]]) -> FanOutOutcome:
    """Carry out the plan; `ready` says so to whoever drives this process and returns when it shall begin.

    Raises:
        OSError: there is no connection, or an answer did not come (TimeoutError) or was none.
    """
    loop = asyncio.get_running_loop()
    everybody, alone = _Everybody(), _Everybody()
    clients: list[_Client] = []
    _, other = await loop.create_connection(lambda: _Client(alone.one), HOST, plan.port)

    async def ask(request: bytes) -> bytes:
        answered = alone.expect(1)
        other.ask(request)
        async with asyncio.timeout(_ANSWERS_S):
            await answered
        return other.answer

    await ask(_request("PUT", "/v1/kv/crowd", b"at first"))
    for first in range(0, plan.clients, BURST):
        burst: list[_Client] = []
        for _ in range(min(BURST, plan.clients - first)):
            _, client = await loop.create_connection(lambda: _Client(everybody.one), HOST, plan.port)
            burst.append(client)
        answered = everybody.expect(len(burst))
        for client in burst:
            client.ask(_request("GET", "/v1/kv/crowd"))
        async with asyncio.timeout(_ANSWERS_S):
            await answered
        clients += burst
    await ready()
    cpu_at, started_at = time.process_time(), time.perf_counter()
    took_s: list[float] = []
    for number in range(plan.rounds):
        put = _request("PUT", "/v1/kv/crowd", b"round %06d" % number)
        if plan.blocked:
            await ask(put)
            index = _INDEX.search(await ask(_request("GET", "/v1/kv/crowd")))
            assert index is not None
            last = everybody.expect(plan.clients)
            for client in clients:
                client.ask(_request("GET", f"/v1/kv/crowd?index={int(index[1])}"))
            await _all_blocked(ask, plan.clients)
            began = time.perf_counter()
            await ask(_request("PUT", "/v1/kv/crowd", b"after %06d" % number))
        else:
            await ask(put)
            last = everybody.expect(plan.clients)
            began = time.perf_counter()
            for client in clients:
                client.ask(_request("GET", "/v1/kv/crowd"))
        async with asyncio.timeout(_ANSWERS_S):
            took_s.append(await last - began)
        if not all(client.answer.startswith(b"HTTP/1.1 200 ") for client in clients):
            raise OSError("an answer was not a 200")
    outcome = FanOutOutcome(took_s, time.perf_counter() - started_at, time.process_time() - cpu_at)
    for client in (*clients, other):
        client.transport.abort()
    return outcome


async def _all_blocked(ask: Callable[[bytes], Awaitable[bytes]], count: int) -> None:
    async with asyncio.timeout(_ANSWERS_S):
        while True:
            blocked = _BLOCKED.search(await ask(_request("GET", "/metrics")))
            if blocked is not None and int(blocked[1].partition(b".")[0]) == count:
                return


def _request(method: str, target: str, body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if method == "PUT" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{length}\r\n".encode() + body
