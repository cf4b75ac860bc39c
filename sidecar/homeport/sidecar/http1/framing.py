"""The heads of HTTP/1 messages: the one file that touches the llhttp parser (httptools).

Strategy: llhttp sees exactly one head at a time and never a body. The end of a head is found here and its size is
counted before the parser is fed, so there are no limits to add afterwards; a pipelined request stays unparsed bytes;
nothing that follows an Upgrade, a CONNECT or the answer to a HEAD can be taken for a message. Bodies are delimited in
`bodies`, whose readers know at which byte a message ends, something llhttp does not tell.

llhttp is trusted with characters, line ends, folding, Content-Length and its conflicts. Checked here because it is
lenient: the request line as a whole, versions, Host, Transfer-Encoding, Upgrade and Expect, status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from homeport.sidecar.core import limits

Headers = list[tuple[bytes, bytes]]

CHUNKED: Final = -1  # as a message's `length`
UNTIL_CLOSE: Final = -2

# What a header is to a proxy. Everything not listed is PLAIN, the only kind that is false, and passes as it came.
PLAIN, HOST, LENGTH, CODING, CONNECTION, UPGRADE, EXPECT, VIA, FORWARDED, HOP, MESH = range(11)

_LISTED: Final = {
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
_REQUESTS_ONLY: Final = frozenset({HOST, EXPECT, FORWARDED})  # in a response they mean nothing, and pass
_MESH_PREFIX: Final = b"x-homeport-"
# What a trailer may never say (RFC 9110 6.5.1): how the message is framed, where it goes, who sent it.
_NOT_IN_TRAILERS: Final = frozenset(_LISTED) | {
    b"authorization", b"cookie", b"set-cookie", b"content-encoding", b"content-type", b"content-range", b"trailer",
    b"www-authenticate", b"cache-control", b"max-forwards", b"location", b"date", b"expires", b"vary", b"age",
    b"x-real-ip",
}  # fmt: skip

_KINDS: Final[dict[bytes, int]] = {}  # spelling -> kind, for the spellings met so far
_KINDS_MAX: Final = 1024  # honest traffic uses a few dozen spellings; an attacker's are classified each time

_HOSTS: Final[set[bytes]] = set()  # valid ones met so far, as many as spellings of names
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_TOKEN_START: Final = re.compile(rb"[A-Za-z!#$%&'*+.^_`|~-][A-Za-z0-9!#$%&'*+.^_`|~-]*(?: |$)")
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_BARE_CR: Final = re.compile(rb"\r(?!\n)[^\n]")
_VERSIONS: Final = {b" HTTP/1.1": 1, b" HTTP/1.0": 0}

STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, reason.encode())
    for status, reason in (dict.fromkeys(range(100, 1000), "") | {s.value: s.phrase for s in HTTPStatus}).items()
}


class Malformed(Exception):
    """The other end did not speak HTTP as it must; `status` is what a client is told. The connection is over."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _kind_of(name: bytes) -> int:
    low = name.lower()
    kind = _LISTED.get(low)
    if kind is None:
        kind = MESH if low.startswith(_MESH_PREFIX) else PLAIN
    if len(_KINDS) < _KINDS_MAX and len(name) < 64:
        _KINDS[name] = kind
    return kind


def head_end(data: bytes, *, request: bool) -> int:
    """Where the body begins, or 0 while the head is incomplete.

    Raises:
        Malformed: too long, or already certain to be wrong.
    """
    end = data.find(b"\r\n\r\n", 0, limits.HEAD_BYTES_MAX)
    if end >= 0:
        return end + 4
    line_end = data.find(b"\r\n", 0, limits.LINE_BYTES_MAX)
    if line_end < 0 and len(data) >= limits.LINE_BYTES_MAX:
        raise Malformed(414 if request else 502, f"the first line is longer than {limits.LINE_BYTES_MAX} bytes")
    if len(data) >= limits.HEAD_BYTES_MAX:
        raise Malformed(431 if request else 502, f"the head is longer than {limits.HEAD_BYTES_MAX} bytes")
    # What can never become a head is refused now, not when the time for a slow one is up.
    if BARE_LF.search(data) or _BARE_CR.search(data):
        raise Malformed(400, "lines must end with CR LF")
    if request and data[:1] != b"\r" and _TOKEN_START.match(data) is None:
        raise Malformed(400, "this is not an HTTP/1 request")
    return 0


