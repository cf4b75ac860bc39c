"""Plain TCP by service: bytes pass as they are, and a connection that comes to nothing is tried elsewhere."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.sidecar import Circuit, Limits, ServiceSettings, Timeouts
from homeport.sidecar.metrics import metrics
from homeport.sidecar.reports import stats
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw, Upstream

PORT: dict[str, Any] = {"tcp": {"orders": "127.0.0.1:0"}, "outbound": "127.0.0.1:0"}


async def echo(raw: Raw) -> None:
    while data := await raw.reader.read(65_536):
        raw.send(data)
        await raw.writer.drain()


async def named(net: Net, name: bytes) -> Upstream:
    """An instance that says its name first, and echoes then."""

    async def script(raw: Raw) -> None:
        raw.send(name)
        await echo(raw)

    return await net.upstream(script)


async def test_bytes_pass_both_ways_whatever_they_are(net: Net) -> None:
    sidecar = await net.proxy_to(await net.upstream(echo), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    seen = random.Random(net.seed).randbytes(3_000_000)
    sending = asyncio.ensure_future(_send_all(raw, seen))
    assert await raw.exactly(len(seen)) == seen
    await sending


async def _send_all(raw: Raw, data: bytes) -> None:
    raw.send(data)
    await raw.writer.drain()


async def test_a_client_that_has_sent_all_still_gets_the_answer(net: Net) -> None:
    async def counts(raw: Raw) -> None:
        raw.send(b"%d" % len(await raw.until_end()))

    sidecar = await net.proxy_to(await net.upstream(counts), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    raw.send(b"x" * 100_000)
    raw.writer.write_eof()
    assert await raw.until_end() == b"100000"


async def test_an_instance_that_has_said_all_still_hears_the_client(net: Net) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def greets(raw: Raw) -> None:
        raw.writer.write_eof()
        heard.put_nowait(await raw.until_end())

    sidecar = await net.proxy_to(await net.upstream(greets), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    assert await raw.until_end() == b""
    raw.send(b"and yet")
    raw.writer.write_eof()
    async with asyncio.timeout(net.patience_s):
        assert await heard.get() == b"and yet"


async def test_a_connection_that_is_refused_is_made_elsewhere(net: Net, eventually: Eventually) -> None:
    live = await named(net, b"here")
    gone = live.instance().__class__(service="orders", id="gone", address="127.0.0.1", port=free_port())
    net.registrar.feed("orders").say(live.instance(), gone)
    sidecar = await net.sidecar(**PORT)
    for _ in range(20):
        raw = await net.dial(sidecar, "tcp:orders")
        assert await raw.exactly(4) == b"here"
    assert sidecar.outbound is not None
    cluster = sidecar.outbound.clusters["orders"]
    assert cluster.connect_failures == cluster.retries > 0
    assert cluster.active == 20


async def test_a_connection_that_is_reset_before_any_byte_is_made_elsewhere(net: Net) -> None:
    async def resets(raw: Raw) -> None:
        raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.reset()

    sidecar = await net.proxy_to(await net.upstream(resets), await named(net, b"here"), **PORT)
    for _ in range(10):
        assert await (await net.dial(sidecar, "tcp:orders")).exactly(4) == b"here"


async def test_a_connection_that_broke_after_a_byte_is_the_clients_to_repeat(net: Net) -> None:
    async def hangs_up(raw: Raw) -> None:
        await raw.exactly(1)
        raw.reset()

    first, second = await net.upstream(hangs_up), await net.upstream(hangs_up)
    sidecar = await net.proxy_to(first, second, **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    raw.send(b"x")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await raw.exactly(1)
    assert first.connections + second.connections == 1


async def test_without_an_instance_the_connection_ends_and_says_why(net: Net, eventually: Eventually) -> None:
    net.registrar.feed("orders").say()
    sidecar = await net.sidecar(**PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    assert await _read_to_the_end(raw) == b""
    await eventually(lambda: sidecar.tcp[0].flags == {"NR": 1})
    assert b'homeport_tcp_cx_ended_by_total{flag="NR",service="orders"} 1.0' in metrics(sidecar)


async def _read_to_the_end(raw: Raw) -> bytes:
    try:
        return await raw.until_end()
    except ConnectionResetError:
        return b""


async def test_a_connection_waits_until_the_registry_has_spoken(net: Net) -> None:
    sidecar = await net.sidecar(**PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    raw.send(b"early")
    net.registrar.feed("orders").say((await net.upstream(echo)).instance())
    assert await raw.exactly(5) == b"early"


async def test_an_instance_that_drains_keeps_its_connections_and_gets_no_new_ones(net: Net) -> None:
    first, second = await named(net, b"1"), await named(net, b"2")
    sidecar = await net.proxy_to(first, **PORT)
    old = await net.dial(sidecar, "tcp:orders")
    assert await old.exactly(1) == b"1"
    net.registrar.feed("orders").say(first.instance(state="draining"), second.instance())
    for _ in range(5):
        assert await (await net.dial(sidecar, "tcp:orders")).exactly(1) == b"2"
    net.registrar.feed("orders").say(second.instance())
    old.send(b"still here")
    assert await old.exactly(10) == b"still here"


async def test_connections_to_an_instance_that_left_end_when_their_time_is_up(net: Net, eventually: Eventually) -> None:
    first = await named(net, b"1")
    sidecar = await net.proxy_to(first, timeouts=Timeouts(leave_s=0.05), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    assert await raw.exactly(1) == b"1"
    net.registrar.feed("orders").say()
    assert await raw.until_end() == b""
    await eventually(lambda: sidecar.tcp[0].flags == {"LR": 1})


async def test_silence_ends_a_connection(net: Net, eventually: Eventually) -> None:
    sidecar = await net.proxy_to(await net.upstream(echo), timeouts=Timeouts(tunnel_s=0.05), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    assert await raw.until_end() == b""
    await eventually(lambda: sidecar.tcp[0].flags == {"SI": 1})


async def test_who_does_not_read_is_not_written_to_without_end(net: Net, eventually: Eventually) -> None:
    written = 0

    async def pours(raw: Raw) -> None:
        nonlocal written
        while written < 256 * 1024 * 1024:
            raw.send(bytes(65_536))
            await raw.writer.drain()
            written += 65_536

    sidecar = await net.proxy_to(await net.upstream(pours), limits=Limits(buffer_bytes=65_536), **PORT)
    await net.dial(sidecar, "tcp:orders")
    await eventually(lambda: written > 0)
    seen = -1
    while seen != written:  # it has stopped when nothing moves for some turns of the loop
        seen = written
        for _ in range(200):
            await asyncio.sleep(0)
    forward = next(iter(sidecar.tcp[0].connections))
    assert forward.client.transport.get_write_buffer_size() < 1024 * 1024
    assert written < 64 * 1024 * 1024


async def test_a_services_connections_are_limited(net: Net, eventually: Eventually) -> None:
    settings = ServiceSettings(circuit=Circuit(connections_max=2))
    sidecar = await net.proxy_to(await named(net, b"1"), settings=settings, **PORT)
    for _ in range(2):
        assert await (await net.dial(sidecar, "tcp:orders")).exactly(1) == b"1"
    assert await _read_to_the_end(await net.dial(sidecar, "tcp:orders")) == b""
    await eventually(lambda: sidecar.tcp[0].flags == {"UO": 1})


async def test_nothing_is_left_when_clients_are_gone(net: Net, eventually: Eventually) -> None:
    sidecar = await net.proxy_to(await net.upstream(echo), await net.upstream(echo), **PORT)
    chance = random.Random(net.seed)
    for number in range(60):
        raw = await net.dial(sidecar, "tcp:orders")
        if number % 3:
            raw.send(b"x" * chance.randrange(1, 100_000))
        if number % 2:
            raw.reset()
        elif number % 3 == 1:
            await raw.exactly(1)
            raw.writer.close()
        else:
            raw.writer.close()
    assert sidecar.outbound is not None
    cluster = sidecar.outbound.clusters["orders"]
    assert cluster.circuit is not None
    await eventually(lambda: not sidecar.tcp[0].connections)
    assert (cluster.active, cluster.circuit.connections, cluster.circuit.pending) == (0, 0, 0)
    ports: Any = stats(sidecar)["tcp"]
    assert [port["connections_total"] for port in ports] == [60]


async def test_draining_waits_for_connections(net: Net) -> None:
    sidecar = await net.proxy_to(await named(net, b"1"), **PORT)
    raw = await net.dial(sidecar, "tcp:orders")
    await raw.exactly(1)
    assert not await sidecar.drain(0.01)
    draining = asyncio.ensure_future(sidecar.drain(net.patience_s))
    raw.writer.close()
    assert await draining


async def test_a_name_that_no_service_can_have_is_refused_at_the_start(net: Net) -> None:
    with pytest.raises(InvalidArgument, match="cannot be forwarded"):
        await net.sidecar(tcp={"127.0.0.1": "127.0.0.1:0"})
