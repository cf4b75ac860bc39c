"""Well-formed messages through the proxy: what is passed on, what is changed, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import hashlib
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, WSMsgType, web

if TYPE_CHECKING:
    from homeport.sidecar import Sidecar
    from tests.sidecar.conftest import Net, Raw, Upstream

BIG = 100 * 1024 * 1024
PIECE = b"0123456789abcdef" * 4096  # 64 KiB


def fields(head: bytes) -> dict[bytes, list[bytes]]:
    """Header names in lower case, with all their values."""
    found: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\r\n")[1:]:
        if line:
            name, _, value = line.partition(b": ")
            found.setdefault(name.lower(), []).append(value)
    return found


async def test_hop_by_hop_and_nominated_headers_are_stripped_both_ways_and_the_rest_keeps_its_order(net: Net) -> None:
    answer = (
        b"HTTP/1.1 200 Fine\r\nX-One: 1\r\nConnection: X-Hop, keep-alive\r\nX-Hop: gone\r\nKeep-Alive: timeout=5\r\n"
        b"x-homeport-undelivered-not: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nhi"
    )
    made = await net.answering(answer)
    extra = (
        "X-First: 1\r\nConnection: x-secret, close\r\nX-Secret: s\r\nKeep-Alive: 1\r\nProxy-Authorization: p\r\n"
        "TE: gzip\r\nProxy-Connection: x\r\nX-Homeport-Service: orders\r\nX-Last: 2\r\nUpgrade: h2c\r\n"
    )
    got = await net.ask(await net.proxy_to(made), net.get("/a?b=c", "whatever.example", extra=extra, close=False))
    sent = fields(made.heads[0])
    for gone in (
        b"x-secret",
        b"keep-alive",
        b"proxy-authorization",
        b"te",
        b"proxy-connection",
        b"upgrade",
        b"connection",
    ):
        assert gone not in sent
    assert not [name for name in sent if name.startswith(b"x-homeport-")]
    assert made.heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: whatever.example\r\n")
    assert made.heads[0].index(b"X-First") < made.heads[0].index(b"X-Last")
    assert sent[b"x-forwarded-for"] == [b"127.0.0.1"]
    assert sent[b"x-forwarded-proto"] == [b"http"]
    assert sent[b"x-forwarded-host"] == [b"whatever.example"]
    back = fields(got.split(b"\r\n\r\n")[0])
    assert got.startswith(b"HTTP/1.1 200 OK\r\nX-One: 1\r\n")
    assert back[b"set-cookie"] == [b"a=1", b"b=2"]
    assert b"x-hop" not in back
    assert b"keep-alive" not in back
    assert len(back[b"via"]) == 1
    assert not [name for name in back if name.startswith(b"x-homeport-")]


async def test_an_absolute_target_replaces_the_host(net: Net) -> None:
    made = await net.answering(net.ok())
    await net.ask(await net.proxy_to(made), net.get("http://Orders:8080/x?y", "other.example"))
    assert made.heads[0].startswith(b"GET /x?y HTTP/1.1\r\nHost: Orders:8080\r\n")


@pytest.mark.parametrize(
    "host", ["orders", "orders:8080", "ORDERS", "orders.service.homeport", "orders.service.homeport.:80"]
)
async def test_a_service_is_found_by_each_spelling_of_its_host(net: Net, host: str) -> None:
    sidecar = await net.proxy_to(await net.answering(net.ok()))
    assert (await net.ask(sidecar, net.get(host=host))).endswith(b"hi")


@pytest.mark.parametrize("host", ["127.0.0.1:80", "[::1]:80", "example.com", "localhost:22", "10.1", "a..b"])
async def test_what_is_no_service_gets_404_nr_that_names_no_proxy(net: Net, host: str) -> None:
    answer = await net.ask(await net.proxy_to(), net.get(host=host))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"x-homeport-response-flags: NR\r\n" in answer
    assert b"NO_PROXY" in answer
    assert not net.registrar.asked.is_set()


async def test_a_host_let_through_by_name_is_reached(net: Net) -> None:
    made = await net.answering(net.ok(b"outside"))
    sidecar = await net.sidecar(passthrough=["127.0.0.1"])
    assert (await net.ask(sidecar, net.get(host=made.address))).endswith(b"outside")


async def test_a_loop_is_found(net: Net) -> None:
    first = await net.sidecar(static={"next": ["127.0.0.1:1"]})
    inbound = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=first.at["outbound"])
    assert first.outbound is not None
    host, port = inbound.at["inbound"].split(":")
    loop = next(iter(first.outbound.clusters["next"].endpoints.values()))
    loop.address, loop.port = host, int(port)
    answer = await net.ask(first, net.get(host="next"))
    assert answer.startswith(b"HTTP/1.1 508 ")


async def test_pipelined_requests_are_answered_in_order(net: Net) -> None:
    made = await net.answering(lambda head: net.ok(head.split(b" ")[1]))
    client = await net.dial(await net.proxy_to(made))
    count = 3000  # more than one read, more than the buffer
    client.send(b"".join(net.get(f"/{number:06}", close=False) for number in range(count)))
    for number in range(count):
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.exactly(7) == f"/{number:06}".encode()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_bodiless_answers_keep_the_connection(net: Net, status: bytes) -> None:
    made = await net.answering(b"HTTP/1.1 %b\r\nETag: x\r\n\r\n" % status)
    client = await net.dial(await net.proxy_to(made))
    for _ in range(3):
        client.send(net.get(close=False))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"content-length" not in head.lower()
        assert b"transfer-encoding" not in head.lower()
    assert made.connections == 1


async def test_chunks_and_trailers_pass_both_ways_and_forbidden_trailers_do_not(net: Net) -> None:
    seen: list[bytes] = []

    async def script(raw: Raw) -> None:
        head = await raw.head()
        assert b"transfer-encoding: chunked" in head.lower()
        seen.append(await raw.until(b"\r\n\r\n"))
        raw.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 9\r\nContent-Length: 3\r\nX-Homeport-A: b\r\n\r\n"
        )

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(
        b"POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    client.send(b"0\r\nX-Req: 1\r\nHost: evil\r\nAuthorization: x\r\n\r\n")
    answer = await client.until_end()
    assert answer.endswith(b"5\r\nhello\r\n0\r\nX-Sum: 9\r\n\r\n")
    assert seen[0].endswith(b"3\r\nabc\r\n0\r\nX-Req: 1\r\n\r\n")


async def test_a_client_of_http_1_0_gets_no_chunks_and_sees_the_end_by_the_close(net: Net) -> None:
    made = await net.answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    answer = await net.ask(
        await net.proxy_to(made), b"GET / HTTP/1.0\r\nHost: orders\r\nConnection: keep-alive\r\n\r\n"
    )
    assert answer.endswith(b"\r\n\r\nhello")
    assert b"chunked" not in answer


async def test_a_client_of_http_1_0_may_keep_its_connection(net: Net) -> None:
    client = await net.dial(await net.proxy_to(await net.answering(net.ok())))
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nHost: orders\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive\r\n" in await client.head()
        assert await client.exactly(2) == b"hi"


async def test_an_answer_that_ends_with_its_connection_is_passed_on_whole(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    answer = await net.ask(await net.proxy_to(await net.upstream(script)), net.get())
    assert answer.endswith(b"to the end\r\n0\r\n\r\n")


async def test_100_continue_is_passed_on_before_the_body_is_sent(net: Net) -> None:
    async def script(raw: Raw) -> None:
        assert b"Expect: 100-continue\r\n" in await raw.head()
        raw.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw.send(net.ok(await raw.exactly(5)))

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(
        b"PUT / HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    )
    assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert (await client.until_end()).endswith(b"hello")


async def test_an_early_answer_reaches_a_client_that_still_sends(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(net.ok(b"too much", status=b"413 Content Too Large"))
        await raw.until_end()

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 100000000\r\n\r\n" + PIECE)
    answer = await client.until_end()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close\r\n" in answer


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n", b""])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_truncated_answer_never_looks_whole(net: Net, framing: bytes, version: bytes) -> None:
    reset = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 200 OK\r\n%b\r\n5\r\nhello\r\n" % framing)
        await reset.wait()
        sock = raw.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: a crash is a reset
        raw.reset()

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(b"GET / HTTP/%b\r\nHost: orders\r\n\r\n" % version)
    head = await client.head()
    await client.exactly(5)
    reset.set()
    try:
        rest = await client.until_end()
    except ConnectionResetError:
        return
    assert b"content-length: 1000" in head.lower() or b"chunked" in head.lower()
    assert not rest.endswith(b"0\r\n\r\n")


async def test_a_client_that_leaves_ends_the_upstreams_work(net: Net) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await raw.until_end()
        left.set()

    sidecar = await net.proxy_to(await net.upstream(script))
    client = await net.dial(sidecar)
    client.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        client.reset()
        await left.wait()
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0


def memory_mib() -> float:
    """What this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


