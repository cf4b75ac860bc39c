"""The lines of HTTP/1 heads, each by itself: the one file that touches the llhttp parser (httptools).

Strategy: without folding, which is refused, a line means the same in whatever head it stands. So a line that llhttp
has found good is remembered with its meaning, and costs a dict lookup when it comes again, as most lines of most heads
do (Host, User-Agent, Accept, Server, the Date of this second). A new line whose name is known to mean nothing to us (a
trace id) needs only the right characters. All others of a head are judged together, by one run of the parser. What
several lines say together (one Host, one length) is checked in `framing`, and so is what llhttp is too lenient about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
HOST, LENGTH, CODING, CONNECTION, UPGRADE, EXPECT, VIA, FORWARDED, HOP, MESH, MAX_FORWARDS = range(11)

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
    b"max-forwards": MAX_FORWARDS,
}
MESH_PREFIX: Final = b"x-homeport-"
_REQUESTS_ONLY: Final = frozenset({HOST, EXPECT, FORWARDED, MAX_FORWARDS})  # in a response they mean nothing, and pass

_TOKEN_START: Final = re.compile(rb"[A-Za-z!#$%&'*+.^_`|~-][A-Za-z0-9!#$%&'*+.^_`|~-]*(?: |$)")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# What llhttp takes in a value, and a part of what it takes in a request line: the rest is left to it.
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_ORDINARY_LINE: Final = re.compile(
    rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/[A-Za-z0-9._~:/?@!$&'()*+,;=%-]*) HTTP/1\.([01])"
)
_FORWARDS: Final = re.compile(rb"[0-9]{1,9}")  # what is longer, or no number, may be ignored (RFC 9110 7.6.2)
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


def judge_request(first: bytes, rest: Sequence[bytes]) -> tuple[RequestLine, list[Field]]:
    """What the lines of a request's head mean.

    Raises:
        Malformed: one of them is not what it must be; with the status that the client should be told.
    """
    line = request_lines.recent.get(first) or request_lines.find(first) or _ordinary_line(first)
    fields, new = _recall(request_fields, rest)
    if line is not None and not new:
        return line, fields
    receiver = _Receiver()
    parser = HttpRequestParser(receiver)
    try:
        parser.feed_data(b"\r\n".join([b"GET / HTTP/1.1" if line else first, *[rest[at] for at in new], b"\r\n"]))
    except HttpParserUpgrade:
        pass  # the head was complete; whether anything is upgraded is decided by the exchange
    except HttpParserInvalidMethodError:
        raise _bad_method(first) from None
    except HttpParserError as error:
        raise Malformed(400, f"malformed request: {error}") from None
    if line is None:
        line = _request_line(first, parser.get_method() if receiver.complete else b"", receiver.target)
    for at, name, value in _found(receiver, rest, new, 400):
        fields[at] = request_fields.learn(rest[at], name, value)
    return line, fields


def judge_response(first: bytes, rest: Sequence[bytes]) -> tuple[StatusLine, list[Field]]:
    """What the lines of a response's head mean.

    Raises:
        Malformed: it is no answer that could be passed on.
    """
    line = status_lines.recent.get(first) or status_lines.find(first)
    fields, new = _recall(response_fields, rest)
    if line is not None and not new:
        return line, fields
    if line is None:
        new = list(range(len(rest)))  # a status may mean something only beside its fields: a 101 beside its Upgrade
    receiver = _Receiver()
    parser = HttpResponseParser(receiver)
    try:
        parser.feed_data(b"\r\n".join([b"HTTP/1.1 200 OK" if line else first, *[rest[at] for at in new], b"\r\n"]))
    except HttpParserUpgrade:
        pass  # only says that bytes of another protocol follow; the exchange knows whether it asked for that
    except HttpParserError as error:
        raise Malformed(502, f"malformed response: {error}") from None
    if line is None:
        status, minor = parser.get_status_code(), _VERSIONS.get(first[:8])
        if minor is None or status < 100:
            raise Malformed(502, "the status line must be HTTP/1.0 or HTTP/1.1 with a status from 100")
        line = status, minor
        status_lines.put(first, line)
    for at, name, value in _found(receiver, rest, new, 502):
        fields[at] = response_fields.learn(rest[at], name, value)
    return line, fields


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


def _recall(memory: Fields, rest: Sequence[bytes]) -> tuple[list[Field], list[int]]:
    """What each line means, and the places of those that only llhttp can tell."""
    fields: list[Field] = []
    new: list[int] = []
    recent = memory.recent
    for at, line in enumerate(rest):
        field = recent.get(line) or memory.find(line) or memory.ordinary(line)
        if field is None:
            new.append(at)
            field = b""  # to be filled in
        fields.append(field)
    return fields, new


def _found(
    receiver: _Receiver, rest: Sequence[bytes], new: Sequence[int], status: int
) -> Iterator[tuple[int, bytes, bytes]]:
    """The place, name and value of each line that llhttp has judged, if it has seen the same lines as we."""
    if not receiver.complete or len(receiver.fields) != len(new):
        raise Malformed(status, "the head's lines are not what they seem")
    for at, (name, value) in zip(new, receiver.fields, strict=True):
        if not rest[at].startswith(name + b":"):
            raise Malformed(status, "the head's lines are not what they seem")
        yield at, name, value


def _request_meaning(kind: int, low: bytes, value: bytes) -> Field:
    if kind == HOST and _HOST.fullmatch(value) is None:
        raise Malformed(400, "Host must be a valid host[:port], and not empty")
    if kind == EXPECT and value.lower() != b"100-continue":
        raise Malformed(417, "the only expectation that can be met is 100-continue")
    if kind == MAX_FORWARDS:
        return (kind, int(value), low) if _FORWARDS.fullmatch(value) else b"Max-Forwards: %b" % value
    return _meaning(kind, low, value)


def _meaning(kind: int, low: bytes, value: bytes) -> Field:
    if kind == LENGTH:
        return kind, int(value), low
    if kind == CONNECTION:
        return kind, tuple([token.strip().lower() for token in value.split(b",")]), low
    if kind in (CODING, UPGRADE):
        return kind, value.lower(), low
    return kind, value, low


class Fields(Memory[Field]):
    """Header lines; and names that are plain, whose values need no more than the right characters."""

    __slots__ = ("_kinds", "_meaning", "_plain")

    def __init__(self, kinds: Mapping[bytes, int], meaning: Callable[[int, bytes, bytes], Field]) -> None:
        super().__init__()
        self._kinds = kinds
        self._meaning = meaning
        self._plain: Memory[bool] = Memory()

    def ordinary(self, line: bytes) -> Field | None:
        """The meaning of a new line with a plain name that was met before."""
        name, colon, value = line.partition(b":")
        plain = self._plain
        if colon and (plain.recent.get(name) or plain.find(name)) and _VALUE.fullmatch(value):
            field = b"%b: %b" % (name, value.strip(b" \t"))
            self.put(line, field)
            return field
        return None

    def learn(self, line: bytes, name: bytes, value: bytes) -> Field:
        """Remember a line that llhttp has taken apart."""
        low = name.lower()
        kind = MESH if low.startswith(MESH_PREFIX) else self._kinds.get(low)
        if kind is None and b"_" in low:
            # To CGI and WSGI it is the same name with `-`: nobody may say in disguise what is ours to say.
            meant = low.replace(b"_", b"-")
            if meant in self._kinds or meant.startswith(MESH_PREFIX):
                kind = HOP
        value = value.rstrip(b" \t")
        if kind is None:
            self._plain.put(name, True)
        field = b"%b: %b" % (name, value) if kind is None else self._meaning(kind, low, value)
        self.put(line, field)
        return field


request_lines: Final[Memory[RequestLine]] = Memory()
status_lines: Final[Memory[StatusLine]] = Memory()
request_fields: Final = Fields(KINDS, _request_meaning)
response_fields: Final = Fields({name: kind for name, kind in KINDS.items() if kind not in _REQUESTS_ONLY}, _meaning)


def _ordinary_line(line: bytes) -> RequestLine | None:
    """An origin-form request line of everyday methods and characters, which needs no parser."""
    match = _ORDINARY_LINE.fullmatch(line)
    if match is None:
        return None
    method, target, minor = match.groups()
    meaning = method, target, int(minor)
    request_lines.put(line, meaning)
    return meaning


def _request_line(line: bytes, method: bytes, target: bytes) -> RequestLine:
    # llhttp forgives double spaces and takes other protocols' versions: the line must be exactly what was understood.
    before, _, version = line.rpartition(b" ")
    if before != b"%b %b" % (method, target):
        raise Malformed(400, "the request line must be: method, one space, target, one space, HTTP/1.1")
    minor = _VERSIONS.get(version)
    if minor is None:
        raise Malformed(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if method == b"CONNECT" and target[:1] in (b"/", b"*"):
        raise Malformed(400, "CONNECT needs host:port")
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
