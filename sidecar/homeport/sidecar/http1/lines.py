"""The lines of HTTP/1 heads, each by itself: the one file that touches the llhttp parser (httptools).

Strategy: without folding, which is refused, a line means the same in whatever head it stands. So a line that llhttp
has found good is remembered with its meaning, and costs a dict lookup when it comes again, as most lines of most heads
do (Host, User-Agent, Accept, Server, the Date of this second). The lines of a head that are new are judged together,
by one run of the parser; nothing is believed that llhttp has not accepted. What several lines say together (one Host,
one length) is checked in `framing`, and so is what llhttp is too lenient about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from homeport.sidecar.core import limits

Headers = list[tuple[bytes, bytes]]

# What a header is to a proxy. Everything else is plain, and passes as it came.
HOST, LENGTH, CODING, CONNECTION, UPGRADE, EXPECT, VIA, FORWARDED, HOP, MESH = range(10)

KINDS: Final = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"via": VIA,
    b"x-forwarded-for": FORWARDED,
    b"x-forwarded-proto": FORWARDED,
    b"x-forwarded-host": FORWARDED,
    b"forwarded": FORWARDED,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"proxy-authenticate": HOP,
    b"proxy-authorization": HOP,
    b"te": HOP,
    b"http2-settings": HOP,
}
MESH_PREFIX: Final = b"x-homeport-"
_REQUESTS_ONLY: Final = frozenset({HOST, EXPECT, FORWARDED})  # in a response they mean nothing, and pass

_TOKEN_START: Final = re.compile(rb"[A-Za-z!#$%&'*+.^_`|~-][A-Za-z0-9!#$%&'*+.^_`|~-]*(?: |$)")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_VERSIONS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}

# A plain line is its bytes as they go on the wire; any other its kind, its value, and its name in lower case. The
# value is an int for a length, the tuple of tokens for Connection.
Special = tuple[int, bytes | int | tuple[bytes, ...], bytes]
Field = bytes | Special
RequestLine = tuple[bytes, bytes, int]  # method, target, minor version
StatusLine = tuple[int, int]  # status, minor version

M = TypeVar("M")


class Malformed(Exception):
    """The other end did not speak HTTP as it must; `status` is what a client is told. The connection is over."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Memory(Generic[M]):
    """Lines and what they mean, in two generations: what is not asked for while one fills up is forgotten."""

    __slots__ = ("_older", "recent")

    def __init__(self) -> None:
        self.recent: dict[bytes, M] = {}
        self._older: dict[bytes, M] = {}

    def find(self, line: bytes) -> M | None:
        """What is not among the recent ones."""
        meaning = self._older.get(line)
        if meaning is not None:
            self.put(line, meaning)
        return meaning

    def put(self, line: bytes, meaning: M) -> None:
        if len(line) > limits.LINE_REMEMBERED_BYTES_MAX:
            return
        if len(self.recent) >= limits.LINES_REMEMBERED_MAX:
            self._older, self.recent = self.recent, {}
        self.recent[line] = meaning


request_lines: Final[Memory[RequestLine]] = Memory()
status_lines: Final[Memory[StatusLine]] = Memory()
request_fields: Final[Memory[Field]] = Memory()
response_fields: Final[Memory[Field]] = Memory()


def judge_request(line: bytes, fields: Sequence[bytes]) -> tuple[RequestLine, list[Field]]:
    """What the lines of a request's head mean.

    Raises:
        Malformed: one of them is not what it must be; with the status that the client should be told.
    """
    known = request_lines.recent.get(line) or request_lines.find(line)
    meanings, new = _recall(request_fields, fields)
    if known is not None and not new:
        return known, meanings
    receiver = _Receiver()
    parser = HttpRequestParser(receiver)
    try:
        parser.feed_data(b"\r\n".join([b"GET / HTTP/1.1" if known else line, *new.values(), b"\r\n"]))
    except HttpParserUpgrade:
        pass  # the head was complete; whether anything is upgraded is decided by the exchange
    except HttpParserInvalidMethodError:
        raise _bad_method(line) from None
    except HttpParserError as error:
        raise Malformed(400, f"malformed request: {error}") from None
    if known is None:
        known = _request_line(line, parser.get_method() if receiver.complete else b"", receiver.target)
    _learn(request_fields, receiver, new, meanings, _request_field, 400)
    return known, meanings


