"""A loopback relay that breaks connections where it hurts: after a request was delivered, or before it was.

It forwards bytes both ways between clients and one server. Told to, it swallows the next bytes of one direction and
then cuts that connection, so that the client cannot know whether its write happened.
"""

from __future__ import annotations

import asyncio
from typing import Literal, Self

Fault = Literal["", "request", "answer"]


class Relay:
    """An async context manager; clients connect to `address`."""

    def __init__(self, server: str) -> None:
        self._host, _, port = server.rpartition(":")
        self._port = int(port)
        self._links: set[_Side] = set()
        self.fault: Fault = ""  # what the next bytes of that direction meet; then cleared
        self.cuts = 0
        self._silent = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, None), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        self.cut_all()
        await self._server.wait_closed()

    def cut_all(self) -> None:
        """Break every connection now."""
        for side in tuple(self._links):
            side.cut()

    def silence(self) -> None:
        """Let nothing through any more, and say nothing about it: a partition."""
        self._silent = True

    def heal(self) -> None:
        """Let everything through again, on connections that are new."""
        self._silent = False
        self.cut_all()

    @property
    def silent(self) -> bool:
        return self._silent

    async def dial(self, client: _Side) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(lambda: _Side(self, client), self._host, self._port)
        except OSError:
            client.cut()
            return
        client.paired(server)

    def forget(self, side: _Side) -> None:
        self._links.discard(side)

    def remember(self, side: _Side) -> None:
        self._links.add(side)


class _Side(asyncio.Protocol):
    """One end: towards a client, or (with its `client`) towards the server."""

    def __init__(self, relay: Relay, client: _Side | None) -> None:
        self._relay = relay
        self._client = client
        self._other: _Side | None = client
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._relay.remember(self)
        if self._client is None:
            self._dialling = asyncio.get_running_loop().create_task(self._relay.dial(self))

    def paired(self, server: _Side) -> None:
        """The server is reached: what came meanwhile goes there."""
        if self._transport is None:
            server.cut()
            return
        self._other = server
        for data in self._waiting:
            server.send(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        direction = "request" if self._client is None else "answer"
        if self._relay.silent:
            return
        if self._relay.fault == direction:
            self._relay.fault = ""
            self._relay.cuts += 1
            self.cut()
        elif self._other is None:
            self._waiting.append(data)
        else:
            self._other.send(data)

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        """Break this end; the other follows."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._relay.forget(self)
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()  # what was written to it before is still delivered