class _Head:
    """What requests and responses share; doubles as the receiver of llhttp's callbacks.

    Defaults stand in the class, not in slots: most heads change few of them, and making one is on the hot path.
    """

    length = 0  # of the body in bytes, or CHUNKED or UNTIL_CLOSE
    minor = 1
    keep_alive = True
    upgrade = b""
    via: tuple[bytes, ...] = ()
    mesh: tuple[tuple[bytes, bytes], ...] = ()  # x-homeport-*, names in lower case
    nominated: tuple[bytes, ...] = ()  # tokens of Connection
    complete = False
    _codings: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        self.headers: Headers = []  # end to end, as they came, in their order

    def on_headers_complete(self) -> None:
        self.complete = True

    def _shared(self, kind: int, name: bytes, value: bytes) -> None:
        if kind == CONNECTION:
            self.nominated += tuple([token.strip().lower() for token in value.split(b",")])
        elif kind == LENGTH:
            self.length = int(value)
        elif kind == CODING:
            self._codings += (value.strip().lower(),)
        elif kind == UPGRADE:
            self.upgrade = self.upgrade + b"," + value.lower() if self.upgrade else value.strip().lower()
        elif kind == VIA:
            self.via += (value,)
        elif kind == MESH:
            self.mesh += ((name.lower(), value.strip()),)

    def _settle(self, status: int) -> None:
        if len(self.headers) > limits.HEADERS_MAX:
            raise Malformed(431 if status == 400 else status, f"more than {limits.HEADERS_MAX} headers")
        if self._codings:
            if self._codings != (b"chunked",) or self.minor == 0:
                raise Malformed(status, "Transfer-Encoding must be chunked, once, and HTTP/1.1")
            self.length = CHUNKED
        tokens = self.nominated
        if not tokens:
            self.keep_alive = self.minor == 1
        elif tokens != (b"keep-alive",):
            self.keep_alive = b"close" not in tokens and (self.minor == 1 or b"keep-alive" in tokens)
            named = frozenset(tokens)
            self.headers = [pair for pair in self.headers if pair[0].lower() not in named]
        if self.upgrade and b"upgrade" not in tokens:
            self.upgrade = b""


class RequestHead(_Head):
    """One request's head, checked. `host` is empty only in HTTP/1.0."""

    method = b""
    target = b""
    host = b""
    expect = False
    forwarded: tuple[tuple[bytes, bytes], ...] = ()  # X-Forwarded-*, Forwarded: as sent, names in lower case

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            kind = _kind_of(name)
        if not kind:
            self.headers.append((name, value))
        elif kind == HOST:
            if self.host or not value:
                raise Malformed(400, "a request must have one Host, and not an empty one")
            self.host = value.rstrip()
        elif kind == EXPECT:
            if value.strip().lower() != b"100-continue":
                raise Malformed(417, "the only expectation that can be met is 100-continue")
            self.expect = True
        elif kind == FORWARDED:
            self.forwarded += ((name.lower(), value.strip()),)
        else:
            self._shared(kind, name, value)


class ResponseHead(_Head):
    """One response's head, checked. If `bodiless`, no body follows: `length` says what it would have been."""

    status = 0
    bodiless = False
    has_length = False  # whether it came with a Content-Length
    length = UNTIL_CLOSE

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            kind = _kind_of(name)
        if not kind:
            self.headers.append((name, value))
        elif kind == LENGTH:
            self.length = int(value)
            self.has_length = True
        elif kind in _REQUESTS_ONLY:
            self.headers.append((name, value))
        else:
            self._shared(kind, name, value)