def judge_response(line: bytes, fields: Sequence[bytes]) -> tuple[StatusLine, list[Field]]:
    """What the lines of a response's head mean.

    Raises:
        Malformed: it is no answer that could be passed on.
    """
    known = status_lines.recent.get(line) or status_lines.find(line)
    meanings, new = _recall(response_fields, fields)
    if known is not None and not new:
        return known, meanings
    receiver = _Receiver()
    parser = HttpResponseParser(receiver)
    try:
        parser.feed_data(b"\r\n".join([b"HTTP/1.1 200 OK" if known else line, *new.values(), b"\r\n"]))
    except HttpParserUpgrade:
        pass  # only says that bytes of another protocol follow; the exchange knows whether it asked for that
    except HttpParserError as error:
        raise Malformed(502, f"malformed response: {error}") from None
    if known is None:
        status, minor = parser.get_status_code(), _VERSIONS.get(line[:8])
        if minor is None or status < 100:
            raise Malformed(502, "the status line must be HTTP/1.0 or HTTP/1.1 with a status from 100")
        known = status, minor
        status_lines.put(line, known)
    _learn(response_fields, receiver, new, meanings, _response_field, 502)
    return known, meanings


def judge_trailers(block: bytes, status: int) -> Headers:
    """The fields after a last chunk, from a block with its empty line; nothing of them is remembered.

    Raises:
        Malformed: with `status`.
    """
    # llhttp judges trailers by the same rules as headers when they stand in a head of their own.
    receiver = _Receiver()
    try:
        HttpResponseParser(receiver).feed_data(b"HTTP/1.1 200 OK\r\n" + block)
    except (HttpParserError, HttpParserUpgrade) as error:
        raise Malformed(status, f"malformed trailers: {error}") from None
    return receiver.fields


class _Receiver:
    """Takes llhttp's callbacks."""

    __slots__ = ("complete", "fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: Headers = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _recall(memory: Memory[Field], lines: Sequence[bytes]) -> tuple[list[Field], dict[int, bytes]]:
    """What is known of each line, and by place those that are not; their meanings are still to be filled in."""
    meanings: list[Field] = []
    new: dict[int, bytes] = {}
    for at, line in enumerate(lines):
        meaning = memory.recent.get(line) or memory.find(line)
        if meaning is None:
            new[at] = line
            meaning = b""
        meanings.append(meaning)
    return meanings, new


def _learn(
    memory: Memory[Field],
    receiver: _Receiver,
    new: dict[int, bytes],
    meanings: list[Field],
    meaning_of: Callable[[int | None, bytes, bytes, bytes], Field],
    status: int,
) -> None:
    if not receiver.complete or len(receiver.fields) != len(new):
        raise Malformed(status, "the head's lines are not what they seem")
    for (at, line), (name, value) in zip(new.items(), receiver.fields, strict=True):
        if not line.startswith(name + b":"):
            raise Malformed(status, "the head's lines are not what they seem")
        low = name.lower()
        kind = MESH if low.startswith(MESH_PREFIX) else KINDS.get(low)
        meaning = meanings[at] = meaning_of(kind, name, low, value.rstrip(b" \t"))
        memory.put(line, meaning)


def _request_field(kind: int | None, name: bytes, low: bytes, value: bytes) -> Field:
    if kind == HOST and _HOST.fullmatch(value) is None:
        raise Malformed(400, "Host must be a valid host[:port], and not empty")
    if kind == EXPECT and value.lower() != b"100-continue":
        raise Malformed(417, "the only expectation that can be met is 100-continue")
    return _field(kind, name, low, value)


def _response_field(kind: int | None, name: bytes, low: bytes, value: bytes) -> Field:
    return _field(None if kind in _REQUESTS_ONLY else kind, name, low, value)


def _field(kind: int | None, name: bytes, low: bytes, value: bytes) -> Field:
    if kind is None:
        return b"%b: %b" % (name, value)
    if kind == LENGTH:
        return kind, int(value), low
    if kind == CONNECTION:
        return kind, tuple([token.strip().lower() for token in value.split(b",")]), low
    if kind in (CODING, UPGRADE):
        return kind, value.lower(), low
    return kind, value, low


def _request_line(line: bytes, method: bytes, target: bytes) -> RequestLine:
    # llhttp forgives double spaces and takes other protocols' versions: the line must be exactly what was understood.
    before, _, version = line.rpartition(b" ")
    if before != b"%b %b" % (method, target):
        raise Malformed(400, "the request line must be: method, one space, target, one space, HTTP/1.1")
    minor = _VERSIONS.get(version)
    if minor is None:
        raise Malformed(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(line) > limits.LINE_BYTES_MAX:
        raise Malformed(414, f"the request line is longer than {limits.LINE_BYTES_MAX} bytes")
    if (
        target[:1] != b"/"
        and target[:4].lower() != b"http"
        and (method, target) != (b"OPTIONS", b"*")
        and method != b"CONNECT"
    ):
        raise Malformed(400, "the target must be a path or an absolute URI")
    meaning = method, target, minor
    request_lines.put(line, meaning)
    return meaning


def starts_like_a_request(data: bytes) -> bool:
    """Whether the first bytes could become a request's method."""
    return _TOKEN_START.match(data) is not None


def _bad_method(line: bytes) -> Malformed:
    if not starts_like_a_request(line):
        return Malformed(400, "this is not an HTTP/1 request")
    return Malformed(501, "this method is not implemented")
