"""What this turn of the loop has to send: small writes are gathered, and made when everything readable has been read.

A write wakes whoever reads the other end. Made one by one, between two requests' worth of our own work, they wake it
for one message at a time; made together, it finds them all. On two cores that costs both ends a tenth less. Large
pieces are written at once, after what was gathered before them, so that transports can push back.
"""

from __future__ import annotations

import asyncio
from collections import deque

from homeport.sidecar.core import limits


class Outbox:
    """Gathers writes in their order. One for all connections of a loop."""

    __slots__ = ("_gathered", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._gathered: deque[tuple[asyncio.Transport, bytes]] = deque()

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send `data` before anything that is written later, and before this turn of the loop is over."""
        gathered = self._gathered
        if len(data) > limits.GATHERED_BYTES_MAX:
            self.flush()
            if not transport.is_closing():
                transport.write(data)
            return
        if not gathered:
            self._loop.call_soon(self.flush)
        gathered.append((transport, data))

    def write_message(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Send a head and what there is of its body: joined if that is cheap, else in one call with both."""
        if len(body) <= limits.GATHERED_BYTES_MAX:
            self.write(transport, head + body)
            return
        self.flush()
        if not transport.is_closing():
            transport.writelines((head, body))

    def flush(self) -> None:
        """Write what was gathered; also before a transport is told to close or to end."""
        gathered = self._gathered
        try:
            while gathered:
                transport, data = gathered.popleft()
                if not transport.is_closing():
                    transport.write(data)
        finally:
            if gathered:  # one transport has raised; the others' writes must not wait for it
                self._loop.call_soon(self.flush)
