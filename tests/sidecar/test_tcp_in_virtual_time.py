"""TCP by service over minutes of virtual time: who gets a connection, who does not, and when each wait is over."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from homeport.client.core.model import Instance
from homeport.mesh.testing import running_loop, streams, virtual_time
from homeport.sidecar import Circuit, Limits, ServiceSettings, Timeouts
from homeport.sidecar.core.limits import SWEEP_S
from homeport.sidecar.http1.upstream import Cluster
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound
from homeport.sidecar.tcp import Forward, Side, TcpListener
from tests.sidecar.conftest import Registrar

SEED = 20_260_501
PORT = 15_432
HOME = "127.0.0.1"


@dataclass
class Database:
    """Says its name to whoever connects, and echoes from then on."""

    name: str
    address: str
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        try:
            writer.write(self.name.encode())
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def instance(self, **fields: Any) -> Instance:
        return Instance(service="orders", id=self.name, address=self.address, port=5432, **fields)


@dataclass
class Site:
    """A local port that stands for a service of three instances."""

    tcp: TcpListener
    databases: list[Database]
    registrar: Registrar
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(HOME, PORT)
        self.clients.append(writer)
        return reader, writer

    @property
    def cluster(self) -> Cluster:
        return self.tcp.outbound.clusters["orders"]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """What must be nothing when nobody is connected."""
        circuit = self.cluster.circuit
        assert circuit is not None
        return len(self.tcp.connections), self.cluster.active, circuit.connections, circuit.pending

    def say(self, *instances: Instance) -> None:
        self.registrar.feed("orders").say(*instances)

    def forward(self) -> Forward:
        (forward,) = self.tcp.connections
        return forward


@asynccontextmanager
async def site(
    *, timeouts: Timeouts | None = None, limits: Limits | None = None, known: bool = True
) -> AsyncIterator[Site]:
    loop = running_loop()
    registrar = Registrar()
    databases = [Database(str(number), f"10.0.0.{number}") for number in (1, 2, 3)]
    servers: list[Any] = []
    for each in databases:
        with loop.network.host(each.address):
            servers.append(await asyncio.start_server(each.serve, each.address, 5432))
    if known:
        registrar.feed("orders").say(*(each.instance() for each in databases))
    options = Options(
        limits=limits or Limits(), timeouts=timeouts or Timeouts(), settings=ServiceSettings(circuit=Circuit())
    )
    outbound = Outbound(loop, random.Random(SEED), "me", registrar, options)
    tcp = TcpListener(outbound, "orders")
    servers.append(await loop.create_server(tcp.protocol, HOME, PORT))

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            outbound.sweep(loop.time())
            tcp.sweep(loop.time())

    sweeping = asyncio.create_task(sweep())
    made = Site(tcp, databases, registrar)
    try:
        yield made
    finally:
        sweeping.cancel()
        for writer in made.clients:
            writer.transport.abort()
        tcp.close()
        outbound.close()
        for server in servers:
            server.close()
        for database in databases:
            for writer in database.clients:
                writer.transport.abort()


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time(seed=SEED)
async def test_connections_are_spread_by_how_many_each_instance_has() -> None:
    async with site() as here:
        got: Counter[bytes] = Counter()
        for _ in range(60):
            reader, _writer = await here.dial()
            got[await reader.readexactly(1)] += 1
        assert sum(got.values()) == 60
        assert max(got.values()) - min(got.values()) <= 2, got
        assert here.cluster.active == 60


@virtual_time(seed=SEED)
async def test_an_instance_that_does_not_answer_costs_the_connect_timeout_and_no_connection() -> None:
    async with site(timeouts=Timeouts(connect_s=1.5)) as here:
        network = running_loop().network
        network.partition(HOME, "10.0.0.1")
        network.partition(HOME, "10.0.0.2")
        waits = []
        for _ in range(12):
            began_s = now()
            reader, _writer = await here.dial()
            assert await reader.readexactly(1) == b"3"
            waits.append(now() - began_s)
        assert here.cluster.connect_failures == here.cluster.retries > 0
        assert max(waits) < 2 * (1.5 + SWEEP_S) + 0.1, "two of three are gone: two waits at most"
        assert here.cluster.active == 12


@virtual_time(seed=SEED)
async def test_when_nobody_answers_the_client_hears_so_and_nothing_is_left() -> None:
    async with site(timeouts=Timeouts(connect_s=1)) as here:
        for each in here.databases:
            running_loop().network.partition(HOME, each.address)
        began_s = now()
        reader, _writer = await here.dial()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert now() - began_s < 3 * (1 + SWEEP_S) + 0.1, "three tries at most"
        assert here.tcp.flags == {"UF": 1}
        await asyncio.sleep(120)
        assert here.counts == (0, 0, 0, 0)


@virtual_time(seed=SEED)
async def test_a_connection_that_comes_when_its_time_is_over_takes_nobodys_place() -> None:
    async with site(timeouts=Timeouts(connect_s=1)) as here:
        network = running_loop().network
        for each in here.databases:
            network.partition(HOME, each.address)
        _reader, writer = await here.dial()
        await asyncio.sleep(1 + 2 * SWEEP_S)
        forward = here.forward()
        late, under_way = forward.tried[0], forward.endpoint
        assert under_way is not late
        network.heal()
        loop = asyncio.get_running_loop()
        transport, side = await loop.create_connection(lambda: Side(forward, late), late.address, late.port)
        await asyncio.sleep(5)
        assert transport.is_closing()
        assert forward.upstream is not side
        assert forward.endpoint is under_way
        assert here.counts == (1, 1, 1, 0)
        writer.close()
        await asyncio.sleep(5)
        assert here.counts == (0, 0, 0, 0)
        transport, _side = await loop.create_connection(lambda: Side(forward, late), late.address, late.port)
        await asyncio.sleep(5)
        assert transport.is_closing()
        assert here.counts == (0, 0, 0, 0)
        assert here.tcp.connections_total == 1


@virtual_time(seed=SEED)
async def test_nothing_is_left_however_clients_and_instances_come_and_go() -> None:
    chance = random.Random(SEED)
    async with site(timeouts=Timeouts(connect_s=0.3, flush_s=2)) as here:
        network = running_loop().network

        async def client() -> None:
            await asyncio.sleep(chance.uniform(0, 20))
            _reader, writer = await here.dial()
            await asyncio.sleep(chance.choice([0, 0.0005, 0.001, 0.01, 0.3, 2]))
            if chance.random() < 0.5:
                writer.write(b"x" * chance.randrange(1, 200_000))
            if chance.random() < 0.3:
                writer.write_eof()
                await asyncio.sleep(chance.uniform(0, 3))
            if chance.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

        async def weather() -> None:
            for _ in range(40):
                await asyncio.sleep(0.5)
                network.heal()
                each = chance.choice(here.databases)
                chance.choice([network.partition, network.cut])(HOME, each.address)
            network.heal()

        async with asyncio.TaskGroup() as group:
            group.create_task(weather())
            for _ in range(300):
                group.create_task(client())
        await asyncio.sleep(60)
        assert here.counts == (0, 0, 0, 0)
        assert here.tcp.connections_total == 300
        assert sum(endpoint.active for endpoint in here.cluster.endpoints.values()) == 0


@virtual_time(seed=SEED)
async def test_an_instance_that_fails_its_checks_gets_no_new_connection_and_keeps_those_it_has_for_a_time() -> None:
    async with site(timeouts=Timeouts(leave_s=60)) as here:
        first, second, third = here.databases
        here.say(first.instance())
        reader, writer = await here.dial()
        assert await reader.readexactly(1) == b"1"
        here.say(first.instance(status="critical"), second.instance(), third.instance())
        began_s = now()
        for _ in range(20):
            other, _writer = await here.dial()
            assert await other.readexactly(1) in b"23"
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        assert await reader.read() == b""
        assert 60 <= now() - began_s < 60 + 3 * SWEEP_S
        assert here.tcp.flags == {"LR": 1}


@virtual_time(seed=SEED)
async def test_an_instance_that_gets_well_in_time_keeps_its_connections() -> None:
    async with site(timeouts=Timeouts(leave_s=60)) as here:
        first, *_ = here.databases
        here.say(first.instance())
        reader, writer = await here.dial()
        assert await reader.readexactly(1) == b"1"
        here.say(first.instance(status="critical"))
        await asyncio.sleep(50)
        here.say(first.instance())
        await asyncio.sleep(50)
        here.say(first.instance(status="critical"))
        await asyncio.sleep(50)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"


@virtual_time(seed=SEED)
async def test_only_silence_in_both_directions_ends_a_connection() -> None:
    async with site(timeouts=Timeouts(tunnel_s=30)) as here:
        reader, writer = await here.dial()
        await reader.readexactly(1)
        for _ in range(5):
            await asyncio.sleep(25)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        began_s = now()
        assert await reader.read() == b""
        assert 30 <= now() - began_s < 30 + 3 * SWEEP_S
        assert here.tcp.flags == {"SI": 1}


@virtual_time(seed=SEED)
async def test_a_drain_waits_for_connections_as_long_as_it_may() -> None:
    async with site() as here:
        reader, writer = await here.dial()
        await reader.readexactly(1)
        began_s = now()
        first, second = asyncio.create_task(here.tcp.emptied(20)), asyncio.create_task(here.tcp.emptied(90))
        await asyncio.sleep(5)
        assert not await first
        assert 20 <= now() - began_s < 20.1
        writer.close()
        assert await second
        assert now() - began_s < 21


@virtual_time(seed=SEED)
async def test_a_client_that_speaks_first_is_held_back_by_an_instance_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with site(limits=Limits(buffer_bytes=16_384), known=False) as here:
        _reader, writer = await here.dial()
        writer.write(b"x" * 10_000_000)
        await asyncio.sleep(1)  # it speaks before anybody knows where the service is
        assert len(here.forward().ahead) > 16_384
        monkeypatch.setattr(streams, "WINDOW_BYTES", 1024)  # its first word is more than a kernel takes
        running_loop().network.stall("10.0.0.1")
        here.say(here.databases[0].instance())
        await asyncio.sleep(30)
        upstream = here.forward().upstream
        assert upstream is not None
        assert upstream.transport.get_write_buffer_size() < 256 * 1024
        held_back = here.forward().client.received
        running_loop().network.heal()
        await asyncio.sleep(30)
        assert here.forward().client.received > held_back, "it goes on when it is read again"
