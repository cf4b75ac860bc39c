"""aiohttp's server as this registry runs it: its limits set, its connections counted, and one too many told so.

Slow clients are cut off by looking over all connections now and then, which costs a request nothing: one whose first
request does not come, and one that takes none of an answer that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web

from homeport.registry.core.limits import KEY_BYTES_MAX
from homeport.registry.fronts.metrics import FrontNumbers

log = logging.getLogger("homeport.registry.http")

HEAD_LINE_BYTES_MAX: Final = 3 * KEY_BYTES_MAX + 4096  # the longest key, every byte percent-encoded, and its parameters
HEAD_FIELD_BYTES_MAX: Final = 8190  # what servers usually take of one header
FIRST_HEAD_S_MAX: Final = 30.0  # from the connection to the end of its first request's head
IDLE_S_MAX: Final = 180.0  # and of a later one from the last answer: twice what Go's clients keep an idle connection
STALLED_S_MAX: Final = 30.0  # an answer of which a client takes next to nothing for so long is not wanted
TAKEN_BYTES_MIN: Final = 10 * 1024  # less than this between two looks is next to nothing: some 1 KiB/s
_CROWDED_S: Final = 2.0  # for a connection that is too many to say something, so that it can be answered
_LOOKS: Final = 3  # at the connections, within the shortest of these times

_REFUSED_CONNECTION: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 20\r\nConnection: close\r\n\r\nToo many connections"
)


class _Unsent:
    """What waits to be sent on a connection, and since when hardly a byte of it went."""

    __slots__ = ("bytes", "since")

    def __init__(self) -> None:
        self.bytes = 0
        self.since = 0.0


class HttpServer(web.Server):
    """aiohttp's server, with its connections counted, limited and watched.

    Args:
        handler: answers a request.
        connections_max: connections beyond this are answered 429 and closed.
        numbers: where connections are counted.
        first_head_s_max: how long a new connection may take to ask for something.
        stalled_s_max: how long a client may take nothing of its answer.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connections_max: int,
        numbers: FrontNumbers,
        *,
        first_head_s_max: float = FIRST_HEAD_S_MAX,
        stalled_s_max: float = STALLED_S_MAX,
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            logger=log,
            auto_decompress=False,  # a value is the bytes that were sent
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_FIELD_BYTES_MAX,
            keepalive_timeout=IDLE_S_MAX,
        )
        self._connections_max = connections_max
        self._numbers = numbers
        self._first_head_s_max = first_head_s_max
        self._stalled_s_max = stalled_s_max
        self._crowd: dict[_Crowded, None] = {}
        self._unheard: dict[web.RequestHandler, float] = {}  # connections without a request yet, oldest first
        self._unsent: dict[asyncio.Transport, _Unsent] = {}
        self._look_s = min(first_head_s_max, stalled_s_max) / _LOOKS
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def accept(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        if self._numbers.connections >= self._connections_max:
            self._numbers.connections_refused += 1
            return _Crowded(self._crowd)
        return self()

    def heard(self, request: web.BaseRequest) -> None:
        """A request has come."""
        if self._unheard:
            self._unheard.pop(request.protocol, None)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._numbers.connections += 1
        self._unheard[handler] = asyncio.get_running_loop().time()
        self._unsent[transport] = _Unsent()
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._numbers.connections -= 1
        self._unheard.pop(handler, None)
        if handler.transport is not None:
            self._unsent.pop(handler.transport, None)
        super().connection_lost(handler, exc)

    async def finish(self, timeout_s: float) -> None:
        """Close what is idle, wait for what is under way, and close that too."""
        self._timer.cancel()
        for crowded_out in tuple(self._crowd):
            crowded_out.close()
        self.pre_shutdown()
        await self.shutdown(timeout_s)

    def _look(self) -> None:
        """Cut off who says nothing, and who takes nothing."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for handler, since in list(self._unheard.items()):
            if now - since < self._first_head_s_max:
                break
            self._cut(handler.transport)
        for transport, unsent in list(self._unsent.items()):
            waiting = transport.get_write_buffer_size()
            if not waiting or not unsent.bytes - TAKEN_BYTES_MIN < waiting <= unsent.bytes:
                unsent.bytes, unsent.since = waiting, now
            elif now - unsent.since >= self._stalled_s_max:
                self._cut(transport)
        self._timer = loop.call_later(self._look_s, self._look)

    def _cut(self, transport: asyncio.BaseTransport | None) -> None:
        self._numbers.connections_cut += 1
        if transport is not None:
            cast("asyncio.Transport", transport).abort()


class _Crowded(asyncio.Protocol):
    """A connection there is no room for: it is told so when it asks, and closed."""

    def __init__(self, crowd: dict[_Crowded, None]) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._timer = asyncio.get_running_loop().call_later(_CROWDED_S, self.close)
        self._crowd[self] = None

    def data_received(self, _data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_REFUSED_CONNECTION)
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._crowd.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
