"""The bodies of HTTP/1 messages: at which byte each ends, and how its pieces are written.

Strategy: one small reader per way of delimiting, fed with bytes as they come. Each hands out the bytes of the body,
says when it is `done`, and keeps what followed in `rest`. Chunks are read strictly and written anew, so that
extensions, odd sizes and whatever else parsers disagree about end here.
"""

from __future__ import annotations

import re
from typing import Final

from homeport.sidecar.core import limits
from homeport.sidecar.http1.framing import BARE_LF, CHUNKED, encode_fields, parse_trailers
from homeport.sidecar.http1.lines import Headers, Malformed

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")


class LengthBody:
    """A body of a known length."""

    __slots__ = ("_left", "done", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""  # what followed the message
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return those that are body."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        self._left = 0
        self.done = True
        self.rest = data[left:]
        return data[:left]


class CloseBody:
    """A body that ends with its connection."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; all of them are body."""
        return data


_LINE, _DATA, _DATA_END, _TRAILERS = range(4)


class ChunkedBody:
    """A chunked body, decoded; extensions are dropped (RFC 9112 7.1.1), trailers kept if a trailer may say that."""

    __slots__ = ("_carry", "_extensions", "_left", "_state", "_status", "done", "rest", "trailers")

    def __init__(self, status: int) -> None:
        self._state = _LINE
        self._left = 0
        self._carry = b""  # an incomplete line
        self._extensions = 0
        self._status = status
        self.done = False
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return the body's.

        Raises:
            Malformed: the framing is broken or its overhead too large.
        """
        if self._carry:
            data = self._carry + data
            self._carry = b""
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        while not self.done:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                if piece:
                    pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._state = _DATA_END
            if self._state == _DATA_END:
                end = data[at : at + 2]
                if end != b"\r\n":
                    if end not in (b"", b"\r"):
                        raise Malformed(self._status, "a chunk must end with CR LF")
                    self._carry = end
                    break
                at += 2
                self._state = _LINE
            if self._state == _LINE:
                end_at = data.find(b"\r\n", at, at + limits.CHUNK_LINE_BYTES_MAX)
                if end_at < 0:
                    self._keep(data, at, limits.CHUNK_LINE_BYTES_MAX)
                    break
                self._begin_chunk(data[at:end_at])
                at = end_at + 2
            if self._state == _TRAILERS:
                if data.startswith(b"\r\n", at):
                    at += 2
                else:
                    end_at = data.find(b"\r\n\r\n", at, at + limits.TRAILER_BYTES_MAX)
                    if end_at < 0:
                        self._keep(data, at, limits.TRAILER_BYTES_MAX)
                        break
                    self.trailers = parse_trailers(data[at : end_at + 4], self._status)
                    at = end_at + 4
                self.done = True
                self.rest = data[at:size]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _keep(self, data: bytes, at: int, most: int) -> None:
        carry = data[at:]
        if len(carry) >= most:
            raise Malformed(self._status, "a chunk's size line or the trailers are too long")
        if BARE_LF.search(carry):
            raise Malformed(self._status, "lines of a chunked body must end with CR LF")
        self._carry = carry

    def _begin_chunk(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Malformed(self._status, "malformed chunk size")
        self._extensions += len(line) - match.end(1)
        if self._extensions > limits.CHUNK_EXTENSION_BYTES_MAX:
            raise Malformed(self._status, "too many chunk extensions")
        self._left = int(match[1], 16)
        self._state = _DATA if self._left else _TRAILERS


Body = LengthBody | CloseBody | ChunkedBody


def body_of(length: int, status: int) -> Body:
    """The reader for a body of this `length`; `status` is what its malformation means."""
    if length >= 0:
        return LengthBody(length)
    return ChunkedBody(status) if length == CHUNKED else CloseBody()


def encode_chunk(data: bytes) -> bytes:
    """One chunk. Empty data gives nothing, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode_last_chunk(trailers: Headers) -> bytes:
    """What ends a chunked body."""
    return b"0\r\n%b\r\n" % encode_fields(trailers) if trailers else b"0\r\n\r\n"
