"""Listeners in memory: bound addresses, their backlog, and the server object that asyncio hands out."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from homeport.mesh.testing.errors import NotVirtualError
from homeport.mesh.testing.hosts import Host
from homeport.mesh.testing.streams import MemoryTransport

if TYPE_CHECKING:
    from homeport.mesh.testing.network import Network


class Listener:
    """One bound address. It stands in for the socket in `server.sockets`, as far as a name and a family go."""

    type = socket.SOCK_STREAM

    def __init__(self, network: Network, host: Host, name: Any, family: int, backlog: int) -> None:
        self.network = network
        self.host = host
        self.family = family
        self.backlog = backlog
        self.server: MemoryServer | None = None  # None until it serves
        self.waiting: dict[MemoryTransport, None] = {}  # connected, but not yet accepted by the process
        self._name = name

    def getsockname(self) -> Any:
        """The bound address: `(ip, port)`, for IPv6 with two zeros more, or a path."""
        return self._name

    def fileno(self) -> int:
        """Raises: `NotVirtualError`, there is no descriptor."""
        raise NotVirtualError("a listener in memory has no file descriptor")

    def is_open(self) -> bool:
        """Whether it serves and has room in its backlog."""
        return self.server is not None and len(self.waiting) < max(self.backlog, 1)

    def enqueue(self, transport: MemoryTransport) -> None:
        """A connection is established; the process will accept it when it runs."""
        assert self.server is not None
        self.waiting[transport] = None
        self.network.loop.call_soon(self._accept, transport, context=self.server.context)

    def _accept(self, transport: MemoryTransport) -> None:
        if transport in self.waiting and self.server is not None:
            del self.waiting[transport]
            self.server.attach(transport)

    def close(self) -> None:
        """Stop listening. Who was connected but not accepted is reset."""
        self.server = None
        for transport in self.waiting:
            transport.release()
            transport.peer.be_reset()
        self.waiting.clear()


class MemoryServer(asyncio.AbstractServer):
    """What `create_server` returns, with the promises of Python 3.12 on every version: see `wait_closed`."""

    def __init__(
        self,
        network: Network,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        listeners: list[Listener],
        unbind: Callable[[Listener], None],
    ) -> None:
        self.context: contextvars.Context = contextvars.copy_context()
        self._network = network
        self._factory = protocol_factory
        self._listeners: list[Listener] | None = listeners
        self._unbind = unbind
        self._clients: dict[MemoryTransport, None] = {}
        self._closed: asyncio.Future[None] = network.loop.create_future()
        self._forever: asyncio.Future[None] | None = None

    @property
    def sockets(self) -> tuple[Listener, ...]:
        """Its listeners, each with `getsockname()`; empty once closed."""
        return tuple(self._listeners or ())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._network.loop

    def is_serving(self) -> bool:
        return any(listener.server is self for listener in self._listeners or ())

    def listen(self) -> None:
        """Accept connections from now on."""
        for listener in self._listeners or ():
            listener.server = self

    async def start_serving(self) -> None:
        self.listen()

    async def serve_forever(self) -> None:
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._listeners is None:
            raise RuntimeError(f"server {self!r} is closed")
        self.listen()
        self._forever = self._network.loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stop listening; established connections go on."""
        listeners, self._listeners = self._listeners, None
        for listener in listeners or ():
            self._unbind(listener)
            listener.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._settle()

    def close_clients(self) -> None:
        """Close all established connections (in asyncio since 3.13)."""
        for transport in list(self._clients):
            transport.close()

    def abort_clients(self) -> None:
        """Abort all established connections (in asyncio since 3.13)."""
        for transport in list(self._clients):
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and its last connection is lost, as asyncio does since 3.12."""
        await asyncio.shield(self._closed)

    def attach(self, transport: MemoryTransport) -> None:
        """Accept a connection."""
        try:
            protocol = self._factory()
        except Exception as error:  # noqa: BLE001 - asyncio reports it and goes on accepting
            self._network.loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": error}
            )
            transport.release()
            return
        self._clients[transport] = None
        transport.open(protocol, self)

    def detach(self, transport: MemoryTransport) -> None:
        """A connection is lost."""
        self._clients.pop(transport, None)
        self._settle()

    def _settle(self) -> None:
        if self._listeners is None and not self._clients and not self._closed.done():
            self._closed.set_result(None)