async def test_100_mb_to_a_slow_reader_pass_at_constant_memory(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
        for _ in range(BIG // len(PIECE)):
            raw.send(PIECE)
            await raw.writer.drain()

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    before = memory_mib()
    client.send(net.get())
    await client.head()
    digest, left, most = hashlib.md5(usedforsecurity=False), BIG, before
    while left:
        piece = await client.reader.read(1 << 20)
        assert piece
        digest.update(piece)
        left -= len(piece)
        most = max(most, memory_mib())
    assert most - before < 30
    assert digest.digest() == hashlib.md5(PIECE * (BIG // len(PIECE)), usedforsecurity=False).digest()


async def test_100_mb_to_a_slow_upstream_pass_and_the_client_is_held_back(net: Net) -> None:
    go, got = asyncio.Event(), asyncio.Event()
    total = 0

    async def script(raw: Raw) -> None:
        nonlocal total
        await raw.head()
        await go.wait()
        while total < BIG:
            total += len(await raw.reader.read(1 << 20))
        raw.send(net.ok(b"all"))
        got.set()

    sidecar = await net.proxy_to(await net.upstream(script))
    client = await net.dial(sidecar)
    client.send(b"POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % BIG)
    sent = 0
    while True:  # until nothing more goes in: all buffers on the way are full
        client.send(PIECE)
        sent += len(PIECE)
        try:
            async with asyncio.timeout(0.3):
                await client.writer.drain()
        except TimeoutError:
            break
    assert sent < BIG // 2
    go.set()
    while sent < BIG:
        client.send(PIECE)
        sent += len(PIECE)
        await client.writer.drain()
    assert (await client.until_end()).endswith(b"all")
    assert total == BIG


async def serve_websocket(net: Net) -> tuple[web.AppRunner, Sidecar]:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str("echo " + message.data)
            elif message.type == WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/ws", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    inbound = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=address)
    return runner, await net.sidecar(static={"chat": [inbound.at["inbound"]]})


async def test_a_websocket_passes_both_sidecars(net: Net) -> None:
    runner, sidecar = await serve_websocket(net)
    try:
        async with (
            ClientSession() as session,
            session.ws_connect(f"http://{sidecar.at['outbound']}/ws", headers={"Host": "chat"}) as socket,
        ):
            for number in range(20):
                await socket.send_str(str(number))
                assert await socket.receive_str(timeout=net.patience_s) == f"echo {number}"
            await socket.send_bytes(PIECE * 16)
            assert await socket.receive_bytes(timeout=net.patience_s) == PIECE * 16
        assert sidecar.outbound is not None
    finally:
        await runner.cleanup()


async def test_an_upgrade_that_is_declined_is_an_ordinary_answer(net: Net) -> None:
    made: Upstream = await net.answering(net.ok(b"no", status=b"400 Bad Request"))
    extra = "Connection: upgrade\r\nUpgrade: websocket\r\n"
    client = await net.dial(await net.proxy_to(made))
    for _ in range(2):
        client.send(net.get(extra=extra, close=False))
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert await client.exactly(2) == b"no"
    assert b"Upgrade: websocket\r\n" in made.heads[0]


@pytest.mark.parametrize("listener", ["outbound", "inbound"])
async def test_a_request_without_host_reaches_the_upstream_with_one(net: Net, listener: str) -> None:
    made = await net.answering(net.ok())
    sidecar = await net.sidecar(inbound="127.0.0.1:0", app=made.address, static={"orders": [made.address]})
    answer = await net.ask(sidecar, b"GET / HTTP/1.0\r\nx-homeport-service: orders\r\n\r\n", listener)
    assert answer.endswith(b"hi")
    (host,) = fields(made.heads[0])[b"host"]
    assert host == (b"orders" if listener == "outbound" else made.address.encode())


async def test_a_client_that_half_closes_still_gets_its_answer(net: Net) -> None:
    client = await net.dial(await net.proxy_to(await net.answering(net.ok())))
    client.send(net.get(close=False))
    client.writer.write_eof()
    assert (await client.until_end()).endswith(b"hi")


@pytest.mark.parametrize("rest", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_a_pipelined_request_that_is_cut_short_is_refused_after_the_whole_one(net: Net, rest: bytes) -> None:
    release = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        await release.wait()
        raw.send(net.ok())

    client = await net.dial(await net.proxy_to(await net.upstream(script)))
    client.send(net.get(close=False) + rest)
    client.writer.write_eof()
    release.set()
    assert (await client.head()).startswith(b"HTTP/1.1 200 ")
    assert await client.exactly(2) == b"hi"
    answer = await client.until_end()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


async def test_a_trace_passes_as_it_is_and_starts_where_that_is_asked(net: Net) -> None:
    made = await net.answering(net.ok())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sidecar = await net.proxy_to(made, start_traces=True)
    await net.ask(sidecar, net.get(extra=f"TraceParent: {trace}\r\n"))
    await net.ask(sidecar, net.get())
    await net.ask(await net.proxy_to(made), net.get())
    passed, started, none = (fields(head).get(b"traceparent", []) for head in made.heads)
    assert passed == [trace.encode()]
    assert len(started) == 1
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", started[0])
    assert none == []
