"""TLS on either side: who is believed, what changes while running, and that a cut is never taken for an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import Instance
from homeport.sidecar import ServerTls, Sidecar, Timeouts
from homeport.sidecar.core.settings import ServiceSettings, UpstreamTls

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """Certificates, and the files they are in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.pem = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.pem)

    def issue(self, name: str, to: str | None = None) -> tuple[Path, Path]:
        """A certificate for `name`, in the files of `to`."""
        issued = self.ca.issue_cert(name)
        cert, key = self.folder / f"{to or name}.pem", self.folder / f"{to or name}.key"
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        return cert, key

    def break_off(self, name: str) -> None:
        """Somebody is still writing the file."""
        (self.folder / f"{name}.pem").write_bytes(b"half a certif")

    def server(self, name: str, *, client_ca: bool = False) -> ServerTls:
        cert, key = self.issue(name)
        return ServerTls(cert=cert, key=key, client_ca=self.pem if client_ca else None)

    def client(self) -> ssl.SSLContext:
        """A context that believes us."""
        context = ssl.create_default_context(cafile=self.pem)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


BIG = b"0123456789abcdef" * 4096  # 64 KiB


async def upstream(context: ssl.SSLContext, serve: Serve = answer) -> tuple[asyncio.Server, str]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def shown(sidecar: Sidecar, context: ssl.SSLContext, name: str) -> tuple[bytes, Any]:
    """What the inbound answers to somebody who expects `name`, and the TLS it was said over."""
    host, port = sidecar.at["inbound"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(30):
            return await reader.read(), writer.get_extra_info("ssl_object")
    finally:
        writer.close()


async def test_clients_of_an_inbound_are_met_with_its_certificate_and_http_1_1(net: Net, authority: Authority) -> None:
    app = await net.answering(net.ok())
    sidecar = await net.sidecar(
        outbound=None, inbound="127.0.0.1:0", app=app.address, inbound_tls=authority.server("orders.test")
    )
    got, tls = await shown(sidecar, authority.client(), "orders.test")
    assert got.endswith(b"hi")
    assert tls.selected_alpn_protocol() == "http/1.1"
    assert b"X-Forwarded-Proto: https\r\n" in app.heads[0]
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown(sidecar, authority.client(), "somebody.else")
    assert sidecar.inbound is not None
    assert sidecar.inbound.active == 0


async def test_plain_http_at_a_tls_inbound_is_no_request(net: Net, authority: Authority) -> None:
    app = await net.answering(net.ok())
    sidecar = await net.sidecar(
        outbound=None, inbound="127.0.0.1:0", app=app.address, inbound_tls=authority.server("orders.test")
    )
    with contextlib.suppress(ConnectionResetError):
        assert await net.ask(sidecar, net.get(), "inbound") == b""
    assert app.connections == 0


async def test_only_clients_with_a_certificate_may_call_if_that_is_asked(net: Net, authority: Authority) -> None:
    app = await net.answering(net.ok())
    sidecar = await net.sidecar(
        outbound=None,
        inbound="127.0.0.1:0",
        app=app.address,
        inbound_tls=authority.server("orders.test", client_ca=True),
    )
    with contextlib.suppress(ssl.SSLError, ConnectionError):  # in TLS 1.3 the refusal may come after the handshake
        assert (await shown(sidecar, authority.client(), "orders.test"))[0] == b""
    known = authority.client()
    known.load_cert_chain(*authority.issue("caller.test"))
    assert (await shown(sidecar, known, "orders.test"))[0].endswith(b"hi")
    assert len(app.heads) == 1


async def test_a_changed_certificate_is_shown_and_a_broken_one_is_not(
    net: Net, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    app = await net.answering(net.ok())
    settings = authority.server("orders.test")
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address, inbound_tls=settings)
    assert sidecar.inbound is not None
    assert sidecar.inbound.tls is not None
    now = asyncio.get_running_loop().time()

    authority.break_off("orders.test")
    sidecar.inbound.tls.sweep(now + 10)
    assert "cannot be used" in caplog.text
    assert (await shown(sidecar, authority.client(), "orders.test"))[0].endswith(b"hi")

    authority.issue("renewed.test", to="orders.test")
    sidecar.inbound.tls.sweep(now + 20)
    assert (await shown(sidecar, authority.client(), "renewed.test"))[0].endswith(b"hi")


async def test_who_may_call_changes_with_its_file_and_nobody_is_cut_off(
    net: Net, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = await net.answering(net.ok())
    settings = authority.server("orders.test", client_ca=True)
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address, inbound_tls=settings)
    assert sidecar.inbound is not None
    assert sidecar.inbound.tls is not None
    now = asyncio.get_running_loop().time()
    (tmp_path / "others").mkdir()
    others = Authority(tmp_path / "others")
    old, new = authority.client(), authority.client()
    old.load_cert_chain(*authority.issue("caller.test"))
    new.load_cert_chain(*others.issue("caller.test"))
    host, port = sidecar.at["inbound"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=old, server_hostname="orders.test")
    session = await _asked(reader, writer)
    assert not await _believed(sidecar, new)

    others.pem.replace(authority.pem)
    sidecar.inbound.tls.sweep(now + 10)
    assert await _believed(sidecar, new)
    assert not await _believed(sidecar, old)
    assert not await _believed(sidecar, old, session), "an old session is no way around it"
    await _asked(reader, writer)  # who was let in before stays
    writer.close()

    authority.pem.write_bytes(b"nobody")
    sidecar.reconfigure(sidecar.options)  # what SIGHUP does
    assert "cannot be used" in caplog.text
    assert await _believed(sidecar, new)


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ssl.SSLSession | None:
    writer.write(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b"hi")
    session: ssl.SSLSession | None = writer.get_extra_info("ssl_object").session
    return session


async def _believed(sidecar: Sidecar, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
    """Whether a client is answered, also one that names nobody (no SNI) or would go on with an earlier session."""
    address = sidecar.at["inbound"].split(":")

    def ask(name: str | None) -> bytes:
        with socket.create_connection((address[0], int(address[1])), timeout=30) as plain:
            tls = context.wrap_socket(plain, server_hostname=name, session=session)
            with tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
                return tls.recv(4096)

    answers = []
    for name in ("orders.test", None):
        context.check_hostname = name is not None
        try:
            answers.append(await asyncio.to_thread(ask, name))
        except (ssl.SSLError, ConnectionError):
            answers.append(b"")
    assert bool(answers[0]) == bool(answers[1])
    return answers[0].startswith(b"HTTP/1.1 200")


async def test_whom_a_service_is_believed_to_be_changes_with_its_file(
    net: Net, authority: Authority, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    server, address = await upstream(context)
    (tmp_path / "others").mkdir()
    others = Authority(tmp_path / "others")
    believed = tmp_path / "believed.pem"
    believed.write_bytes(others.pem.read_bytes())
    async with server:
        sidecar = await calling(net, address, UpstreamTls(ca=str(believed)))
        assert (await net.ask(sidecar, net.get())).startswith(b"HTTP/1.1 503")
        believed.write_bytes(authority.pem.read_bytes() + b"\n")
        assert sidecar.outbound is not None
        sidecar.outbound.sweep(asyncio.get_running_loop().time() + 10)
        assert (await net.ask(sidecar, net.get())).endswith(b"hi")


def test_an_encrypted_key_is_an_error_and_not_a_question(authority: Authority) -> None:
    cert, key = authority.issue("orders.test")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    with pytest.raises(OSError, match="SSL"):
        ServerTls(cert=cert, key=key).context()


async def calling(net: Net, address: str, settings: UpstreamTls | None, **meta: str) -> Sidecar:
    host, port = address.split(":")
    net.registrar.feed("orders").say(Instance(service="orders", id=address, address=host, port=int(port), meta=meta))
    return await net.sidecar(services={"orders": ServiceSettings(tls=settings)})


async def test_a_service_is_met_as_its_settings_say(net: Net, authority: Authority) -> None:
    server, address = await upstream(authority.server("db.test", client_ca=True).context())
    cert, key = (str(path) for path in authority.issue("me.test"))
    ca = str(authority.pem)
    async with server:
        for tls, status in (
            (UpstreamTls(ca=ca, server_name="db.test", cert=cert, key=key), 200),
            (UpstreamTls(verify=False, cert=cert, key=key), 200),
            (UpstreamTls(ca=ca, server_name="other.test", cert=cert, key=key), 503),  # not the name
            (UpstreamTls(ca=ca, cert=cert, key=key), 503),  # the address is not in it
            (UpstreamTls(server_name="db.test", cert=cert, key=key), 503),  # nobody that the system believes
            (None, 502),  # plain text is answered by an alert
        ):
            got = await net.ask(await calling(net, address, tls), net.get())
            assert got.startswith(b"HTTP/1.1 %d " % status), (tls, got)


async def test_an_instance_may_say_itself_that_it_is_met_over_tls(net: Net, authority: Authority) -> None:
    server, address = await upstream(authority.server("db.test").context())
    async with server:
        got = await net.ask(await calling(net, address, None, tls="true"), net.get())
        assert got.startswith(b"HTTP/1.1 503 ")  # the system does not believe our authority
        assert b"SSLCertVerificationError" in got


async def test_large_bodies_pass_both_ways_over_tls(net: Net, authority: Authority) -> None:
    size = 4 << 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            writer.write(await reader.readexactly(size // 64))
            await writer.drain()
        writer.close()

    server, address = await upstream(authority.server("db.test").context(), echo)
    async with server:
        sidecar = await calling(net, address, UpstreamTls(ca=str(authority.pem), server_name="db.test"))
        body = os.urandom(size)
        client = await net.dial(sidecar)
        client.send(b"PUT / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(body)
        await client.head()
        assert await client.exactly(size) == body


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_a_body_that_ends_with_its_connection_is_whole_only_if_tls_says_goodbye(
    net: Net, authority: Authority, says_goodbye: bool
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        await writer.drain()
        if says_goodbye:
            writer.close()
        else:
            writer.transport.abort()

    server, address = await upstream(authority.server("db.test").context(), serve)
    async with server:
        sidecar = await calling(net, address, UpstreamTls(ca=str(authority.pem), server_name="db.test"))
        got = await net.ask(sidecar, net.get())
        assert b"to the end" in got
        assert got.endswith(b"0\r\n\r\n") is says_goodbye


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(InvalidArgument):
        UpstreamTls(key="k.pem")


async def test_a_tcp_port_meets_instances_over_tls_and_leaves_those_that_do_not_shake_hands_or_are_not_believed(
    net: Net, authority: Authority, tmp_path: Path, eventually: Eventually
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
        writer.close()

    async def deaf(raw: Raw) -> None:
        await raw.until_end()

    (tmp_path / "others").mkdir()
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]
    for context, whose in zip(contexts, (authority, Authority(tmp_path / "others")), strict=True):
        context.load_cert_chain(*whose.issue("127.0.0.1"))
    (good, address), (stranger, strange) = [await upstream(context, echo) for context in contexts]
    silent = await net.upstream(deaf)
    addresses = (address, strange, silent.address)
    net.registrar.feed("orders").say(
        *(
            Instance(service="orders", id=each, address="127.0.0.1", port=int(each.rpartition(":")[2]))
            for each in addresses
        )
    )
    settings = ServiceSettings(tls=UpstreamTls(ca=str(authority.pem)))
    async with good, stranger:
        sidecar = await net.sidecar(
            tcp={"orders": "127.0.0.1:0"},
            services={"orders": settings},
            timeouts=Timeouts(connect_s=0.5, first_byte_s=0.5),
        )
        assert sidecar.outbound is not None
        cluster = sidecar.outbound.clusters["orders"]
        for _ in range(8):
            raw = await net.dial(sidecar, "tcp:orders")
            raw.send(b"hello")
            assert await raw.exactly(5) == b"hello"
            raw.writer.close()
        assert cluster.connect_failures == cluster.retries > 0
        assert silent.connections > 0
        assert cluster.circuit is not None
        await eventually(lambda: not sidecar.tcp[0].connections)
        assert (cluster.active, cluster.circuit.connections, cluster.circuit.pending) == (0, 0, 0)
        assert not sidecar.tcp[0].flags  # though it is silence that has ended them


async def test_a_half_close_towards_an_instance_over_tls_does_not_cut_its_answer_off(
    net: Net, authority: Authority, eventually: Eventually
) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(5) == b"hello"
        asked.set()
        await ended.wait()
        writer.write(BIG)
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    server, address = await upstream(context, late)
    async with server:
        sidecar = await net.sidecar(
            tcp={"orders": "127.0.0.1:0"},
            static={"orders": [address]},
            services={"orders": ServiceSettings(tls=UpstreamTls(ca=str(authority.pem)))},
        )
        raw = await net.dial(sidecar, "tcp:orders")
        raw.send(b"hello")
        raw.writer.write_eof()
        async with asyncio.timeout(net.patience_s):
            await asked.wait()
        (forward,) = sidecar.tcp[0].connections
        await eventually(lambda: forward.client.ended)
        ended.set()
        assert forward.silence_s == sidecar.options.timeouts.first_byte_s  # for one that waits for an end
        assert await raw.until_end() == BIG
        await eventually(lambda: not sidecar.tcp[0].connections)
        assert not sidecar.tcp[0].flags


async def test_a_tunnel_over_tls_ends_in_order_when_its_client_does(
    net: Net, authority: Authority, eventually: Eventually
) -> None:
    async def switches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    server, address = await upstream(context, switches)
    wrong: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, said: wrong.append(said))
    async with server:
        sidecar = await net.sidecar(
            static={"orders": [address]},
            services={"orders": ServiceSettings(tls=UpstreamTls(ca=str(authority.pem)))},
        )
        raw = await net.dial(sidecar)
        raw.send(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
        raw.writer.write_eof()
        assert await raw.until_end() == b""
        outbound = sidecar.outbound
        assert outbound is not None
        await eventually(lambda: (outbound.active, outbound.tunnels, len(outbound.connections)) == (0, 0, 0))
    assert not wrong
