"""Datagrams in memory: each finds its own way, so they are reordered and lost as the link has it, never cut."""

from __future__ import annotations

import asyncio
import contextvars
import errno
from typing import TYPE_CHECKING, Any, cast

from homeport.mesh.testing.hosts import Host

if TYPE_CHECKING:
    from homeport.mesh.testing.network import Network

DATAGRAM_BYTES_MAX = 65_507
"""The largest payload UDP can carry over IPv4."""

UNREAD_MAX = 256
"""Datagrams that wait for a process that does not run; more are dropped, as from a full receive buffer."""


class MemoryDatagrams(asyncio.DatagramTransport):
    """A datagram endpoint in memory."""

    def __init__(
        self, network: Network, host: Host, protocol: asyncio.DatagramProtocol, sockname: Any, peername: Any
    ) -> None:
        super().__init__({"sockname": sockname, "peername": peername, "socket": None})
        self.host = host
        self.sockname = sockname
        self.peername = peername
        self.closed: bool = False
        self._network = network
        self._loop = network.loop
        self._protocol = protocol
        self._context = contextvars.copy_context()
        self._unread = 0

    def open(self) -> asyncio.Future[None]:
        """The future is done when `connection_made` was called."""
        opened: asyncio.Future[None] = self._loop.create_future()

        def call() -> None:
            try:
                self._protocol.connection_made(self)
            finally:
                if not opened.done():
                    opened.set_result(None)

        self._loop.call_soon(call, context=self._context)
        return opened

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.DatagramProtocol", protocol)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0  # a datagram is on the wire at once

    def sendto(self, data: bytes | bytearray | memoryview[Any], addr: Any = None) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self.peername is not None and addr not in (None, self.peername):
            raise ValueError(f"Invalid address: must be None or {self.peername}")
        if self.closed:
            return
        target = addr or self.peername
        if target is None:
            raise ValueError("an endpoint without a remote address needs the address to send to")
        if len(data) > DATAGRAM_BYTES_MAX:
            self._loop.call_soon(
                self._protocol.error_received, OSError(errno.EMSGSIZE, "Message too long"), context=self._context
            )
            return
        self._network.carry(self, bytes(data), str(target[0]), int(target[1]))

    def receive(self, data: bytes, addr: Any) -> None:
        """A datagram arrived here; the process reads it when it runs."""
        if self.closed or self._unread >= UNREAD_MAX or (self.peername is not None and addr != self.peername):
            return
        self._unread += 1
        self._loop.call_soon(self._read, data, addr, context=self._context)

    def _read(self, data: bytes, addr: Any) -> None:
        self._unread -= 1
        if not self.closed:
            self._protocol.datagram_received(data, addr)

    def refused(self) -> None:
        """Nobody listens where the last datagram went; only an endpoint with a remote address is told."""
        if self.peername is not None and not self.closed:
            error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            self._loop.call_soon(self._protocol.error_received, error, context=self._context)

    def close(self) -> None:
        if not self.closed:
            self.kill()
            self._loop.call_soon(self._protocol.connection_lost, None, context=self._context)

    def abort(self) -> None:
        self.close()

    def kill(self) -> None:
        """Unbind without a word to the protocol, whose process is gone."""
        self.closed = True
        self._network.unbind_datagrams(self)
