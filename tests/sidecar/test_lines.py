"""Header lines are judged once and remembered: what is remembered means the same as what is judged anew."""

from __future__ import annotations

from typing import Any

import pytest
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from homeport.sidecar.core import limits
from homeport.sidecar.core.limits import Limits
from homeport.sidecar.http1 import framing, lines
from homeport.sidecar.http1.framing import RequestHead, head_end, parse_request, parse_response
from homeport.sidecar.http1.lines import Malformed

NAMES = st.sampled_from(
    b"Host|host|Content-Length|Transfer-Encoding|Connection|Upgrade|X-Trace|Accept|Via|X-Homeport-Service|Expect|TE|"
    b"Content-length | X|X:Y||\xff|A\x00".split(b"|")
)
VALUES = st.one_of(
    st.sampled_from(
        b"orders|5|0|chunked|close|keep-alive|upgrade|x-trace|websocket|a, b||100-continue|gzip, chunked|+5|5, 5|a\rb|"
        b"a\nb|\x7f|a\tb |\xff\xfe".split(b"|")
    ),
    st.binary(max_size=6),
)
SPACES = st.sampled_from([b" ", b"", b"\t", b"  "])
FIELD_LINES = st.tuples(NAMES, SPACES, VALUES).map(lambda field: b"%b:%b%b" % field)
FIRST_LINES = st.sampled_from(
    b"GET / HTTP/1.1|POST /x?y HTTP/1.1|GET / HTTP/1.0|OPTIONS * HTTP/1.1|CONNECT orders:80 HTTP/1.1|GET  / HTTP/1.1|"
    b"GET / HTTP/2.0|GET /a b HTTP/1.1|BREW / HTTP/1.1|GET /|Host: orders".split(b"|")
)


def parsed(data: bytes) -> RequestHead:
    return parse_request(data, len(data), Limits())


def meaning(head: RequestHead) -> dict[str, Any]:
    return {name: getattr(head, name) for name in dir(head) if not name.startswith("_") and name not in _METHODS}


_METHODS = {"retarget", "settle", "take", "take_shared"}


def outcome(data: bytes) -> object:
    try:
        return meaning(parsed(data))
    except Malformed as error:
        return error.status  # with several faults, which is named first may differ


class Whole:
    """What llhttp itself makes of a whole head."""

    def __init__(self, data: bytes) -> None:
        self.names: list[bytes] = []
        try:
            HttpRequestParser(self).feed_data(data)
        except HttpParserUpgrade:
            pass
        except HttpParserError:
            self.refused = True
            return
        self.refused = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name)


@given(FIRST_LINES, st.lists(FIELD_LINES, max_size=5), st.booleans())
def test_a_head_means_the_same_whether_its_lines_are_remembered_or_not(
    first: bytes, fields: list[bytes], with_host: bool
) -> None:
    data = b"\r\n".join([first, *([b"Host: orders"] if with_host else []), *fields, b"\r\n"])
    data = data[: data.index(b"\r\n\r\n") + 4]  # a head ends there
    once = outcome(data)
    assert outcome(data) == once
    for line in fields:  # one by one, in another head each
        outcome(b"GET / HTTP/1.1\r\nHost: orders\r\n%b\r\n\r\n" % line)
    assert outcome(data) == once


@given(FIRST_LINES, st.lists(FIELD_LINES, max_size=5))
def test_no_head_is_taken_that_the_parser_refuses_as_a_whole(first: bytes, fields: list[bytes]) -> None:
    for line in fields:
        outcome(b"GET / HTTP/1.1\r\nHost: orders\r\n%b\r\n\r\n" % line)
    data = b"\r\n".join([first, b"Host: orders", *fields, b"\r\n"])
    data = data[: data.index(b"\r\n\r\n") + 4]
    result = outcome(data)
    if isinstance(result, dict):
        whole = Whole(data)
        assert not whole.refused
        passed = [name.lower() for name, _ in result["headers"]]
        assert [name for name in passed if name not in {each.lower() for each in whole.names}] == []


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
        (b"Host: orders", b"Host: orders"),
    ],
)
def test_lines_that_are_good_alone_are_refused_together(fields: tuple[bytes, bytes]) -> None:
    host = b"" if b"Host: orders" in fields else b"Host: orders\r\n"
    for line in fields:
        outcome(b"GET / HTTP/1.1\r\n%b%b\r\n\r\n" % (host, line))
    for _ in range(2):
        with pytest.raises(Malformed) as refused:
            parsed(b"GET / HTTP/1.1\r\n%b%b\r\n%b\r\n\r\n" % (host, *fields))
        assert refused.value.status == 400
        if not any(b"Host" in line for line in fields):
            answer = b"HTTP/1.1 200 OK\r\n%b\r\n%b\r\n\r\n" % fields
            with pytest.raises(Malformed) as refused:
                parse_response(answer, len(answer), Limits(), to_head=False)
            assert refused.value.status == 502


