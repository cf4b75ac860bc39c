"""The heads of HTTP/1 messages: where one ends, and what its lines say together.

Strategy: the end of a head is found here and its size is counted before anything looks into it; a pipelined request
stays unparsed bytes, and nothing that follows an Upgrade, a CONNECT or the answer to a HEAD can be taken for a
message. Each line is judged in `lines`; a head whose lines are all remembered costs one lookup a line. Bodies are
delimited in `bodies`, whose readers know at which byte a message ends.

Plain header lines pass as bytes, never taken apart: most of what a proxy sees means nothing to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, cast

from homeport.sidecar.core.limits import Limits
from homeport.sidecar.http1 import lines
from homeport.sidecar.http1.lines import (
    CODING,
    CONNECTION,
    EXPECT,
    FORWARDED,
    HOST,
    LENGTH,
    MAX_FORWARDS,
    MESH,
    UPGRADE,
    VIA,
    Headers,
    Malformed,
)

CHUNKED: Final = -1  # as a message's `length`
UNTIL_CLOSE: Final = -2

# What a trailer may never say (RFC 9110 6.5.1): how the message is framed, where it goes, who sent it.
_NOT_IN_TRAILERS: Final = frozenset(lines.KINDS) | {
    b"authorization", b"cookie", b"set-cookie", b"content-encoding", b"content-type", b"content-range", b"trailer",
    b"www-authenticate", b"cache-control", b"max-forwards", b"location", b"date", b"expires", b"vary", b"age",
    b"x-real-ip",
}  # fmt: skip

BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_BARE_CR: Final = re.compile(rb"\r(?!\n)[^\n]")
_KEEP_ALIVE: Final = (b"keep-alive",)
_CODED: Final = (b"chunked",)
_BODILESS: Final = frozenset({204, 304})
_COUNTED: Final = frozenset({b"OPTIONS", b"TRACE"})  # whose hops may be counted

# Without their line end, like every line here.
STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b" % (status, reason.encode())
    for status, reason in (dict.fromkeys(range(100, 1000), "") | {s.value: s.phrase for s in HTTPStatus}).items()
}


def head_end(data: bytes, bounds: Limits, *, request: bool, seen: int = 0) -> int:
    """Where the body begins, or 0 while the head is incomplete.

    Args:
        seen: How many bytes were here at the last look, in vain: a head that drips is not looked through at each drop.

    Raises:
        Malformed: too long, or already certain to be wrong.
    """
    end = data.find(b"\r\n\r\n", seen - 3 if seen > 3 else 0, bounds.head_bytes)
    if end >= 0:
        return end + 4
    line_end = data.find(b"\r\n", 0, bounds.line_bytes)
    if line_end < 0 and len(data) >= bounds.line_bytes:
        raise Malformed(414 if request else 502, f"the first line is longer than {bounds.line_bytes} bytes")
    if len(data) >= bounds.head_bytes:
        raise Malformed(431 if request else 502, f"the head is longer than {bounds.head_bytes} bytes")
    # What can never become a head is refused now, not when the time for a slow one is up.
    new = max(0, seen - 2)
    if BARE_LF.search(data, new) or _BARE_CR.search(data, new):
        raise Malformed(400, "lines must end with CR LF")
    if request and data[:1] != b"\r" and not lines.starts_like_a_request(data):
        raise Malformed(400, "this is not an HTTP/1 request")
    return 0


class _Head:
    """What requests and responses share.

    Defaults stand in the class, not in slots: most heads change few of them, and making one is on the hot path.
    """

    length = 0  # of the body in bytes, or CHUNKED or UNTIL_CLOSE
    minor = 1
    keep_alive = True
    upgrade = b""
    via: tuple[bytes, ...] = ()
    mesh: tuple[tuple[bytes, bytes], ...] = ()  # x-homeport-*, names in lower case
    nominated: tuple[bytes, ...] = ()  # tokens of Connection
    has_length = False  # whether it came with a Content-Length
    codings: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        self.lines: list[bytes] = []  # the plain headers, end to end, in their order

    @property
    def headers(self) -> Headers:
        """The plain headers as pairs; for whoever must look into them."""
        return [(name, value) for name, _, value in (line.partition(b": ") for line in self.lines)]

    def take_shared(self, field: lines.Special, status: int) -> None:
        kind, value, name = field
        if kind == CONNECTION:
            self.nominated += cast("tuple[bytes, ...]", value)
        elif kind == LENGTH:
            if self.has_length:
                raise Malformed(status, "there must be only one Content-Length")
            self.length = cast("int", value)
            self.has_length = True
        elif kind == CODING:
            self.codings += (cast("bytes", value),)
        elif kind == UPGRADE:
            self.upgrade = self.upgrade + b"," + cast("bytes", value) if self.upgrade else cast("bytes", value)
        elif kind == VIA:
            self.via += (cast("bytes", value),)
        elif kind == MESH:
            self.mesh += ((name, cast("bytes", value)),)

    def settle(self, status: int) -> None:
        """Conclude what several headers say together; for heads that have any of these, or are not HTTP/1.1."""
        if self.codings:
            if self.has_length:
                raise Malformed(status, "Content-Length and Transfer-Encoding exclude each other")
            if self.codings != _CODED or self.minor == 0:
                raise Malformed(status, "Transfer-Encoding must be chunked, once, and HTTP/1.1")
            self.length = CHUNKED
        tokens = self.nominated
        if not tokens:
            self.keep_alive = self.minor == 1
        elif tokens != _KEEP_ALIVE:
            self.keep_alive = b"close" not in tokens and (self.minor == 1 or b"keep-alive" in tokens)
            named = frozenset(tokens)
            self.lines = [line for line in self.lines if line.partition(b":")[0].lower() not in named]
        if self.upgrade and b"upgrade" not in tokens:
            self.upgrade = b""


class RequestHead(_Head):
    """One request's head, checked. `host` is empty only in HTTP/1.0."""

    method = b""
    target = b""
    host = b""
    line = b""  # the request line as it goes on
    expect = False
    connect = False
    last_hop = False  # an OPTIONS or TRACE that must not be forwarded (RFC 9110 7.6.2)
    forwarded: tuple[tuple[bytes, bytes], ...] = ()  # X-Forwarded-*, Forwarded: as sent, names in lower case

    @property
    def traced(self) -> bool:
        """Whether it bears a W3C trace context."""
        return any(line[:12].lower() == b"traceparent:" for line in self.lines)

    def retarget(self, host: bytes, target: bytes) -> None:
        """Ask for another target, of another host."""
        self.host, self.target = host, target
        self.line = b"%b %b HTTP/1.1" % (self.method, target)

    def take(self, field: lines.Special) -> None:
        """Take in a header that is not plain."""
        kind, value, name = field
        if kind == HOST:
            if self.host:
                raise Malformed(400, "a request must have one Host")
            self.host = cast("bytes", value)
        elif kind == EXPECT:
            self.expect = True
        elif kind == FORWARDED:
            self.forwarded += ((name, cast("bytes", value)),)
        elif kind == MAX_FORWARDS:
            hops = cast("int", value)
            if self.method in _COUNTED:
                self.last_hop = self.last_hop or hops == 0
                hops -= 1
            self.lines.append(b"Max-Forwards: %d" % hops)
        else:
            self.take_shared(field, 400)


