"""DNS over TCP: many questions at once, slow and greedy clients, and limits that hurt nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import dns.message
import pytest

from homeport.mesh.testing import virtual_time
from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.dns.conftest import Asker, MakeDns

Eventually = Callable[..., Awaitable[None]]
NAME = "orders.service.homeport"


def framed(number: int, name: str = NAME, kind: str = "A") -> bytes:
    wire = dns.message.make_query(name, kind, id=number).to_wire()
    return len(wire).to_bytes(2, "big") + wire


async def read(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(30):
        return dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))


async def test_questions_may_follow_each_other_without_waiting_and_in_any_pieces(dns_: Asker) -> None:
    await dns_.register("orders", "a", "10.0.0.1")
    reader, writer = await asyncio.open_connection(dns_.host, dns_.port)
    data = b"".join(framed(number) for number in range(500))
    writer.write(data)
    assert [(await read(reader)).id for _ in range(500)] == list(range(500))
    for at in range(0, 400, 3):
        writer.write(data[at : at + 3])
        await asyncio.sleep(0)
    writer.write(data[402 : len(framed(0)) * 20])
    writer.write_eof()
    assert [(await read(reader)).id for _ in range(20)] == list(range(20))
    assert await reader.read() == b"", "and what was asked before the end was answered before the end"
    writer.close()


async def test_a_client_that_does_not_read_is_not_read_from(make_dns: MakeDns, eventually: Eventually) -> None:
    async with make_dns() as dns_:
        for number in range(400):
            await dns_.register("orders", f"o{number}", f"10.0.1.{number % 250}", 8000 + number)
        reader, writer = await asyncio.open_connection(dns_.host, dns_.port)
        asked = 700  # some 17 MB of answers, three times what a system's buffers take
        writer.write(b"".join(framed(number, kind="SRV") for number in range(asked)))
        await eventually(lambda: dns_.front.numbers.answers["tcp", 0] > 10)
        answered = -1
        while answered != dns_.front.numbers.answers["tcp", 0]:
            answered = dns_.front.numbers.answers["tcp", 0]
            assert len((await dns_(NAME)).answer) == 1, "others are answered meanwhile"
        assert answered < asked
        async with asyncio.timeout(60):
            for number in range(asked):
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                assert int.from_bytes(data[:2], "big") == number
        writer.close()


async def test_too_many_connections_are_closed_and_those_there_go_on(make_dns: MakeDns, eventually: Eventually) -> None:
    for limits in ({"connections_max": 3}, {"connections_per_address_max": 3}):
        async with make_dns(**limits) as dns_:
            open_ = [await asyncio.open_connection(dns_.host, dns_.port) for _ in range(3)]
            await eventually(lambda dns_=dns_: dns_.front.numbers.connections == 3)
            reader, writer = await asyncio.open_connection(dns_.host, dns_.port)
            writer.write(framed(1))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await read(reader)
            writer.close()
            open_[0][1].write(framed(7))
            assert (await read(open_[0][0])).id == 7
            open_[1][1].close()
            await eventually(lambda dns_=dns_: dns_.front.numbers.connections == 2)
            for _, each in open_:
                each.close()


async def test_what_is_no_question_ends_the_connection(dns_: Asker) -> None:
    for data in (b"\0\3abc", b"\0\0", framed(1)[:4] + b"\x80" + framed(1)[5:]):  # the last is an answer
        reader, writer = await asyncio.open_connection(dns_.host, dns_.port)
        writer.write(data)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


@virtual_time()
async def test_a_connection_that_asks_nothing_is_closed_in_time() -> None:
    loop = asyncio.get_running_loop()
    async with Registry(node="home") as registry:
        at = (await registry.serve(dns="127.0.0.1:8600")).dns or ""
        host, port = at.split(":")
        for said in (b"", b"\0", framed(1)[:9]):  # nothing, or nothing whole
            reader, writer = await asyncio.open_connection(host, int(port))
            began = loop.time()
            writer.write(said)
            assert await reader.read() == b""
            assert 9.9 < loop.time() - began < 13
            writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in range(5):
            await asyncio.sleep(8)
            writer.write(framed(number))
            assert (await read(reader)).id == number, "and one that asks now and then stays"
        writer.close()


@virtual_time()
async def test_answers_come_over_udp_in_virtual_time_too() -> None:
    loop = asyncio.get_running_loop()
    async with Registry(node="home") as registry:
        at = (await registry.serve(dns="127.0.0.1:8600")).dns or ""
        host, port = at.split(":")
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _addr: object) -> None:
                answers.put_nowait(data)

        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=(host, int(port)))
        transport.sendto(dns.message.make_query("homeport", "SOA", id=3).to_wire())
        assert dns.message.from_wire(await answers.get()).id == 3
        transport.close()
