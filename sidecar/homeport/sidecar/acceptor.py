"""What every listening address has, whatever is spoken there: sockets to accept from, and connections that end.

A connection is in `connections` from the moment it is accepted until both its ends are gone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.sockets import BACKLOG

if TYPE_CHECKING:
    from homeport.sidecar.observer import Observer

T = TypeVar("T")


class Acceptor(Generic[T]):
    """Accepts connections at one address; `T` is what it keeps of each."""

    name = ""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, timeouts: Timeouts) -> None:
        self.loop = loop
        self.limits = limits
        self.timeouts = timeouts
        self.now = loop.time
        self.draining = False
        self.connections: dict[T, None] = {}
        self.connections_total = 0
        self.observer: Observer | None = None  # of the log and of traces; None: neither is asked for
        self._servers: list[asyncio.Server] = []
        self._empty: asyncio.Event | None = None  # set when the last connection is gone, once somebody waits for it

    def protocol(self) -> asyncio.BaseProtocol:
        """What meets the next client."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """How clients are met, as `create_server` takes it."""
        return {}

    async def accept(self, listening: socket.socket) -> None:
        """Accept from a listening socket, until it is closed or we are."""
        server = await self.loop.create_server(self.protocol, sock=listening, backlog=BACKLOG, **self.options())
        self._servers.append(server)

    def connection_ended(self, connection: T) -> None:
        self.connections.pop(connection, None)
        if self._empty is not None and not self.connections:
            self._empty.set()

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until no connection is left; False: some still are."""
        empty = self._empty = self._empty or asyncio.Event()  # one for all who wait
        try:
            async with asyncio.timeout(timeout_s):
                while self.connections:
                    empty.clear()
                    await empty.wait()
        except TimeoutError:
            return False
        return True

    async def retire(self, timeout_s: float) -> bool:
        """Stop accepting, and wait until no connection is left; False: some still are."""
        self.stop_accepting()
        self.draining = True
        return await self.emptied(timeout_s)

    def stop_accepting(self) -> None:
        """Close the listening sockets; what was accepted is served."""
        for server in self._servers:
            server.close()
        self._servers.clear()
