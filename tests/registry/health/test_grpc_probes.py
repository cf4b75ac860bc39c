"""Promises of the gRPC probe, against an HTTP/2 server on a real socket: SERVING passes, all else says why."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable
from typing import cast

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from homeport.client.core.model import Check
from homeport.registry.health import Prober
from homeport.registry.health.grpc_probe import ANSWER_BYTES_MAX, PATH, decode_state, encode_request
from homeport.registry.health.http_probe import BadAnswer

Headers = list[tuple[str, str]]
OK: Headers = [(":status", "200"), ("content-type", "application/grpc")]
SERVING = b"\0\0\0\0\x02\x08\x01"


class Server(asyncio.Protocol):
    """Answers each call on a connection by `answer`."""

    def __init__(self, answer: Callable[[Server, int], None]) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.closed = asyncio.Event()
        self._answer = answer
        self._headers: dict[str, str] = {}
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.h2.initiate_connection()
        self.transport.write(self.h2.data_to_send())

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self._headers = dict(cast("list[tuple[str, str]]", event.headers))
            elif isinstance(event, h2.events.DataReceived):
                self._body += event.data or b""
            elif isinstance(event, h2.events.StreamEnded):
                self.asked.append((self._headers, self._body))
                self._answer(self, event.stream_id or 0)
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())


def saying(
    body: bytes = SERVING, status: str = "0", message: str = "", head: Headers = OK
) -> Callable[[Server, int], None]:
    def answer(server: Server, stream: int) -> None:
        server.h2.send_headers(stream, head)
        if body:
            server.h2.send_data(stream, body)
        trailers = [("grpc-status", status)] if status else [("x-nothing", "1")]
        server.h2.send_headers(stream, [*trailers, *([("grpc-message", message)] if message else [])], end_stream=True)

    return answer


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[Server, int], None], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[Server]]]:
    """Serve; on exit, all connections must have been closed by the prober."""
    servers: list[Server] = []

    def accept() -> Server:
        servers.append(Server(answer))
        return servers[-1]

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", servers
    finally:
        listener.close()
        async with asyncio.timeout(30):
            for server in servers:
                if hasattr(server, "transport"):  # else TLS was not agreed on
                    await server.closed.wait()


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.close()


def grpc(address: str, **fields: object) -> Check:
    return Check(name="grpc", kind="grpc", address=address, timeout_s=30.0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "expected", "words"),
    [
        (1, "passing", "SERVING"),
        (0, "critical", "UNKNOWN"),
        (2, "critical", "NOT_SERVING"),
        (3, "critical", "SERVICE_UNKNOWN"),
        (9, "critical", "9"),
    ],
)
async def test_only_serving_passes(prober: Prober, state: int, expected: str, words: str) -> None:
    message = bytes([8, state]) if state else b""
    async with serving(saying(len(message).to_bytes(5, "big") + message)) as (address, servers):
        verdict = await prober.probe(grpc(address))
        assert (verdict.status, verdict.output) == (expected, f"gRPC {address}: {words}")
        headers, body = servers[0].asked[0]
        assert (headers[":path"], headers["te"], headers["content-type"]) == (PATH, "trailers", "application/grpc")
        assert body == bytes(5)


async def test_a_service_is_asked_for_by_name_and_what_the_server_says_of_it_is_quoted(prober: Prober) -> None:
    async with serving(saying(b"", "5", "unknown service%21")) as (address, servers):
        verdict = await prober.probe(grpc(address, grpc_service="shop.Orders"))
        assert verdict.status == "critical"
        assert verdict.output == f"gRPC {address}/shop.Orders: NOT_FOUND unknown service!"
        assert servers[0].asked[0][1] == b"\0\0\0\0\x0d\x0a\x0bshop.Orders"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (saying(head=[(":status", "404")]), "HTTP status 404"),
        (saying(status=""), "no grpc-status"),
        (saying(b"x" * (ANSWER_BYTES_MAX + 1)), "longer than"),
        (saying(b"\1\0\0\0\2\x08\1"), "not one uncompressed"),
        (saying(b"\0\0\0\0\2\x08\xff"), "not a HealthCheckResponse"),
        (lambda server, stream: server.h2.reset_stream(stream), "gave the call up"),
        (lambda server, _stream: server.h2.close_connection(), "gave the call up"),
        (lambda server, _stream: server.transport.close(), "closed without an answer"),
        (lambda server, _stream: server.transport.write(b"\xff\xff\xff\0" + b"garbage " * 9_999), "it sent more than"),
        (lambda server, _stream: server.transport.write(b"\0\0\1\4\0\0\0\0\0x" * 9), "not an HTTP/2 answer"),
    ],
)
async def test_what_is_no_answer_is_critical_and_says_so(
    prober: Prober, answer: Callable[[Server, int], None], words: str
) -> None:
    async with serving(answer) as (address, _):
        verdict = await prober.probe(grpc(address))
        assert verdict.status == "critical"
        assert words in verdict.output


async def test_a_server_of_another_protocol_is_critical_and_hung_up_on(prober: Prober) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(old, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert (await prober.probe(grpc(address))).output == f"gRPC {address}: not an HTTP/2 answer"
    server.close()


async def test_a_server_that_does_not_answer_is_critical_after_the_timeout(prober: Prober) -> None:
    async with serving(lambda _server, _stream: None) as (address, _):
        verdict = await prober.probe(msgspec.structs.replace(grpc(address), timeout_s=0.1))
        assert verdict.output == f"gRPC {address}: timed out after 0.1 s"


async def test_over_tls_the_certificate_must_be_the_one_asked_for(
    prober: Prober, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.set_alpn_protocols(["h2"])
    ca.issue_cert("orders.example").configure_cert(tls)
    with ca.cert_pem.tempfile() as pem:
        monkeypatch.setenv("SSL_CERT_FILE", pem)
        async with serving(saying(), tls) as (address, _):
            assert (await prober.probe(grpc(address, tls=True, tls_name="orders.example"))).status == "passing"
            verdict = await prober.probe(grpc(address, tls=True))
            assert verdict.status == "critical"
            assert "the certificate is not accepted" in verdict.output
            assert (await prober.probe(grpc(address, tls=True, tls_verify=False))).status == "passing"
            assert (await prober.probe(grpc(address))).status == "critical"


async def test_random_garbage_never_raises(prober: Prober) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def babble(server: Server, stream: int) -> None:
        saying()(server, stream)
        data = bytearray(server.h2.data_to_send())
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        server.transport.write(bytes(data))
        server.transport.close()

    async with serving(babble) as (address, _):
        for _ in range(100):
            await prober.probe(grpc(address))


@given(st.binary(max_size=40))
def test_any_message_is_read_or_refused(message: bytes) -> None:
    with contextlib.suppress(BadAnswer):
        decode_state(b"\0" + len(message).to_bytes(4, "big") + message)


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_request_says_how_long_it_is(service: str) -> None:
    framed = encode_request(service)
    assert int.from_bytes(framed[1:5], "big") == len(framed) - 5
    assert framed.endswith(service.encode())
