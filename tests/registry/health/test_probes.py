"""Promises of the prober, on real sockets where they matter: every target gets a verdict, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import trustme

from homeport.client.core.model import OUTPUT_BYTES_MAX, Check
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry.core.health import CUT_MARK, Verdict
from homeport.registry.health import Prober
from homeport.registry.health.http_probe import REDIRECTS_MAX, USER_AGENT

EVENT_S = 30.0  # how long a test waits for what should come at once

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Target:
    """A server on a port of its own that answers each request head with `answer`; it counts connections."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.conversations: list[asyncio.Task[None]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/health"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.conversations.append(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await self.answer(head, writer)
        writer.close()


@contextlib.asynccontextmanager
async def target(answer: Answer | bytes) -> AsyncIterator[Target]:
    """A target; on exit, all connections to it must have been closed by the other side."""

    async def say(_head: bytes, writer: asyncio.StreamWriter) -> None:
        assert isinstance(answer, bytes)
        writer.write(answer)

    it = Target(say if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(it.accept, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        if it.conversations:
            _, pending = await asyncio.wait(it.conversations, timeout=EVENT_S)
            assert not pending, "a probe left its connection open"


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.close()


@pytest.fixture
async def dead_port() -> AsyncIterator[int]:
    """A port that refuses: bound, so that nobody else gets it, but not listening."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0, start_serving=False)
    yield server.sockets[0].getsockname()[1]
    server.close()


def http(url: str, **fields: object) -> Check:
    return msgspec.structs.replace(Check(name="http", kind="http", url=url, timeout_s=30.0), **fields)


def tcp(address: str, **fields: object) -> Check:
    return msgspec.structs.replace(Check(name="tcp", kind="tcp", address=address, timeout_s=30.0), **fields)


def ok(body: bytes = b"fine", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


async def hang(_head: bytes, _writer: asyncio.StreamWriter) -> None:
    """Answer nothing."""


# --- http


async def test_an_answer_of_2xx_passes_and_its_verdict_quotes_it(prober: Prober) -> None:
    async with target(ok("schön".encode())) as it:
        verdict = await prober.probe(http(it.url))
        assert verdict == Verdict("passing", f"HTTP GET {it.url}: 200 OK Output: schön")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("204 No Content", "passing"),
        ("299 Odd", "passing"),
        ("304 Not Modified", "critical"),
        ("400 Bad Request", "critical"),
        ("428 Precondition Required", "critical"),
        ("429 Too Many Requests", "warning"),
        ("503 Service Unavailable", "critical"),
    ],
)
async def test_a_status_code_means_what_it_means_in_consul(prober: Prober, status: str, expected: str) -> None:
    async with target(ok(b"", status)) as it:
        verdict = await prober.probe(http(it.url))
        assert verdict.status == expected
        assert status in verdict.output
        assert not verdict.refused


async def test_method_and_headers_are_the_checks_and_the_sender_is_named(prober: Prober) -> None:
    async with target(ok(headers="Set-Cookie: a=b; Path=/\r\n")) as it:
        url = it.url.replace("127.0.0.1", "localhost")  # for a bare address nobody would keep cookies anyway
        for _ in range(2):
            await prober.probe(http(url, method="PUT", headers={"X-Token": "t", "Host": "orders"}))
        assert len(it.heads) == 2
        for head in it.heads:
            assert head.startswith(b"PUT /health HTTP/1.1\r\n")
            assert b"X-Token: t\r\n" in head
            assert b"Host: orders\r\n" in head
            assert b"Connection: close\r\n" in head
            assert f"User-Agent: {USER_AGENT}\r\n".encode() in head
            assert b"cookie" not in head.lower(), "a probe remembers nothing of the last one"


async def test_every_probe_opens_a_connection_of_its_own(prober: Prober) -> None:
    async with target(ok(headers="Connection: keep-alive\r\n")) as it:
        for _ in range(3):
            assert (await prober.probe(http(it.url))).status == "passing"
        assert len(it.conversations) == 3


async def test_a_redirect_is_followed_and_an_endless_one_is_given_up(prober: Prober) -> None:
    async def redirect(head: bytes, writer: asyncio.StreamWriter) -> None:
        hop = int(head.split(b" ")[1].removeprefix(b"/"))
        writer.write(ok() if hop == 0 else ok(b"", "302 Found", f"Location: /{hop - 1}\r\n"))

    async with target(redirect) as it:
        base = f"http://127.0.0.1:{it.port}"
        assert (await prober.probe(http(f"{base}/{REDIRECTS_MAX - 1}"))).status == "passing"
        verdict = await prober.probe(http(f"{base}/{REDIRECTS_MAX + 1}"))
        assert verdict.status == "critical"
        assert "redirects" in verdict.output


async def test_a_redirect_that_is_not_followed_is_critical(prober: Prober) -> None:
    async with target(ok(b"", "302 Found", "Location: /elsewhere\r\n")) as it:
        verdict = await prober.probe(http(it.url, redirects=False))
        assert (verdict.status, len(it.heads)) == ("critical", 1)
        assert "302 Found" in verdict.output


async def test_another_host_is_not_told_what_was_meant_for_the_first(prober: Prober) -> None:
    async with target(ok()) as other:
        away = ok(b"", "307 Temporary Redirect", f"Location: {other.url}\r\n")
        async with target(away) as it:
            headers = {"Authorization": "secret", "Cookie": "secret", "X-Kept": "1"}
            assert (await prober.probe(http(it.url, headers=headers))).status == "passing"
        assert b"secret" in it.heads[0]
        assert b"secret" not in other.heads[0]
        assert b"X-Kept: 1" in other.heads[0]


@pytest.mark.parametrize(("status", "method", "kept"), [(302, b"GET", False), (307, b"POST", True)])
async def test_a_body_is_sent_and_sent_again_only_where_the_redirect_says_so(
    prober: Prober, status: int, method: bytes, kept: bool
) -> None:
    bodies: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
        bodies.append(head.split(b" ")[0] + b" " + await reader.readexactly(size))
        writer.write(ok() if len(bodies) > 1 else ok(b"", f"{status} Go", "Location: /there\r\n"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    check = http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", method="POST", body="ping é")
    assert (await prober.probe(check)).status == "passing"
    server.close()
    assert bodies == ["POST ping é".encode(), method + b" " + ("ping é".encode() if kept else b"")]


async def test_as_much_of_an_answer_is_kept_as_the_check_asks_for(prober: Prober) -> None:
    async with target(ok(b"0123456789")) as it:
        assert (await prober.probe(http(it.url, output_bytes_max=10))).output.endswith("Output: 0123456789")
        assert (await prober.probe(http(it.url, output_bytes_max=4))).output.endswith(f"Output: 0123{CUT_MARK}")


async def test_over_tls_the_certificate_must_be_the_one_asked_for(
    prober: Prober, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("orders.example").configure_cert(tls)
    it = Target(lambda _head, writer: _say(writer, ok()))
    server = await asyncio.start_server(it.accept, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    with ca.cert_pem.tempfile() as pem:
        monkeypatch.setenv("SSL_CERT_FILE", pem)
        for check in (http(f"https://127.0.0.1:{port}/"), tcp(f"127.0.0.1:{port}", tls=True)):
            named = msgspec.structs.replace(check, tls_name="orders.example")
            assert (await prober.probe(named)).status == "passing"
            verdict = await prober.probe(check)
            assert (verdict.status, verdict.refused) == ("critical", False)
            assert "the certificate is not accepted" in verdict.output
            assert (await prober.probe(msgspec.structs.replace(check, tls_verify=False))).status == "passing"
    server.close()
    await asyncio.wait(it.conversations)


async def test_only_a_refusal_by_the_target_itself_counts_as_refused(prober: Prober, dead_port: int) -> None:
    verdict = await prober.probe(http(f"http://127.0.0.1:{dead_port}/"))
    assert (verdict.status, verdict.refused) == ("critical", True)
    assert f"connection refused (127.0.0.1:{dead_port})" in verdict.output
    async with target(ok(b"", "302 Found", f"Location: http://127.0.0.1:{dead_port}/\r\n")) as it:
        verdict = await prober.probe(http(it.url))
        assert (verdict.status, verdict.refused) == ("critical", False)


async def test_a_target_that_does_not_answer_is_critical_after_the_timeout(prober: Prober) -> None:
    async with target(hang) as it:
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(30):
            verdict = await prober.probe(http(it.url, timeout_s=0.2))
        assert asyncio.get_running_loop().time() - begun > 0.19
        assert verdict == Verdict("critical", f"HTTP GET {it.url}: timed out after 0.2 s")


async def test_the_timeout_covers_a_body_that_drips(prober: Prober) -> None:
    async def drip(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)  # the pace of the drip; nothing waits for it

    async with target(drip) as it:
        verdict = await prober.probe(http(it.url, timeout_s=0.2))
        assert verdict.status == "critical"
        assert "200 OK, but its body: timed out after 0.2 s" in verdict.output


async def test_an_endless_body_is_read_to_4_kib_and_hung_up_on(prober: Prober) -> None:
    async def pour(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with target(pour) as it:
        verdict = await prober.probe(http(it.url))
        assert verdict.status == "passing"
        assert len(verdict.output) == OUTPUT_BYTES_MAX
        assert verdict.output.endswith("x" + CUT_MARK)


GARBAGE = [
    b"",
    b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::bad\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: gopher://x/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage[:40])
async def test_garbage_is_critical_and_says_something(prober: Prober, garbage: bytes) -> None:
    async def babble(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        writer.write_eof()

    async with target(babble) as it:
        verdict = await prober.probe(http(it.url))
        assert verdict.status == "critical"
        assert verdict.output.startswith(f"HTTP GET {it.url}: ")
        assert len(verdict.output) > len(f"HTTP GET {it.url}: ") + 3
        assert not verdict.refused


async def test_random_garbage_never_raises(prober: Prober) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    whole = ok(headers="Transfer-Encoding: chunked\r\n") + b"5\r\nabcde\r\n0\r\n\r\n"

    async def babble(_head: bytes, writer: asyncio.StreamWriter) -> None:
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        writer.write(bytes(data))
        writer.write_eof()

    async with target(babble) as it:
        for _ in range(200):
            await prober.probe(http(it.url))


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://[bad/"},
        {"url": "http:///nowhere"},
        {"url": "http://a:99999/"},
        {"method": "GET /\r\nX: y"},
        {"headers": {"X": "a\r\nY: b"}},
    ],
)
async def test_a_check_that_cannot_be_sent_is_critical(prober: Prober, fields: dict[str, object]) -> None:
    async with target(ok()) as it:
        verdict = await prober.probe(msgspec.structs.replace(http(it.url), **fields))
        assert verdict.status == "critical"
        assert it.heads == []


async def test_https_to_a_plain_target_is_critical(prober: Prober) -> None:
    async def speak_plainly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 plain text, at once\r\n")
        writer.close()

    server = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
    verdict = await prober.probe(http(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    assert verdict.status == "critical"
    assert "ssl" in verdict.output.lower()
    assert not verdict.refused
    server.close()


async def test_proxies_of_the_environment_are_not_used(
    prober: Prober, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port}")
    async with target(ok()) as it:
        assert (await prober.probe(http(it.url))).status == "passing"


async def test_a_password_in_the_url_is_sent_but_not_shown(prober: Prober) -> None:
    async with target(ok()) as it:
        verdict = await prober.probe(http(it.url.replace("//", "//user:secret@")))
        assert verdict.status == "passing"
        assert "secret" not in verdict.output
        assert b"Authorization: Basic " in it.heads[0]


async def test_a_cancelled_probe_closes_its_connection(prober: Prober) -> None:
    asked = asyncio.Event()

    async def silent(_head: bytes, _writer: asyncio.StreamWriter) -> None:
        asked.set()

    async with target(silent) as it:  # which checks, on exit, that the connection was closed
        probe = asyncio.create_task(prober.probe(http(it.url, timeout_s=60.0)))
        await asyncio.wait_for(asked.wait(), EVENT_S)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe


async def test_many_probes_at_once_do_not_wait_for_each_other(prober: Prober) -> None:
    together = asyncio.Barrier(150)

    async def meet(_head: bytes, writer: asyncio.StreamWriter) -> None:
        await together.wait()  # nobody is answered before all have asked
        writer.write(ok())

    async with target(meet) as it:
        verdicts = await asyncio.gather(*(prober.probe(http(it.url)) for _ in range(150)))
        assert {verdict.status for verdict in verdicts} == {"passing"}


# --- tcp


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_target_that_accepts_passes_and_is_left_at_once(prober: Prober, host: str) -> None:
    async with target(hang) as it:
        verdict = await prober.probe(tcp(f"{host}:{it.port}"))
        assert verdict == Verdict("passing", f"TCP connect {host}:{it.port}: connected")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_target_that_refuses_is_critical_and_refused(prober: Prober, dead_port: int, host: str) -> None:
    for check in (tcp(f"{host}:{dead_port}"), http(f"http://{host}:{dead_port}")):
        verdict = await prober.probe(check)
        assert (verdict.status, verdict.refused) == ("critical", True)
        assert "connection refused" in verdict.output


async def test_ipv6_addresses_are_written_in_brackets(prober: Prober) -> None:
    try:
        server = await asyncio.start_server(lambda _r, writer: writer.close(), "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    port = server.sockets[0].getsockname()[1]
    assert (await prober.probe(tcp(f"[::1]:{port}"))).status == "passing"
    server.close()


# --- in virtual time, where a network can be broken in ways that loopback cannot


@virtual_time(seed=1)
async def test_a_host_that_is_cut_off_or_unknown_is_critical_but_not_refused() -> None:
    loop = running_loop()
    prober = Prober()
    with loop.network.host("10.0.0.2"):
        await loop.create_server(asyncio.Protocol, "10.0.0.2", 80)
    loop.network.partition("127.0.0.1", "10.0.0.2")
    for check in (tcp("10.0.0.2:80"), http("http://10.0.0.2/")):
        begun = loop.time()
        verdict = await prober.probe(check)
        assert loop.time() - begun == pytest.approx(30.0, abs=0.01)
        assert (verdict.status, verdict.refused) == ("critical", False)
        assert "timed out after 30 s" in verdict.output
    for check in (tcp("no.such.name:80"), http("http://no.such.name/")):
        verdict = await prober.probe(check)
        assert (verdict.status, verdict.refused) == ("critical", False)
        assert "the name was not found" in verdict.output
    await prober.close()


@virtual_time(seed=2)
async def test_a_stalled_process_still_accepts_but_fails_an_http_check() -> None:
    loop = running_loop()
    prober = Prober()
    with loop.network.host("10.0.0.2"):
        it = Target(lambda _head, writer: _say(writer, ok()))
        await asyncio.start_server(it.accept, "10.0.0.2", 80)
    checks = (tcp("10.0.0.2:80"), http("http://10.0.0.2/"))
    assert [(await prober.probe(check)).status for check in checks] == ["passing", "passing"]
    loop.network.stall("10.0.0.2")
    assert [(await prober.probe(check)).status for check in checks] == ["passing", "critical"]
    loop.network.heal()
    assert [(await prober.probe(check)).status for check in checks] == ["passing", "passing"]
    assert all(b"Connection: close\r\n" in head for head in it.heads), "also with a connector that would keep it"
    await prober.close()
    await asyncio.wait(it.conversations)


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
