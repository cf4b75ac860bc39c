"""Generated HTTP/1 through the proxy: whole messages cut anywhere, mutated ones, and bytes of no meaning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import http1_answers, http1_requests
from tests.fuzz.targets.http1 import Message, requests

TOKENS = st.sampled_from(
    [
        b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"orders:80", b"/", b"http://orders/x",
        b" HTTP/1.1\r\n", b" HTTP/1.0\r\n",
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 503 No\r\n", b"HTTP/1.1 101 Up\r\n",
        b"HTTP/1.1 204 \r\n", b"Host: orders\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"abc",
        b"3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"transfer-encoding:\tchunked \r\n",
        b"\r\n",
        b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b"3;x=y\r\n", b"\n", b"\r", b"\0", b" ", b":", b"Connection: close\r\n",
        b"Connection: upgrade, host\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"X-A: b\r\n c\r\n",
        b"x-homeport-service: orders\r\n",
    ]
)  # fmt: skip
NAMES = st.sampled_from([b"X-A", b"accept", b"Cookie", b"X-Homeport-Undelivered", b"TE", b"Via", b"X-Forwarded-For"])
VALUES = st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte >= 32 and byte != 127).strip())
PIECES = st.integers(1, 40)


@st.composite
def valid_requests(draw: st.DrawFn) -> tuple[bytes, Message]:
    """A request that nothing is wrong with, and what it says."""
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"]))
    first = b"%b /%b HTTP/1.1" % (method, draw(st.sampled_from([b"", b"a/b?c=d", b"%2e", b"x" * 300])))
    fields = b"".join(b"%b: %b\r\n" % field for field in draw(st.lists(st.tuples(NAMES, VALUES), max_size=5)))
    body = draw(st.one_of(st.just(b""), st.binary(max_size=200)))
    head = b"%b\r\n%bHost: orders\r\n" % (first, fields)
    if draw(st.booleans()):
        pieces, at = b"", 0
        while at < len(body):
            size = draw(st.integers(1, 64))
            piece = body[at : at + size]
            extension = draw(st.sampled_from([b"", b";a", b';a="b"']))
            pieces += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
            at += size
        trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
        return b"%bTransfer-Encoding: chunked\r\n\r\n%b000\r\n%b\r\n" % (head, pieces, trailer), Message(first, body)
    length = b"Content-Length: %d\r\n" % len(body) if body or draw(st.booleans()) else b""
    return b"%b%b\r\n%b" % (head, length, body), Message(first, body)


@given(st.lists(valid_requests(), min_size=1, max_size=4), PIECES, st.integers(0, 2))
def test_the_upstream_sees_exactly_the_requests_that_were_sent_however_they_are_cut(
    sent: list[tuple[bytes, Message]], piece_size: int, empty_lines: int
) -> None:
    data = b"".join(b"\r\n" * empty_lines + request for request, _ in sent)
    expected = [message for _, message in sent]
    assert requests(data) == expected
    assert http1_requests.proxied(data, piece_size=piece_size) == expected


@given(st.lists(valid_requests(), min_size=1, max_size=3), st.data())
def test_a_mutated_request_never_becomes_two(sent: list[tuple[bytes, Message]], data: st.DataObject) -> None:
    mutated = bytearray(b"".join(request for request, _ in sent))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.one_of(TOKENS, st.binary(max_size=3)))
    http1_requests.one(bytes([data.draw(st.integers(0, 255))]) + mutated)


@given(st.integers(0, 255), st.one_of(st.lists(TOKENS, max_size=24).map(b"".join), st.binary(max_size=300)))
def test_whatever_a_client_sends_is_over_in_the_end(mode: int, sent: bytes) -> None:
    http1_requests.one(bytes([mode]) + sent)


@given(st.integers(0, 255), st.one_of(st.lists(TOKENS, max_size=24).map(b"".join), st.binary(max_size=300)))
def test_whatever_an_upstream_answers_is_at_most_one_answer_and_over_in_the_end(mode: int, sent: bytes) -> None:
    http1_answers.one(bytes([mode]) + sent)
