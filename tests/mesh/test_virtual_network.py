"""The memory network: hosts, their addresses, and the faults between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from homeport.mesh.testing import DeadlockError, run_virtual, running_loop, virtual_now, virtual_time

ALPHA, BETA = "10.0.0.1", "10.0.0.2"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what comes, until the end or a fault."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(host: str = BETA, port: int = 80) -> asyncio.Server:
    with running_loop().network.host(host):
        return await asyncio.start_server(echo, host, port)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(host: str = BETA, port: int = 80) -> AsyncIterator[Stream]:
    """A stream that is closed in the end."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(stream: Stream, question: bytes = b"?") -> bytes:
    reader, writer = stream
    writer.write(question)
    return await reader.readexactly(len(question))


async def ask_once(host: str = BETA, port: int = 80) -> bytes:
    """Connect, ask, and close."""
    async with connected(host, port) as stream:
        return await ask(stream)


@virtual_time()
async def test_code_runs_on_the_host_it_was_started_on() -> None:
    network, seen = running_loop().network, []

    async def tell() -> None:
        await asyncio.sleep(1)
        seen.append(network.here().address)

    with network.host(ALPHA):
        one = asyncio.create_task(tell())
    with network.host(BETA):
        two = asyncio.create_task(tell())
    await one
    await two
    assert [*seen, network.here().address] == [ALPHA, BETA, "127.0.0.1"]


@virtual_time()
async def test_a_connection_tells_the_hosts_it_connects() -> None:
    names: list[Any] = []

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.append((writer.get_extra_info("peername")[0], writer.get_extra_info("sockname")))
        writer.close()

    network = running_loop().network
    with network.host(BETA):
        await asyncio.start_server(tell, "0.0.0.0", 80)
    with network.host(ALPHA):
        reader, writer = await asyncio.open_connection(BETA, 80)
    assert await reader.read() == b""
    writer.close()
    assert names == [(ALPHA, (BETA, 80))]


@virtual_time()
async def test_loopback_is_each_hosts_own() -> None:
    network = running_loop().network
    with network.host(BETA):
        await asyncio.start_server(echo, "127.0.0.1", 80)
        assert await ask_once("localhost", 80) == b"?"
    for address in ("127.0.0.1", BETA):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, 80)


@virtual_time()
async def test_a_server_on_all_addresses_has_one_port_for_both_families() -> None:
    server = await asyncio.start_server(echo, None, 0)
    first, second = (listener.getsockname() for listener in server.sockets)
    assert first[1] == second[1]
    assert await ask_once("127.0.0.1", first[1]) == b"?"
    assert await ask_once("::1", first[1]) == b"?"


@virtual_time()
async def test_a_host_binds_only_its_own_addresses() -> None:
    with pytest.raises(OSError, match="cannot bind"):
        await asyncio.start_server(echo, BETA, 80)


@virtual_time()
async def test_an_address_without_a_host_has_no_route() -> None:
    with pytest.raises(OSError, match="No route to host"):
        await asyncio.open_connection("10.9.9.9", 80)


@virtual_time()
async def test_names_resolve_only_if_given() -> None:
    network = running_loop().network
    await serve()
    with pytest.raises(socket.gaierror):
        await asyncio.open_connection("orders.internal", 80)
    network.name("orders.internal", BETA)
    assert await ask_once("orders.internal", 80) == b"?"


@virtual_time()
async def test_a_link_is_as_slow_as_it_is_told() -> None:
    network = running_loop().network
    await serve()
    for a, b in ((BETA, "127.0.0.1"), ("127.0.0.1", BETA)):
        network.link(a, b).latency_s = (2.0, 2.0)
    before = virtual_now()
    async with connected() as stream:
        assert virtual_now() == before + 4
        await ask(stream)
        assert virtual_now() == before + 8


