"""HTTP/1.1 requests that are tried exactly once: a failure is told as its caller would see it.

The demo's users and the readiness check of `homeport run` ask through this and not through a full client, because
full clients quietly send an idempotent request again when a connection breaks, which would hide what is counted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

HEAD_BYTES_MAX: Final = 64 * 1024  # heads and chunk lines; what a proxy accepts at most
BODY_BYTES_MAX: Final = 16 * 1024 * 1024  # above every answer expected here; past it something is wrong
INTERIM_MAX: Final = 8  # as many 1xx answers as the sidecar passes on


class TryError(Exception):
    """The request got no whole answer; `began` says whether the first part of one had arrived."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are lower case, and of repeated headers the last one stands."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Streams:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(slots=True)
class Connection:
    """One keep-alive connection to one address, opened when needed; one request at a time."""

    address: str
    _streams: _Streams | None = field(default=None, init=False)

    async def request(
        self,
        method: str,
        target: str,
        *,
        host: str,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Ask once and return the whole answer, whatever its status.

        Raises:
            TryError: no connection, no whole answer within `timeout_s`, or not HTTP. The connection is closed.
        """
        lines = [f"{method} {target} HTTP/1.1", f"host: {host}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in ("PUT", "POST", "PATCH"):
            lines.append(f"content-length: {len(body)}")
        message = "\r\n".join([*lines, "", ""]).encode() + body
        began = False
        try:
            async with asyncio.timeout(timeout_s):
                streams = await self._open()
                streams.writer.write(message)
                await streams.writer.drain()
                head = await self._head(streams.reader)
                began = True
                status, answered = _parse_head(head)
                content, keep = await _body(streams.reader, method, status, answered)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise TryError(f"{type(error).__name__}: {error}", began=began) from error
        except BaseException:  # cancelled half-way: what comes next on this connection belongs to nobody
            self.close()
            raise
        if not keep:
            self.close()
        return Answer(status, answered, content)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams.writer.close()
            self._streams = None

    async def _open(self) -> _Streams:
        if self._streams is not None and (self._streams.reader.at_eof() or self._streams.writer.is_closing()):
            self.close()
        if self._streams is None:
            host, _, port = self.address.rpartition(":")
            self._streams = _Streams(*await asyncio.open_connection(host, int(port), limit=HEAD_BYTES_MAX))
        return self._streams

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        for _ in range(INTERIM_MAX + 1):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 1"):
                return head
        raise ValueError(f"more than {INTERIM_MAX} interim answers")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    status_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    protocol, _, rest = status_line.partition(" ")
    if not protocol.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError(f"not an HTTP/1 answer: {status_line[:80]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"not a header: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers


async def _body(
    reader: asyncio.StreamReader, method: str, status: int, headers: Mapping[str, str]
) -> tuple[bytes, bool]:
    """Return the body and whether the connection can be used again."""
    keep = headers.get("connection", "").lower() != "close"
    if method == "HEAD" or status in (204, 304):
        return b"", keep
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader), keep
    if "content-length" in headers:
        size = int(headers["content-length"])
        if size > BODY_BYTES_MAX:
            raise ValueError(f"an answer of {size} bytes; allowed: at most {BODY_BYTES_MAX}")
        return await reader.readexactly(size), keep
    body = await reader.read(BODY_BYTES_MAX + 1)
    while chunk := await reader.read(BODY_BYTES_MAX + 1):
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(f"an answer over {BODY_BYTES_MAX} bytes")
    return body, False


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        if len(body) + size > BODY_BYTES_MAX:
            raise ValueError(f"an answer over {BODY_BYTES_MAX} bytes")
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk does not end where it should")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return bytes(body)