def parse_request(data: bytes) -> RequestHead:
    """Parse one complete head, as delimited by `head_end`.

    Raises:
        Malformed: with the status that the client should be told.
    """
    head = RequestHead()
    parser = HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass  # the head was complete; whether anything is upgraded is decided by the exchange
    except HttpParserInvalidMethodError:
        raise _bad_method(data) from None
    except HttpParserError as error:
        if isinstance(error.__context__, Malformed):
            raise error.__context__ from None
        raise Malformed(400, f"malformed request: {error}") from None
    method = head.method = parser.get_method()
    line_end = data.find(b"\r\n")
    minor = _VERSIONS.get(data[line_end - 9 : line_end])
    # llhttp forgives double spaces and takes other protocols' versions: the line must be exactly what was understood.
    if line_end != len(method) + len(head.target) + 10 or not data.startswith(method) or not head.complete:
        raise Malformed(400, "the request line must be: method, one space, target, one space, HTTP/1.1")
    if minor is None:
        raise Malformed(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if line_end > limits.LINE_BYTES_MAX:
        raise Malformed(414, f"the request line is longer than {limits.LINE_BYTES_MAX} bytes")
    head.minor = minor
    head._settle(400)
    if head.host:
        if head.host not in _HOSTS:
            _check_host(head.host)
    elif minor == 1:
        raise Malformed(400, "an HTTP/1.1 request must have a Host")
    target = head.target
    if method == b"CONNECT":
        if head.length:
            raise Malformed(400, "CONNECT cannot have a body")
    elif target[:1] != b"/" and target[:4].lower() != b"http" and not (target == b"*" and method == b"OPTIONS"):
        raise Malformed(400, "the target must be a path or an absolute URI")
    if head.upgrade:
        if head.length:
            raise Malformed(400, "an upgrade cannot have a body")
        if method != b"GET" or head.upgrade != b"websocket" or minor == 0:
            head.upgrade = b""  # an offer that may be declined by not passing it on (RFC 9110 7.8)
    return head


def _check_host(host: bytes) -> None:
    if _HOST.fullmatch(host) is None:
        raise Malformed(400, "Host is not a valid host[:port]")
    if len(_HOSTS) < _KINDS_MAX and len(host) < 256:
        _HOSTS.add(host)


def _bad_method(data: bytes) -> Malformed:
    if _TOKEN_START.match(data) is None:
        return Malformed(400, "this is not an HTTP/1 request")
    return Malformed(501, "this method is not implemented")


def parse_response(data: bytes, *, to_head: bool) -> ResponseHead:
    """Parse one complete head, as delimited by `head_end`; `to_head` if it answers a HEAD request.

    Raises:
        Malformed: it is no answer that could be passed on.
    """
    head = ResponseHead()
    parser = HttpResponseParser(head)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass  # only says that bytes of another protocol follow; the exchange knows whether it asked for that
    except HttpParserError as error:
        if isinstance(error.__context__, Malformed):
            raise error.__context__ from None
        raise Malformed(502, f"malformed response: {error}") from None
    minor = _VERSIONS.get(b" " + data[:8])
    status = head.status = parser.get_status_code()
    if minor is None or not head.complete or status < 100:
        raise Malformed(502, "the status line must be HTTP/1.0 or HTTP/1.1 with a status from 100")
    head.minor = minor
    head._settle(502)
    if to_head or status < 200 or status in (204, 304):
        head.bodiless = True
    elif head.length == UNTIL_CLOSE:
        head.keep_alive = False
    return head


def parse_trailers(block: bytes, status: int) -> Headers:
    """Parse the fields after a last chunk, with their empty line; only those that a trailer may carry are returned.

    Raises:
        Malformed: with `status`.
    """
    # llhttp judges trailers by the same rules as headers when they stand in a head of their own.
    head = _Trailers()
    try:
        HttpResponseParser(head).feed_data(b"HTTP/1.1 200 OK\r\n" + block)
    except (HttpParserError, HttpParserUpgrade) as error:
        raise Malformed(status, f"malformed trailers: {error}") from None
    return [pair for pair in head.fields if not _forbidden_in_trailers(pair[0].lower())]


class _Trailers:
    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def _forbidden_in_trailers(name: bytes) -> bool:
    return name in _NOT_IN_TRAILERS or name.startswith(_MESH_PREFIX)


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each with its CR LF."""
    return b"".join([b"%b: %b\r\n" % pair for pair in fields])
