"""An answer that is whole when it is sent: head and body in one write, without aiohttp's dictionaries of headers.

Most answers are small and their bytes are there already; building and serializing a multidict of headers for each cost
more than everything the registry itself did for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10

_LINES: Final = {status.value: f"{status.value} {status.phrase}\r\n" for status in HTTPStatus}


class Whole(web.StreamResponse):
    """Written once, by aiohttp's server, like any response; it only does not let anybody change it first."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        # Deliberately not the parent's, which makes what this is there to avoid; the server asks for nothing of it.
        self._status = status
        self._lines = headers
        self._whole = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write it all."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        body = self._whole
        head = [
            "HTTP/1.0 " if request.version == HttpVersion10 else "HTTP/1.1 ",
            _LINES[self._status],
            *[f"{name}: {value}\r\n" for name, value in self._lines.items()],
            f"Content-Length: {len(body)}\r\nDate: ",
            _now.text(),
        ]
        if not self._keep_alive:
            head.append("\r\nConnection: close\r\n\r\n")
        elif request.version == HttpVersion10:
            head.append("\r\nConnection: keep-alive\r\n\r\n")
        else:
            head.append("\r\n\r\n")
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went before it was answered")
        data = "".join(head).encode()
        transport.write(data if request.method == "HEAD" else data + body)
        await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """It is written already."""


class _Now:
    """The time of day as HTTP writes it, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def text(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True)
        return self._text


_now: Final = _Now()