@virtual_time(seed=5)
async def test_streams_arrive_cut_differently_from_how_they_were_written() -> None:
    sizes: list[int] = []

    class Measure(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            sizes.append(len(data))

    loop = running_loop()
    server = await loop.create_server(Measure, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    for _ in range(200):
        transport.write(b"x" * 10)
        await asyncio.sleep(0.0005)
    await asyncio.sleep(1)
    assert sum(sizes) == 2_000
    assert min(sizes) < 10 < max(sizes)


@virtual_time()
async def test_a_cut_resets_connections_and_refuses_new_ones_until_healed() -> None:
    network = running_loop().network
    await serve()
    async with connected() as stream:
        await ask(stream)
        network.cut("127.0.0.1", BETA)
        with pytest.raises(ConnectionResetError):
            await stream[0].read()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(BETA, 80)
        network.heal("127.0.0.1", BETA)
        assert await ask_once() == b"?"


@virtual_time()
async def test_a_cut_leaves_other_hosts_alone() -> None:
    network = running_loop().network
    await serve()
    async with connected() as stream:
        with network.host(ALPHA):
            async with connected() as other:
                network.cut("127.0.0.1", BETA)
                assert await ask(other) == b"?"
        with pytest.raises(ConnectionResetError):
            await ask(stream)


@virtual_time()
async def test_a_partition_is_silent_and_nothing_is_lost_when_it_heals() -> None:
    network = running_loop().network
    await serve()
    async with connected() as stream:
        network.partition("127.0.0.1", BETA)
        stream[1].write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream[0].read(4), 300)
        asking = asyncio.create_task(ask_once())
        await asyncio.sleep(5)
        assert not asking.done()
        network.heal("127.0.0.1", BETA)
        assert await stream[0].readexactly(4) == b"held"
        assert await asking == b"?"


@virtual_time()
async def test_connecting_into_a_partition_times_out_as_linux_does() -> None:
    network = running_loop().network
    await serve()
    network.partition(BETA)
    before = virtual_now()
    with pytest.raises(TimeoutError):
        await asyncio.open_connection(BETA, 80)
    assert 127 <= virtual_now() - before < 128


@virtual_time()
async def test_a_partition_can_be_one_way() -> None:
    network = running_loop().network
    got: asyncio.Queue[bytes] = asyncio.Queue()

    class Hear(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            got.put_nowait(data)

    loop = running_loop()
    near, _ = await loop.create_datagram_endpoint(Hear, local_addr=("0.0.0.0", 53))
    with network.host(BETA):
        far, _ = await loop.create_datagram_endpoint(Hear, local_addr=(BETA, 53))
    network.partition("127.0.0.1", BETA, one_way=True)
    near.sendto(b"gone", (BETA, 53))
    await asyncio.sleep(1)
    network.heal()
    near.sendto(b"arrived", (BETA, 53))
    assert await got.get() == b"arrived"
    assert got.empty()
    far.close()
    near.close()


@virtual_time()
async def test_a_lossy_link_loses_its_share_of_datagrams() -> None:
    got: list[bytes] = []

    class Hear(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            got.append(data)

    loop = running_loop()
    loop.network.link("127.0.0.1", "127.0.0.1").loss = 0.5
    near, _ = await loop.create_datagram_endpoint(Hear, local_addr=("127.0.0.1", 0))
    for number in range(1_000):
        near.sendto(b"%d" % number, near.get_extra_info("sockname"))
        await asyncio.sleep(0.0002)
    await asyncio.sleep(1)
    assert 400 < len(got) < 600
    assert got != sorted(got, key=int), "datagrams overtake each other"
    near.close()


@virtual_time()
async def test_a_stalled_connection_holds_its_bytes_alone() -> None:
    network = running_loop().network
    await serve()
    async with connected() as held, connected() as other:
        network.stall(held[1].transport)
        held[1].write(b"held")
        await ask(other)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(held[0].read(4), 60)
        network.heal(held[1].transport)
        assert await held[0].readexactly(4) == b"held"


@virtual_time()
async def test_a_stalled_host_runs_nothing_while_its_kernel_goes_on() -> None:
    network, ticks = running_loop().network, []

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append(virtual_now())

    await serve()
    with network.host(BETA):
        ticking = asyncio.create_task(tick())
    await asyncio.sleep(10.5)
    assert len(ticks) == 10
    network.stall(BETA)
    async with connected() as stream:
        stream[1].write(b"anybody?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream[0].read(1), 60)
        assert len(ticks) == 10
        network.heal(BETA)
        assert await stream[0].readexactly(8) == b"anybody?"
        await asyncio.sleep(1.5)
        assert len(ticks) == 12
        assert ticks[10] - ticks[9] > 60
        ticking.cancel()


@virtual_time()
async def test_a_stalled_host_stops_connecting_clients_when_its_backlog_is_full() -> None:
    network = running_loop().network
    with network.host(BETA):
        await asyncio.start_server(echo, BETA, 80, backlog=2)
    network.stall(BETA)
    async with connected(), connected():
        third = asyncio.create_task(ask_once())
        await asyncio.sleep(60)
        assert len(network.streams) == 4, "two connections, and no third"
        network.heal(BETA)
        assert await third == b"?"


@virtual_time()
async def test_a_stalled_host_sends_back_pressure() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    network = running_loop().network
    with network.host(BETA):
        await asyncio.start_server(swallow, BETA, 80)
    async with connected() as (_, writer):
        network.stall(BETA)
        writer.write(b"x" * 1_000_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 60)
        assert writer.transport.get_write_buffer_size() > 900_000
        network.heal(BETA)
        await writer.drain()


@virtual_time()
async def test_nobody_can_stall_or_crash_the_host_that_would_have_to_heal_it() -> None:
    network = running_loop().network
    with pytest.raises(ValueError, match="never wake up"):
        network.stall("127.0.0.1")
    with network.host(BETA), pytest.raises(ValueError, match="runs the caller"):
        network.crash(BETA)
    with pytest.raises(ValueError, match=r"no code runs on 10\.7\.7\.7"):
        network.stall("10.7.7.7")


@virtual_time()
async def test_a_crashed_host_never_runs_again_and_its_sockets_close() -> None:
    network, ticks = running_loop().network, []

    async def tick() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                ticks.append(1)
        finally:
            raise ValueError("the dead do not complain")

    await serve()
    with network.host(BETA):
        ticking = asyncio.create_task(tick())
    async with connected() as stream:
        await ask(stream)
        await asyncio.sleep(5.5)
        network.crash(BETA)
        assert await stream[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(BETA, 80)
        await asyncio.sleep(60)
        network.heal()
        await asyncio.sleep(60)
        assert len(ticks) == 5
        assert not ticking.done()


@virtual_time()
async def test_a_crashed_host_starts_again_at_its_address() -> None:
    network = running_loop().network
    await serve()
    network.crash(BETA)
    await serve()
    assert await ask_once() == b"?"


@virtual_time()
async def test_a_crash_with_unread_input_is_a_reset() -> None:
    network = running_loop().network
    await serve()
    async with connected() as stream:
        network.stall(BETA)
        stream[1].write(b"never read")
        await asyncio.sleep(1)
        network.crash(BETA)
        with pytest.raises(ConnectionResetError):
            await stream[0].read()


@virtual_time()
async def test_a_refused_port_refuses_until_healed_and_keeps_its_connections() -> None:
    network = running_loop().network
    await serve()
    async with connected() as stream:
        network.refuse(80)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(BETA, 80)
        assert await ask(stream) == b"?"
        network.heal(80)
        assert await ask_once() == b"?"


@virtual_time()
async def test_reset_all_resets_the_connections_of_one_port() -> None:
    network = running_loop().network
    await serve(BETA, 80)
    await serve(BETA, 81)
    async with connected(BETA, 80) as one, connected(BETA, 81) as other:
        await ask(one)
        network.reset_all(80)
        with pytest.raises(ConnectionResetError):
            await one[0].read()
        assert await ask(other) == b"?"


@virtual_time()
async def test_cancelling_a_connect_leaves_no_connection_behind() -> None:
    loop, accepted, lost = running_loop(), [], []

    class Count(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            lost.append(exc)

    await loop.create_server(Count, "127.0.0.1", 80)
    for attempt in range(50):
        connecting = asyncio.create_task(loop.create_connection(Count, "127.0.0.1", 80))
        await asyncio.sleep(attempt * 0.00005)
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            transport, _ = await connecting
            transport.close()
    await asyncio.sleep(10)
    assert len(accepted) == len(lost) > 10
    assert loop.network.streams == {}


@virtual_time()
async def test_closed_connections_leave_nothing_in_the_network() -> None:
    network = running_loop().network
    server = await serve()
    for _ in range(10):
        async with connected() as stream:
            await ask(stream, b"x" * 100_000)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(1)
    assert network.streams == {}
    assert network._listeners == {}


@virtual_time()
async def test_wait_closed_waits_for_the_last_connection() -> None:
    server = await serve()
    async with connected() as stream:
        await ask(stream)
        server.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 60)
        stream[1].close()
        await server.wait_closed()


def test_waiting_for_a_stalled_host_is_a_deadlock_that_names_it() -> None:
    async def main() -> None:
        network = running_loop().network
        await serve()
        async with connected() as stream:
            network.stall(BETA)
            await ask(stream)

    with pytest.raises(DeadlockError, match=f"frozen hosts: {BETA}"):
        run_virtual(main())
