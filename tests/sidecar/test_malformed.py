"""Malformed and ambiguous messages, both ways, over real sockets: refused, closed, and never taken for two."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING

import pytest

from homeport.sidecar.core import limits

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net, Raw

HOST = b"Host: orders\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST
TE = b"Transfer-Encoding: chunked\r\n"
WEBSOCKET = b"Connection: upgrade\r\nUpgrade: websocket\r\n"
CHUNKED = POST + TE + b"\r\n"

REQUESTS = {
    "length and coding": (
        400,
        POST + b"Content-Length: 5\r\n" + TE + b"\r\n",
    ),
    "coding and length": (
        400,
        POST + TE + b"Content-Length: 5\r\n\r\n",
    ),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"),
    "a list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\n"),
    "signed length": (400, POST + b"Content-Length: +5\r\n\r\n"),
    "empty length": (400, POST + b"Content-Length: \r\n\r\n"),
    "huge length": (400, POST + b"Content-Length: 99999999999999999999\r\n\r\n"),
    "coding twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "identity and chunked": (
        400,
        POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "gzip coding": (400, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "gzip and chunked": (400, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "coding in 1.0": (400, b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "folded header": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\n" + b"Host: orders\n\n"),
    "bare LF in a header": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\nX-B: c\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\rX-B: c\r\n\r\n"),
    "NUL": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\0c\r\n\r\n"),
    "space before colon": (400, b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length : 5\r\n\r\nhello"),
    "space before the first header": (400, b"GET / HTTP/1.1\r\n X-A: b\r\n" + HOST + b"\r\n"),
    "no header name": (400, b"GET / HTTP/1.1\r\n" + HOST + b": b\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    "empty Host": (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: orders/x\r\n\r\n"),
    "Host with credentials": (400, b"GET / HTTP/1.1\r\nHost: me@orders\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "relative target": (400, b"GET x HTTP/1.1\r\n" + HOST + b"\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\n" + HOST + b"\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "RTSP": (505, b"GET / RTSP/1.0\r\n" + HOST + b"\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "unknown method": (501, b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "other expectation": (417, POST + b"Expect: miracles\r\nContent-Length: 2\r\n\r\nhi"),
    "upgrade with a body": (
        400,
        b"GET / HTTP/1.1\r\n" + HOST + WEBSOCKET + b"Content-Length: 39\r\n\r\n" + SMUGGLED,
    ),
    "CONNECT with a body": (400, b"CONNECT orders:80 HTTP/1.1\r\n" + HOST + b"Content-Length: 39\r\n\r\n" + SMUGGLED),
    "long line": (414, b"GET /" + b"a" * limits.Limits().line_bytes + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "long head": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * limits.Limits().head_bytes + b"\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n" * (limits.Limits().headers + 1) + b"\r\n"),
    "a coding that begins like chunked": (400, POST + b"Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n"),
    "a coding with a parameter": (400, POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    "a coding after a vertical tab": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "a quoted coding": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "an empty coding": (400, POST + b"Transfer-Encoding:\r\n" + TE + b"\r\n0\r\n\r\n"),
    "a coding and an empty length": (400, POST + TE + b"Content-Length:\r\n\r\n0\r\n\r\n"),
    "a coding on a folded line": (400, POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "a coding with a space before its colon": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "the same length twice": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a length in hex": (400, POST + b"Content-Length: 0x5\r\n\r\nhello"),
    "a length with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nhello"),
    "a line without a colon": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A\r\n\r\n"),
    "a name with a space": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X A: b\r\n\r\n"),
    "a name with a slash": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X/A: b\r\n\r\n"),
    "a name beyond ASCII": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-\xc3\xa9: b\r\n\r\n"),
    "a name with a NUL": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X\0A: b\r\n\r\n"),
    "a line ended twice by CR": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\r\n\r\n"),
    "a head ended by LF LF": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\n\nGET /smuggled HTTP/1.1\r\n\r\n"),
    "a control byte": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\x08c\r\n\r\n"),
    "two Hosts that differ in case": (400, b"GET / HTTP/1.1\r\n" + HOST + b"hOsT: other\r\n\r\n"),
    "a list of Hosts": (400, b"GET / HTTP/1.1\r\nHost: orders other\r\n\r\n"),
    "Host with a bad port": (400, b"GET / HTTP/1.1\r\nHost: orders:http\r\n\r\n"),
    "a tab in the request line": (400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a target with a space": (400, b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a target with a control byte": (400, b"GET /a\x01b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a version in small letters": (400, b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"),
    "HTTP/01.1": (400, b"GET / HTTP/01.1\r\n" + HOST + b"\r\n"),
    "something after the version": (400, b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
    "upgrade with a chunked body": (
        400,
        b"GET / HTTP/1.1\r\n" + HOST + WEBSOCKET + TE + b"\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "upgrade with a length of none": (400, b"GET / HTTP/1.1\r\n" + HOST + WEBSOCKET + b"Content-Length: 0\r\n\r\n"),
    "CONNECT with a chunked body": (400, b"CONNECT orders:80 HTTP/1.1\r\n" + HOST + TE + b"\r\n0\r\n\r\n" + SMUGGLED),
    "CONNECT to a path": (400, b"CONNECT / HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED),
    "empty chunk size": (400, CHUNKED + b";a\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with a bare CR": (400, CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "chunk without its end": (400, CHUNKED + b"5\r\nhello0\r\n\r\n"),
    "trailers with a bare LF": (400, CHUNKED + b"0\r\nX-A: b\nX-B: c\r\n\r\n"),
    "folded trailers": (400, CHUNKED + b"0\r\nX-A: b\r\n c\r\n\r\n"),
    "chunk size": (400, CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n"),
    "signed chunk size": (400, CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n"),
    "prefixed chunk size": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "huge chunk size": (400, CHUNKED + b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "chunk too long": (400, CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n"),
    "chunk with a bare LF": (400, CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "space after the chunk size": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "long chunk extension": (400, CHUNKED + b"5;" + b"a" * 2 * limits.CHUNK_LINE_BYTES_MAX + b"\r\nhello\r\n0\r\n\r\n"),
    "many chunk extensions": (400, CHUNKED + (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 20 + b"0\r\n\r\n"),
    "long trailers": (400, CHUNKED + b"0\r\nX-A: " + b"a" * limits.TRAILER_BYTES_MAX + b"\r\n\r\n"),
    "malformed trailers": (400, CHUNKED + b"0\r\nX A: b\r\n\r\n"),
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_malformed_request_is_refused_and_nothing_after_it_is_served(net: Net, case: str) -> None:
    status, request = REQUESTS[case]
    heads: list[bytes] = []

    async def script(raw: Raw) -> None:
        while True:
            heads.append(await raw.head())
            raw.send(net.ok())

    sidecar = await net.proxy_to(await net.upstream(script))
    answer = await net.ask(sidecar, request + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert len(re.findall(rb"HTTP/1.1 \d\d\d ", answer)) == 1
    assert b"Connection: close\r\n" in answer
    # What is wrong only in its body has a head that is passed on before that can be known.
    assert [head.split(b" ")[0] for head in heads] in ([], [b"POST"]), heads
    assert not heads or request.startswith(CHUNKED)
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0


RESPONSES = {
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "status 000": b"HTTP/1.1 000 No\r\nContent-Length: 2\r\n\r\nhi",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
    "coding in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "coding and length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + TE + b"\r\n2\r\nhi\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi",
    "an unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi",
    "interim answers": b"HTTP/1.1 103 Early Hints\r\n\r\n" * (limits.INTERIM_MAX + 1) + b"HTTP/1.1 200 OK\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "folded header": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nhi",
    "bare CR": b"HTTP/1.1 200 OK\r\nX-A: b\rX-B: c\r\nContent-Length: 2\r\n\r\nhi",
    "NUL": b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\nhi",
    "a line without a colon": b"HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 2\r\n\r\nhi",
    "a name with a space": b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 2\r\n\r\nhi",
    "coding twice": b"HTTP/1.1 200 OK\r\n" + TE + TE + b"\r\n2\r\nhi\r\n0\r\n\r\n",
    "identity and chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "HTTP/0.9": b"<html>hi</html>\r\n\r\n",
    "status 99": b"HTTP/1.1 99 No\r\nContent-Length: 2\r\n\r\nhi",
    "status 1000": b"HTTP/1.1 1000 No\r\nContent-Length: 2\r\n\r\nhi",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nhi",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"Content-Length: 2\r\n\r\nhi",
    "long head": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * limits.Limits().head_bytes + b"\r\nContent-Length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("case", RESPONSES)
async def test_a_malformed_answer_becomes_a_502(net: Net, case: str) -> None:
    sidecar = await net.proxy_to(await net.answering(RESPONSES[case]))
    answer = await net.ask(sidecar, net.get())
    final = re.split(rb"(?=HTTP/1.1 \d\d\d )", answer)[-1]
    assert final.startswith(b"HTTP/1.1 502 "), answer[:200]
    assert b"x-homeport-response-flags: UC\r\n" in final


async def test_an_answer_broken_in_its_middle_ends_the_clients_connection_before_its_end(net: Net) -> None:
    answers = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n"
    sidecar = await net.proxy_to(await net.answering(answers))
    answer = await net.ask(sidecar, net.get())
    assert b"0\r\n\r\n" not in answer


async def test_bytes_after_an_answer_are_not_taken_for_the_next_answer(net: Net) -> None:
    made = await net.answering(net.ok(b"one") + net.ok(b"poison"))
    sidecar = await net.proxy_to(made)
    client = await net.dial(sidecar)
    for _ in range(4):
        client.send(net.get(close=False))
        await client.head()
        assert await client.exactly(3) == b"one"
    assert made.connections == 4


async def test_the_body_that_an_answer_to_head_does_not_have_never_eats_the_next_answer(net: Net) -> None:
    def answer(head: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if head.startswith(b"HEAD") else b"hello")

    made = await net.answering(answer)
    client = await net.dial(await net.proxy_to(made))
    for _ in range(3):
        client.send(net.get(method="HEAD", close=False) + net.get(close=False))
        assert b"Content-Length: 5\r\n" in await client.head()
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.exactly(5) == b"hello"
    assert made.connections == 1


async def test_a_slow_head_gets_408(net: Net) -> None:
    answer = await net.ask(await net.proxy_to(timeouts=limits.Timeouts(head_s=0.2)), b"GET / HTTP/1.1\r\nHost: ord")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_random_bytes_never_crash_or_hang_a_listener(net: Net) -> None:
    print("seed", net.seed)
    rng = random.Random(net.seed)
    sidecar = await net.proxy_to(await net.answering(net.ok()))
    pieces = [
        b"GET ",
        b"/ ",
        b"HTTP/1.1\r\n",
        b"Host: orders\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"abc",
        b"Transfer-Encoding: chunked\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\n",
        b"\r",
        b"POST / ",
        b"\0",
        b"Upgrade: websocket\r\n",
        b"Connection: upgrade\r\n",
        b"CONNECT a:1 ",
        b"Expect: 100-continue\r\n",
        b"x-homeport-service: orders\r\n",
    ]
    for round_number in range(150):
        client = await net.dial(sidecar)
        if round_number % 3:
            data = b"".join(rng.choice(pieces) for _ in range(rng.randrange(1, 24)))
        else:
            data = rng.randbytes(rng.randrange(1, 400))
        for at in range(0, len(data), 7):
            client.send(data[at : at + 7])
        client.writer.write_eof()
        await client.until_end()
        client.writer.close()
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0


async def test_random_answers_never_crash_or_hang_an_exchange(net: Net) -> None:
    print("seed", net.seed)
    rng = random.Random(net.seed)
    pieces = [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"\r\n",
        b"abc",
        b"5\r\nhello\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.0 503 No\r\n",
        b"Connection: close\r\n",
        b"\0",
        b"\n",
    ]

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"".join(rng.choice(pieces) for _ in range(rng.randrange(0, 9))))
        await asyncio.wait_for(raw.writer.drain(), 30)

    sidecar = await net.proxy_to(await net.upstream(script), timeouts=limits.Timeouts(first_byte_s=0.3))
    for _ in range(100):
        await net.ask(sidecar, net.get())
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0
    assert sum(endpoint.active for endpoint in sidecar.outbound.clusters["orders"].endpoints.values()) == 0