class ResponseHead(_Head):
    """One response's head, checked. If `bodiless`, no body follows: `length` says what it would have been."""

    status = 0
    bodiless = False
    length = UNTIL_CLOSE


def parse_request(data: bytes, end: int, bounds: Limits) -> RequestHead:
    """Parse one complete head, which ends where `head_end` says.

    Raises:
        Malformed: with the status that the client should be told.
    """
    rest = data[: end - 4].split(b"\r\n")
    first = rest.pop(0)
    if len(rest) > bounds.headers:
        raise Malformed(431, f"more than {bounds.headers} headers")
    try:
        known = lines.request_fields.recent
        line, fields = lines.request_lines.recent[first], [known[each] for each in rest]
    except KeyError:
        if len(first) > bounds.line_bytes:
            raise Malformed(414, f"the request line is longer than {bounds.line_bytes} bytes") from None
        line, fields = lines.judge_request(first, rest)
    head = RequestHead()
    head.method, head.target, minor = line
    plain = head.lines
    for field in fields:
        if isinstance(field, bytes):
            plain.append(field)
        else:
            head.take(field)
    if minor:
        head.line = first
        if not head.host:
            raise Malformed(400, "an HTTP/1.1 request must have a Host")
    else:
        head.minor = 0
        head.line = b"%b %b HTTP/1.1" % (head.method, head.target)
    if head.nominated or head.codings or head.upgrade or not minor:
        head.settle(400)
    if head.method == b"CONNECT":
        if head.length or head.has_length:
            raise Malformed(400, "CONNECT cannot have a body")
        head.connect = True
        head.upgrade = b""
    if head.upgrade:
        if head.length or head.has_length:
            raise Malformed(400, "an upgrade cannot have a body")
        if head.method != b"GET" or head.upgrade != b"websocket" or minor == 0:
            head.upgrade = b""  # an offer that may be declined by not passing it on (RFC 9110 7.8)
    return head


def parse_response(data: bytes, end: int, bounds: Limits, *, to_head: bool) -> ResponseHead:
    """Parse one complete head, which ends where `head_end` says; `to_head` if it answers a HEAD request.

    Raises:
        Malformed: it is no answer that could be passed on.
    """
    rest = data[: end - 4].split(b"\r\n")
    first = rest.pop(0)
    if len(rest) > bounds.headers:
        raise Malformed(502, f"more than {bounds.headers} headers")
    try:
        known = lines.response_fields.recent
        line, fields = lines.status_lines.recent[first], [known[each] for each in rest]
    except KeyError:
        line, fields = lines.judge_response(first, rest)
    head = ResponseHead()
    status, minor = line
    head.status = status
    plain = head.lines
    for field in fields:
        if isinstance(field, bytes):
            plain.append(field)
        else:
            head.take_shared(field, 502)
    if not minor:
        head.minor = 0
    if head.nominated or head.codings or head.upgrade or not minor:
        head.settle(502)
    if to_head or status < 200 or status in _BODILESS:
        head.bodiless = True
    elif head.length == UNTIL_CLOSE:
        head.keep_alive = False
    return head


def parse_trailers(block: bytes, status: int) -> Headers:
    """Parse the fields after a last chunk, with their empty line; only those that a trailer may carry are returned.

    Raises:
        Malformed: with `status`.
    """
    return [pair for pair in lines.judge_trailers(block, status) if not _forbidden_in_trailers(pair[0].lower())]


def _forbidden_in_trailers(name: bytes) -> bool:
    return name in _NOT_IN_TRAILERS or name.startswith(lines.MESH_PREFIX)


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each with its CR LF."""
    return b"".join([b"%b: %b\r\n" % pair for pair in fields])
