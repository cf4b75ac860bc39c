"""Programs that ask DNS: dig and kdig; dnsmasq and unbound in front of us; HAProxy, which follows a service."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import pytest

from homeport.client.core.messages import Deregister, Register
from homeport.client.core.model import Instance
from homeport.registry import Registry
from homeport.registry.peers import NoOutlet, Peer

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.peers.conftest import RunProgram

DEADLINE_S = 30.0
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Home:
    """A registry with its DNS."""

    def __init__(self, registry: Registry, at: str) -> None:
        self.registry = registry
        self.host, _, port = at.rpartition(":")
        self.port = int(port)

    async def register(self, id_: str, address: str, port: int) -> None:
        one = Instance(service="orders", id=id_, address=address, port=port, tags=("v1",))
        await self.registry.operations.registrations.register(Register(instance=one), Peer(NoOutlet()))

    async def deregister(self, id_: str) -> None:
        async with self.registry.client() as client:
            await client.call(Deregister(id=id_))


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with Registry(node="home", rng=random.Random(1)) as registry:
        yield Home(registry, (await registry.serve(dns="127.0.0.1:0")).dns or "")


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("name", ["dig", "kdig"])
async def test_dig_and_kdig_read_every_kind_of_answer(name: str, home: Home, run_program: RunProgram) -> None:
    command = [program(name), f"@{home.host}", "-p", str(home.port)]
    for number in range(40):
        await home.register(f"o{number}", f"10.0.0.{number}", 8000)

    async def short(*asked: str) -> list[str]:
        lines = (await run_program(*command, "+short", *asked)).splitlines()
        return [line for line in lines if line and not line.startswith(";")]  # they say when they go over to TCP

    found = await short("v1.orders.service.homeport", "A")
    assert sorted(found) == sorted(f"10.0.0.{number}" for number in range(40))
    assert len(await short("_orders._tcp.service.homeport", "SRV")) == 40, "cut over UDP or not, all of them came"
    for options in (["+noedns"], ["+edns=1"], ["+tcp"], ["+bufsize=512"]):
        shown = await run_program(*command, *options, "orders.service.homeport", "A")
        assert "alformed" not in shown
    missing = await run_program(*command, "nothing.service.homeport", "A")
    assert "NXDOMAIN" in missing
    assert "SOA" in missing


async def _forwarded(home: Home, port: int) -> None:
    """Whoever listens there finds what changes with us."""

    async def ask(name: str, kind: str) -> dns.message.Message | None:
        query = dns.message.make_query(name, kind)
        try:
            return await dns.asyncquery.udp(query, "127.0.0.1", port=port, timeout=0.5)
        except (dns.exception.DNSException, OSError):
            return None

    async def found(name: str, kind: str, records: int, rcode: int = dns.rcode.NOERROR) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answer = await ask(name, kind)
                if answer and answer.rcode() == rcode and sum(map(len, answer.answer)) == records:
                    return
                await asyncio.sleep(0)

    await home.register("a", "10.0.0.1", 81)
    await found("orders.service.homeport", "A", 1)
    await home.register("b", "10.0.0.2", 82)
    await found("orders.service.homeport", "A", 2)
    await found("_orders._tcp.service.homeport", "SRV", 2)
    await found("v1.orders.service.homeport", "A", 2)
    await found("0a000001.addr.dc1.homeport", "A", 1)
    await found("service.homeport", "A", 0)
    await home.deregister("a")
    await found("orders.service.homeport", "A", 1)
    await found("nothing.service.homeport", "A", 0, dns.rcode.NXDOMAIN)


async def test_dnsmasq_forwards_our_domain(home: Home, unused_port: int) -> None:
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    options += [f"--port={unused_port}", "--listen-address=127.0.0.1", "--pid-file=", "--user=", "--group="]
    async with running(program("dnsmasq"), *options, f"--server=/homeport/{home.host}#{home.port}"):
        await _forwarded(home, unused_port)


async def test_unbound_forwards_our_domain_and_minimises_names(home: Home, unused_port: int, tmp_path: Path) -> None:
    config = tmp_path / "unbound.conf"
    config.write_text(f"""
server:
  directory: "{tmp_path}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  interface: 127.0.0.1
  port: {unused_port}
  do-ip6: no
  module-config: "iterator"
  qname-minimisation: yes
  harden-below-nxdomain: yes
  do-not-query-localhost: no
  domain-insecure: "homeport"
stub-zone:
  name: "homeport"
  stub-addr: {home.host}@{home.port}
remote-control:
  control-enable: no
""")
    async with running(program("unbound"), "-d", "-c", str(config)):
        await _forwarded(home, unused_port)


@asynccontextmanager
async def web_server(name: str) -> AsyncIterator[int]:
    """An HTTP server that says its name to every request of a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(name), name.encode()))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_haproxy_follows_instances_without_a_failed_request(home: Home, unused_port: int, tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"""
global
    maxconn 100
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
    timeout check 1s
resolvers homeport
    nameserver local {home.host}:{home.port}
    accepted_payload_size 8192
    timeout resolve 100ms
    timeout retry 100ms
    hold valid 100ms
    hold obsolete 0s
    hold nx 100ms
frontend web
    bind 127.0.0.1:{unused_port}
    default_backend orders
backend orders
    balance roundrobin
    server-template orders 5 _orders._tcp.service.homeport resolvers homeport resolve-prefer ipv4 init-addr none
""")

    async def ask() -> tuple[int, str]:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        except OSError:
            return 0, ""
        writer.write(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1]) if answer else 0, answer.rpartition(b"\r\n\r\n")[2].decode()

    async def converges_to(*names: str) -> None:
        """Ask until only these answer, then many times more: none may fail."""
        async with asyncio.timeout(DEADLINE_S):
            recent: list[tuple[int, str]] = []
            while {*recent[-20:]} != {(200, name) for name in names} or len(recent) < 20:
                recent.append(await ask())
        seen = Counter([await ask() for _ in range(300)])
        assert set(seen) == {(200, name) for name in names}

    async with web_server("one") as one, web_server("two") as two, web_server("three") as three:
        await home.register("a", "127.0.0.1", one)
        async with running(program("haproxy"), "-db", "-f", str(config)):
            await converges_to("one")
            await home.register("b", "127.0.0.1", two)
            await converges_to("one", "two")
            await home.register("a", "127.0.0.1", three)
            await converges_to("two", "three")
            await home.deregister("b")
            await converges_to("three")
