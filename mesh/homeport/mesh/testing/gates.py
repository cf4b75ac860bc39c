"""Gates: relays on loopback that stand in for the network between two parties, where it is real.

In virtual time the memory network has faults of its own. Over real sockets a mesh connects its parties through gates
instead: one before each instance, and one before the registry for each party. A gate that is *held* accepts and carries
nothing, as a stopped process or a broken route does; one that is *shut* resets everybody and refuses.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

LOOPBACK: Final = "127.0.0.1"


class Gate:
    """A relay to one address.

    Attributes:
        target: `host:port` that new connections go to.
        address: where it listens.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.address: str = ""
        self.held: bool = False
        self._ends: dict[_End, None] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen: on a free port first, later on the same one again."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self), host or LOOPBACK, int(port or 0))
        host, number = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{number}"

    def hold(self) -> None:
        """Carry nothing until `release`; what arrives waits."""
        self.held = True
        for end in self._ends:
            end.adjust()

    def release(self) -> None:
        """Carry again, what has waited first."""
        self.held = False
        for end in list(self._ends):
            end.adjust()

    def shut(self) -> None:
        """Reset every connection and refuse new ones until `open`."""
        self.held = False
        if self._server is not None:
            self._server.close()
            self._server = None
        for end in list(self._ends):
            end.abort()

    def joined(self, end: _End) -> None:
        self._ends[end] = None

    def left(self, end: _End) -> None:
        self._ends.pop(end, None)


class _End(asyncio.Protocol):
    """One of the two ends of a relayed connection: what it reads is what the other writes."""

    def __init__(self, gate: Gate, other: _End | None = None) -> None:
        self._gate = gate
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._full = False  # the other end's writer has enough for now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type
        self._gate.joined(self)
        if self._other is not None:
            self._other._other = self
            self._other.adjust()
        self.adjust()

    def adjust(self) -> None:
        """Read if, and only if, what is read can go on."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._other is None and self._connecting is None and not self._gate.held:
            self._connecting = asyncio.ensure_future(self._connect())
        if self._gate.held or self._full or self._other is None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def _connect(self) -> None:
        host, _, port = self._gate.target.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _End(self._gate, self), host, int(port))
        except OSError:
            self.abort()
        else:
            if self._transport is None:  # the one who connected has gone meanwhile
                assert self._other is not None
                self._other.abort()

    def data_received(self, data: bytes) -> None:
        assert self._other is not None
        if self._other._transport is not None:
            self._other._transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other._full = True
            self._other.adjust()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other._full = False
            self._other.adjust()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gate.left(self)
        if self._other is not None and self._other._transport is not None:
            if exc is None:
                self._other._transport.close()
            else:
                self._other.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
