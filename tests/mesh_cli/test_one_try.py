"""The client that tries exactly once: whole answers or an error, and never a second request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from homeport.mesh.one_try import Answer, Connection, TryError


class Server:
    """Answers each request's head with the next of its replies, byte for byte; None closes instead."""

    def __init__(self, *replies: bytes | None) -> None:
        self.replies = list(replies)
        self.heads: list[bytes] = []
        self.connections = 0
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                reply = self.replies.pop(0)
                if reply is None:
                    return
                writer.write(reply)
                if b"connection: close" in reply.lower():
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*replies: bytes | None) -> AsyncIterator[tuple[Server, Connection]]:
    server = Server(*replies)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    connection = Connection(f"{host}:{port}")
    try:
        yield server, connection
    finally:
        connection.close()
        listener.close()


async def ask(connection: Connection, method: str = "GET") -> Answer:
    return await connection.request(method, "/x", host="orders", timeout_s=30)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "method", "status", "body"),
    [
        (OK, "GET", 200, b"ok"),
        (CHUNKED, "GET", 200, b"abcde"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", 204, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "PUT", 200, b"ok"),
        (b"HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 1\r\n\r\n.", "GET", 503, b"."),
    ],
)
async def test_a_whole_answer_is_returned_as_it_is(reply: bytes, method: str, status: int, body: bytes) -> None:
    async with serving(reply) as (_server, connection):
        answer = await ask(connection, method)
        assert (answer.status, answer.body) == (status, body)


async def test_a_connection_is_used_again_unless_the_server_closes_it() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with serving(OK, CHUNKED, closing, OK) as (server, connection):
        for _ in range(4):
            await ask(connection)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "began"),
    [
        (None, False),
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"SSH-2.0-OpenSSH\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\ntruncated", True),
    ],
)
async def test_half_an_answer_is_an_error_that_says_whether_it_began(reply: bytes | None, began: bool) -> None:
    async with closing_after(reply) as (heads, connection):
        with pytest.raises(TryError) as caught:
            await ask(connection)
        assert caught.value.began is began
        assert heads() == 1, "the request was sent again"


@asynccontextmanager
async def closing_after(reply: bytes | None) -> AsyncIterator[tuple[Callable[[], int], Connection]]:
    """A server that reads one head per connection, answers `reply` and closes."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(reply or b"")
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    try:
        yield lambda: len(heads), Connection(f"{host}:{port}")
    finally:
        listener.close()


async def test_nobody_listening_is_an_error_that_did_not_begin() -> None:
    async with closing_after(None) as (_heads, connection):
        pass
    with pytest.raises(TryError) as caught:
        await ask(connection)
    assert not caught.value.began


async def test_silence_ends_after_the_timeout() -> None:
    never = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    connection = Connection(f"{host}:{port}")
    with pytest.raises(TryError, match="TimeoutError"):
        await connection.request("GET", "/", host="x", timeout_s=0.05)
    never.set()
    listener.close()
