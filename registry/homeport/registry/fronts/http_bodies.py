"""Bodies of HTTP requests and answers: read within bounds of length, time and memory, and written piece by piece.

A request's body has a longest length, which its endpoint says, and a longest time. All that are being read share one
budget of memory, so that many clients at once get a 429 instead of what the process needs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from aiohttp import web

from homeport.registry.fronts.consul.answers import Answer, Refusal, crowded
from homeport.registry.fronts.metrics import FrontNumbers

log = logging.getLogger("homeport.registry.http")

BODY_S_MAX: Final = 30.0  # for a body to arrive, or a piece of one that is streamed: who trickles is told to go
BODIES_BYTES_MAX: Final = 256 * 1024 * 1024  # of all bodies that are being read, together
_CHUNK_BYTES: Final = 64 * 1024


class Bodies:
    """Reads whole bodies within a shared budget of bytes."""

    def __init__(self, bytes_max: int, numbers: FrontNumbers) -> None:
        self._bytes_max = bytes_max
        self._numbers = numbers

    async def read(self, request: web.BaseRequest, bytes_max: int) -> bytes:
        """The whole body, which no longer counts in the budget.

        Raises:
            Refusal: 413, it is longer than `bytes_max`; 408, it took too long to come; 429, there are too many.
        """
        content = request.content
        if content.is_eof():  # it came with its head
            body = content.read_nowait(-1)
            if len(body) > bytes_max:
                raise _too_long(bytes_max)
            return body
        await _begin(request, bytes_max)
        taken = bytearray()
        try:
            async with asyncio.timeout(BODY_S_MAX):
                while chunk := await content.read(_CHUNK_BYTES):
                    self._numbers.body_bytes += len(chunk)
                    taken += chunk
                    if len(taken) > bytes_max:
                        raise _too_long(bytes_max)
                    if self._numbers.body_bytes > self._bytes_max:
                        raise crowded("request bodies")
        except TimeoutError:
            raise _too_slow() from None
        finally:
            self._numbers.body_bytes -= len(taken)
        return bytes(taken)


async def pieces(request: web.BaseRequest, bytes_max: int) -> AsyncIterator[bytes]:
    """A body that is not kept: piece by piece, as it comes.

    Raises:
        Refusal: 413, it is longer than `bytes_max`; 408, a piece took too long to come.
    """
    await _begin(request, bytes_max)
    taken = 0
    while True:
        try:
            async with asyncio.timeout(BODY_S_MAX):
                chunk = await request.content.read(_CHUNK_BYTES)
        except TimeoutError:
            raise _too_slow() from None
        if not chunk:
            return
        taken += len(chunk)
        if taken > bytes_max:
            raise _too_long(bytes_max)
        yield chunk


async def stream(request: web.BaseRequest, answer: Answer, headers: dict[str, str]) -> tuple[web.StreamResponse, int]:
    """Write an answer that comes in pieces, and say how many bytes it had.

    One that fails on its way is cut off, so that nobody takes a part for the whole.
    """
    assert answer.stream is not None
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.force_close()
    written = 0
    async with aclosing(answer.stream) as parts:
        await response.prepare(request)
        if request.method != "HEAD":
            try:
                async for part in parts:
                    await response.write(part)
                    written += len(part)
            except ConnectionError:
                raise  # the client went
            except Exception:
                log.exception("an answer to %s %s broke off by a defect of the registry", request.method, request.path)
                if request.transport is not None:
                    request.transport.abort()
                return response, written
        await response.write_eof()
    return response, written


async def _begin(request: web.BaseRequest, bytes_max: int) -> None:
    """Refuse what is said to be too long before it is sent, and let the rest come."""
    if request.content_length is not None and request.content_length > bytes_max:
        raise _too_long(bytes_max)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def _too_long(bytes_max: int) -> Refusal:
    return Refusal(413, f"Request body too large, max size: {bytes_max} bytes")


def _too_slow() -> Refusal:
    return Refusal(408, f"The request's body did not come within {BODY_S_MAX:.0f} s")