@pytest.mark.parametrize(
    "name",
    ["X_Forwarded_For", "x-forwarded_proto", "X_Homeport_Service", "Transfer_Encoding", "CONTENT_LENGTH", "hOsT_"],
)
def test_a_name_in_disguise_says_nothing(name: str) -> None:
    data = f"GET / HTTP/1.1\r\nHost: a\r\nX_Own: kept\r\n{name}: 5\r\n\r\n".encode()
    for _ in range(2):  # new, and remembered
        head = parse_request(data, len(data), Limits())
        assert head.length == 0
        assert not head.forwarded
        assert not head.mesh
        assert head.lines == [b"X_Own: kept", *([b"hOsT_: 5"] if name == "hOsT_" else [])]


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"GET /", b"A: b", b"x" * 40]), max_size=12), st.data())
def test_a_head_that_drips_ends_where_it_would_have_at_once(pieces: list[bytes], draw: st.DataObject) -> None:
    whole = b"GET / HTTP/1.1\r\n" + b"".join(pieces)
    cuts = sorted(draw.draw(st.lists(st.integers(1, len(whole)), max_size=8)))
    seen = 0
    for size in [*cuts, len(whole)]:
        at_once, dripping = (_end(whole[:size], each) for each in (0, seen))
        assert at_once == dripping
        if at_once != 0:
            break
        seen = size


def _end(data: bytes, seen: int) -> int | str:
    try:
        return head_end(data, Limits(), request=True, seen=seen)
    except Malformed as error:
        return error.text


def test_lines_in_use_are_remembered_and_their_number_is_bounded() -> None:
    memory: lines.Memory[bytes] = lines.Memory()
    memory.put(b"in use", b"meaning")
    for number in range(5 * limits.LINES_REMEMBERED_MAX):
        memory.put(b"line %d" % number, b"meaning")
        assert (memory.recent.get(b"in use") or memory.find(b"in use")) == b"meaning"
        assert len(memory.recent) <= limits.LINES_REMEMBERED_MAX
    assert memory.find(b"line 0") is None
    memory.put(b"x" * (limits.LINE_REMEMBERED_BYTES_MAX + 1), b"meaning")
    assert memory.find(b"x" * (limits.LINE_REMEMBERED_BYTES_MAX + 1)) is None


def test_plain_lines_lose_the_spaces_around_their_value_and_nothing_else() -> None:
    head = parsed(b"GET / HTTP/1.1\r\nHost: orders\r\nX-One:\t a  b \t\r\nx-TWO:\r\n\r\n")
    assert head.lines == [b"X-One: a  b", b"x-TWO: "]
    assert head.headers == [(b"X-One", b"a  b"), (b"x-TWO", b"")]
    assert framing.encode_fields(head.headers) == b"X-One: a  b\r\nx-TWO: \r\n"


def test_a_name_that_was_met_before_is_no_line_without_its_colon() -> None:
    parsed(b"GET / HTTP/1.1\r\nHost: orders\r\nX-Met: before\r\n\r\n")
    with pytest.raises(Malformed):
        parsed(b"GET / HTTP/1.1\r\nHost: orders\r\nX-Met\r\n\r\n")


def test_an_upgrade_is_understood_whatever_its_status_line_says_and_whichever_of_its_lines_were_met_before() -> None:
    for reason in (b"Switching Protocols", b"Web Socket Protocol Handshake", b"Up"):
        data = b"HTTP/1.1 101 %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" % reason
        head = parse_response(data, len(data), Limits(), to_head=False)
        assert (head.status, head.upgrade) == (101, b"websocket"), reason
