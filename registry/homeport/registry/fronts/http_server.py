"""aiohttp's server as this registry runs it: its limits set, its connections counted, and one too many told so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from homeport.registry.core.limits import KEY_BYTES_MAX
from homeport.registry.fronts.metrics import FrontNumbers

log = logging.getLogger("homeport.registry.http")

HEAD_LINE_BYTES_MAX: Final = 3 * KEY_BYTES_MAX + 4096  # the longest key, every byte percent-encoded, and its parameters
HEAD_FIELD_BYTES_MAX: Final = 8190  # what servers usually take of one header
_CROWDED_S: Final = 2.0  # for a connection that is too many to say something, so that it can be answered

_REFUSED_CONNECTION: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 20\r\nConnection: close\r\n\r\nToo many connections"
)


class HttpServer(web.Server):
    """aiohttp's server, with its connections counted and limited."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connections_max: int,
        numbers: FrontNumbers,
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            logger=log,
            auto_decompress=False,  # a value is the bytes that were sent
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_FIELD_BYTES_MAX,
        )
        self._connections_max = connections_max
        self._numbers = numbers
        self._crowd: set[_Crowded] = set()

    def accept(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        if self._numbers.connections >= self._connections_max:
            self._numbers.connections_refused += 1
            return _Crowded(self._crowd)
        return self()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._numbers.connections += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._numbers.connections -= 1
        super().connection_lost(handler, exc)

    async def finish(self, timeout_s: float) -> None:
        """Close what is idle, wait for what is under way, and close that too."""
        for crowded_out in tuple(self._crowd):
            crowded_out.close()
        self.pre_shutdown()
        await self.shutdown(timeout_s)


class _Crowded(asyncio.Protocol):
    """A connection there is no room for: it is told so when it asks, and closed."""

    def __init__(self, crowd: set[_Crowded]) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(_CROWDED_S, self.close)
        self._crowd.add(self)

    def data_received(self, _data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_REFUSED_CONNECTION)
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._crowd.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
