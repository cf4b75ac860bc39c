"""Names of others: passed on, tried again, shared, cut to size, never in a loop, and refused where nobody is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.mesh.testing import virtual_time
from homeport.registry import DnsSettings, Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.dns.conftest import MakeDns, Texts

Answer = Callable[[dns.message.Message], dns.message.Message | None]


def known(query: dns.message.Message, addresses: int = 1) -> dns.message.Message:
    """An answer with so many addresses."""
    answer = dns.message.make_response(query, recursion_available=True)
    texts = [f"192.0.{number >> 8}.{number & 255}" for number in range(addresses)]
    answer.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *texts)]
    return answer


class Upstream(asyncio.DatagramProtocol):
    """A recursor that says what a function says, and remembers what it was asked."""

    def __init__(self, say: Answer) -> None:
        self.say = say
        self.asked: list[dns.message.Message] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        self.asked.append(query)
        answer = self.say(query)
        if answer is not None:
            wire = answer.to_wire(max_size=65_535)
            if len(wire) > 1232:
                answer.answer = []
                answer.flags |= dns.flags.TC
                wire = answer.to_wire()
            self.transport.sendto(wire, addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        self.asked.append(query)
        answer = self.say(query)
        assert answer is not None
        wire = answer.to_wire(max_size=65_535)
        writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def upstream(say: Answer) -> AsyncIterator[tuple[Upstream, str]]:
    it = Upstream(say)
    server = await asyncio.start_server(it.stream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: it, local_addr=("127.0.0.1", port))
    yield it, f"127.0.0.1:{port}"
    transport.close()
    server.close()
    await server.wait_closed()


async def test_other_names_are_asked_of_the_recursor_in_the_askers_case(make_dns: MakeDns, rows: Texts) -> None:
    async with upstream(known) as (it, at), make_dns(DnsSettings(recursors=(at,))) as dns_:
        answer = await dns_("Host.Example.COM", edns=0)
        assert rows(answer) == ["Host.Example.COM. A 192.0.0.0"]
        assert answer.flags & dns.flags.RA
        assert not answer.flags & dns.flags.AA
        assert answer.edns == 0
        assert (await dns_("host.example.com")).edns == -1
        assert (await dns_("1.0.0.10.in-addr.arpa", "PTR")).flags & dns.flags.RA
        before = len(it.asked)
        await dns_.register("orders", "a", "10.0.0.1")
        assert (await dns_("orders.service.homeport")).flags & dns.flags.RA
        assert (await dns_("nothing.service.homeport")).rcode() == dns.rcode.NXDOMAIN
        assert (await dns_("host.example.com", flags=0)).rcode() == dns.rcode.REFUSED, "who wants no recursion"
        assert len(it.asked) == before, "what is ours is never asked of others"


async def test_a_large_answer_comes_whole_over_tcp_and_cut_over_udp(make_dns: MakeDns) -> None:
    async with upstream(lambda query: known(query, 200)) as (_, at), make_dns(DnsSettings(recursors=(at,))) as dns_:
        cut = await dns_("large.example")
        assert cut.flags & dns.flags.TC
        whole = await dns_("large.example", tcp=True)
        assert len(whole.answer[0]) == 200
        assert not whole.flags & dns.flags.TC


async def test_answers_to_something_else_are_not_taken(make_dns: MakeDns, rows: Texts) -> None:
    def forged(query: dns.message.Message) -> dns.message.Message:
        answer = known(query)
        it.transport.sendto(b"garbage", peer[0])
        other = known(dns.message.make_query("other.example", "A", id=query.id))
        it.transport.sendto(other.to_wire(), peer[0])
        wrong = known(query)
        wrong.id ^= 1
        it.transport.sendto(wrong.to_wire(), peer[0])
        return answer

    peer: list[Any] = []
    async with upstream(forged) as (it, at), make_dns(DnsSettings(recursors=(at,))) as dns_:
        receive = it.datagram_received

        def received(data: bytes, addr: Any) -> None:
            peer[:] = [addr]
            receive(data, addr)

        it.datagram_received = received  # type: ignore[method-assign]
        assert rows(await dns_("host.example")) == ["host.example. A 192.0.0.0"]


async def test_instances_at_names_are_aliases_followed_to_their_addresses(make_dns: MakeDns, rows: Texts) -> None:
    async with upstream(known) as (_, at), make_dns(DnsSettings(recursors=(at,))) as dns_:
        await dns_.register("db", "a", "db.example.com")
        name = "db.service.homeport."
        assert rows(await dns_(name)) == ["db.example.com. A 192.0.0.0", f"{name} CNAME db.example.com."]
        assert rows(await dns_(name, "CNAME")) == [f"{name} CNAME db.example.com."]
    async with make_dns() as dns_:
        await dns_.register("db", "a", "db.example.com")
        await dns_.register("near", "b", "orders.service.homeport")
        await dns_.register("orders", "c", "10.0.0.1")
        await dns_.register("loop", "d", "loop.service.homeport")
        assert rows(await dns_(name)) == [f"{name} CNAME db.example.com."], "for the asker's resolver to follow"
        near = "near.service.homeport."
        followed = await dns_(near)
        assert rows(followed) == [f"{near} CNAME orders.service.homeport.", "orders.service.homeport. A 10.0.0.1"]
        assert followed.flags & dns.flags.AA
        assert (await dns_("loop.service.homeport")).rcode() == dns.rcode.SERVFAIL
        await dns_.register("db", "e", "10.0.0.5")
        assert rows(await dns_(name)) == [f"{name} A 10.0.0.5"], "a name with addresses is no alias"


@virtual_time()
async def test_without_a_recursor_that_answers_the_next_is_asked_and_then_it_is_a_failure() -> None:
    loop = asyncio.get_running_loop()
    silent, answering = Upstream(lambda _: None), Upstream(known)
    await loop.create_datagram_endpoint(lambda: silent, local_addr=("127.0.0.1", 5301))
    transport, _ = await loop.create_datagram_endpoint(lambda: answering, local_addr=("127.0.0.1", 5302))
    settings = DnsSettings(recursors=("127.0.0.1:5301", "127.0.0.1:5302"))
    async with Registry(node="home", dns=settings) as registry:
        await registry.serve(dns="127.0.0.1:8600")
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _addr: object) -> None:
                answers.put_nowait(data)

        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", 8600))
        for number in range(20):
            client.sendto(dns.message.make_query("host.example", "A", id=number).to_wire())
        found = [dns.message.from_wire(await answers.get()) for _ in range(20)]
        assert sorted(answer.id for answer in found) == list(range(20))
        assert all(answer.answer for answer in found)
        assert (len(silent.asked), len(answering.asked)) == (1, 1), "twenty askers, one question"
        transport.close()
        began = loop.time()
        client.sendto(dns.message.make_query("other.example", "A").to_wire())
        assert dns.message.from_wire(await answers.get()).rcode() == dns.rcode.SERVFAIL
        assert loop.time() - began <= 8.1
        client.close()


@virtual_time()
async def test_a_loop_of_recursors_ends_in_a_failure_and_few_questions() -> None:
    loop = asyncio.get_running_loop()
    async with (
        Registry(node="a", dns=DnsSettings(recursors=("127.0.0.1:8602",))) as one,
        Registry(node="b", dns=DnsSettings(recursors=("127.0.0.1:8601",))) as other,
    ):
        await one.serve(dns="127.0.0.1:8601")
        await other.serve(dns="127.0.0.1:8602")
        answer: asyncio.Future[bytes] = loop.create_future()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _addr: object) -> None:
                answer.set_result(data)

        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", 8601))
        client.sendto(dns.message.make_query("host.example", "A").to_wire())
        assert dns.message.from_wire(await answer).rcode() == dns.rcode.SERVFAIL
        for front in (one._dns, other._dns):
            assert front.numbers.forwarded <= 4
        client.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"recursors": ("resolver.example",)},
        {"recursors": ("127.0.0.1:0",)},
        {"domains": ()},
        {"domains": ("Home.Port",)},
        {"domains": ("a..b",)},
        {"domains": ("x" * 64,)},
        {"service_ttl_s": {"a*b": 1}},
        {"service_ttl_s": {"a": -1}},
        {"udp_bytes_max": 100},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="allowed"):
        DnsSettings(**wrong)
