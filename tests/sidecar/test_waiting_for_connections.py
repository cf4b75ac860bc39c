"""Where no more connections may be opened, requests wait for one: in turn, not too many, and not for too long."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from homeport.client.core.balancing import Balancing, HashOn
from homeport.sidecar import Circuit, ServiceSettings, Sidecar, Timeouts
from homeport.sidecar.core.circuit import CircuitBreaker
from tests.conftest import Eventually
from tests.sidecar.conftest import PATIENCE_S, Net, Raw, Upstream

PATIENT = Timeouts(connect_s=PATIENCE_S)


class Gate:
    """An upstream that answers each request with its path, once it is let to."""

    def __init__(self, name: bytes = b"") -> None:
        self.name = name
        self.asked: list[bytes] = []
        self.open = asyncio.Semaphore(0)

    async def script(self, raw: Raw) -> None:
        while True:
            head = await raw.head()
            path = head.split(b" ", 2)[1]
            self.asked.append(path)
            await self.open.acquire()
            raw.send(Net.ok(self.name + path))


def circuit_of(sidecar: Sidecar) -> CircuitBreaker:
    assert sidecar.outbound is not None
    circuit = sidecar.outbound.clusters["orders"].circuit
    assert circuit is not None
    return circuit


def limited(connections: int = 1, pending: int = 100) -> ServiceSettings:
    return ServiceSettings(circuit=Circuit(connections_max=connections, pending_max=pending), outliers=None)


async def asking(net: Net, sidecar: Sidecar, path: str, method: str = "GET", extra: str = "") -> Raw:
    client = await net.dial(sidecar)
    client.send(net.get(path, method=method, extra=extra))
    return client


Settled = Callable[[], Awaitable[None]]


def settled(sidecar: Sidecar, eventually: Eventually) -> Settled:
    circuit = circuit_of(sidecar)

    async def wait() -> None:
        assert sidecar.outbound is not None
        cluster = sidecar.outbound.clusters["orders"]
        await eventually(lambda: (circuit.requests, circuit.pending, circuit.retries, cluster.active) == (0, 0, 0, 0))
        assert not circuit.waiting

    return wait


async def test_requests_wait_for_the_only_connection_and_get_it_in_turn(net: Net, eventually: Eventually) -> None:
    gate = Gate()
    host = await net.upstream(gate.script)
    sidecar = await net.proxy_to(host, settings=limited(), timeouts=PATIENT)
    clients = []
    for number in range(5):
        clients.append(await asking(net, sidecar, f"/{number}", "GET" if number % 2 else "POST"))
        await eventually(lambda: gate.asked and circuit_of(sidecar).pending == number)  # noqa: B023  # awaited here
    assert gate.asked == [b"/0"]
    for number, client in enumerate(clients):
        gate.open.release()
        assert (await client.until_end()).endswith(b"/%d" % number)
    assert gate.asked == [b"/%d" % number for number in range(5)]
    assert host.connections == 1
    await settled(sidecar, eventually)()


async def test_when_too_many_wait_the_next_one_is_503_uo_at_once(net: Net, eventually: Eventually) -> None:
    gate = Gate()
    sidecar = await net.proxy_to(await net.upstream(gate.script), settings=limited(pending=1), timeouts=PATIENT)
    first = await asking(net, sidecar, "/first")
    await eventually(lambda: gate.asked)
    second = await asking(net, sidecar, "/second")
    await eventually(lambda: circuit_of(sidecar).waiting)
    answer = await net.ask(sidecar, net.get("/third"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: UO\r\n" in answer
    assert circuit_of(sidecar).overflows == 1
    gate.open.release()
    gate.open.release()
    assert (await first.until_end()).endswith(b"/first")
    assert (await second.until_end()).endswith(b"/second")
    await settled(sidecar, eventually)()


async def test_who_waits_for_too_long_is_503_uo(net: Net, eventually: Eventually) -> None:
    gate = Gate()
    sidecar = await net.proxy_to(await net.upstream(gate.script), settings=limited(), timeouts=Timeouts(connect_s=1.0))
    first = await asking(net, sidecar, "/first")
    await eventually(lambda: gate.asked)
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: UO\r\n" in answer
    assert b"free" in answer
    gate.open.release()
    assert (await first.until_end()).endswith(b"/first")
    await settled(sidecar, eventually)()


async def test_a_client_that_leaves_waits_no_longer(net: Net, eventually: Eventually) -> None:
    gate = Gate()
    sidecar = await net.proxy_to(await net.upstream(gate.script), settings=limited(), timeouts=PATIENT)
    first = await asking(net, sidecar, "/first")
    await eventually(lambda: gate.asked)
    leaving = await asking(net, sidecar, "/leaving")
    last = await asking(net, sidecar, "/last")
    await eventually(lambda: len(circuit_of(sidecar).waiting) == 2)
    leaving.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leaving.reset()
    await eventually(lambda: len(circuit_of(sidecar).waiting) == 1)
    gate.open.release()
    gate.open.release()
    await first.until_end()
    assert (await last.until_end()).endswith(b"/last")
    assert b"/leaving" not in gate.asked
    await settled(sidecar, eventually)()


async def test_a_connection_that_breaks_makes_room_for_who_waits(net: Net, eventually: Eventually) -> None:
    asked: list[bytes] = []
    broken = asyncio.Event()

    async def script(raw: Raw) -> None:
        asked.append(await raw.head())
        if len(asked) == 1:
            await broken.wait()
            raw.reset()
        else:
            raw.send(net.ok())

    sidecar = await net.proxy_to(await net.upstream(script), settings=limited(), timeouts=PATIENT)
    first = await asking(net, sidecar, "/first", "POST")
    await eventually(lambda: asked)
    second = await asking(net, sidecar, "/second")
    await eventually(lambda: circuit_of(sidecar).waiting)
    broken.set()
    assert (await first.until_end()).startswith(b"HTTP/1.1 502 ")
    assert (await second.until_end()).endswith(b"hi")
    await settled(sidecar, eventually)()


async def two_hosts(net: Net) -> tuple[Gate, Gate, list[Upstream]]:
    one, two = Gate(b"one"), Gate(b"two")
    for gate in (one, two):
        for _ in range(100):
            gate.open.release()
    return one, two, [await net.upstream(one.script), await net.upstream(two.script)]


async def test_an_idle_connection_of_another_host_is_used_when_no_other_may_be_opened(net: Net) -> None:
    one, two, hosts = await two_hosts(net)
    sidecar = await net.proxy_to(*hosts, settings=limited(), timeouts=PATIENT)
    for number in range(20):
        assert (await net.ask(sidecar, net.get(f"/{number}"))).endswith(b"/%d" % number)
    assert sum(host.connections for host in hosts) == 1
    assert len(one.asked) + len(two.asked) == 20


async def test_a_hashed_request_gets_its_own_host_even_if_another_connection_has_to_go(
    net: Net, eventually: Eventually
) -> None:
    _one, _two, hosts = await two_hosts(net)
    balancing = Balancing(policy="maglev", hash_on=HashOn(header="x-user"))
    settings = ServiceSettings(circuit=Circuit(connections_max=1), balancing=balancing)
    sidecar = await net.proxy_to(*hosts, settings=settings, timeouts=PATIENT)
    where = set()
    for user in range(12):
        extra = f"x-user: {user}\r\n"
        answers = {(await net.ask(sidecar, net.get(extra=extra)))[-4:] for _ in range(2)}
        assert len(answers) == 1, "a user has one host"
        where |= answers
    assert len(where) == 2
    assert circuit_of(sidecar).connections <= 1
    await settled(sidecar, eventually)()


async def test_a_retry_gets_the_room_of_an_idle_connection(net: Net, eventually: Eventually) -> None:
    sick = [await net.answering(net.ok(b"sick", status=b"503 Service Unavailable")) for _ in range(2)]
    sidecar = await net.proxy_to(*sick, settings=limited(), timeouts=PATIENT)
    assert (await net.ask(sidecar, net.get())).endswith(b"sick")
    assert all(host.heads for host in sick)
    await settled(sidecar, eventually)()


async def test_a_retry_that_finds_no_connection_gives_the_answer_that_there_was(
    net: Net, eventually: Eventually
) -> None:
    gate = Gate()
    asked: list[bytes] = []

    async def sick_once(raw: Raw) -> None:
        asked.append(await raw.head())
        await gate.open.acquire()
        raw.send(net.ok(b"sick", status=b"503 Service Unavailable"))
        await gate.script(raw)

    first_host, other = await net.upstream(sick_once), await net.upstream(gate.script)
    sidecar = await net.proxy_to(first_host, settings=limited(), timeouts=Timeouts(connect_s=2.0))
    first = await asking(net, sidecar, "/first")
    await eventually(lambda: asked)
    net.registrar.feed("orders").say(first_host.instance(), other.instance())
    second = await asking(net, sidecar, "/second")
    await eventually(lambda: circuit_of(sidecar).waiting)
    gate.open.release()  # the second gets the connection, and nothing is left for a retry of the first
    assert (await first.until_end()).endswith(b"sick")
    gate.open.release()
    assert (await second.until_end()).endswith(b"/second")
    assert other.connections == 0
    await settled(sidecar, eventually)()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_many_clients_share_few_connections(net: Net, method: str, eventually: Eventually) -> None:
    one, two, hosts = await two_hosts(net)
    sidecar = await net.proxy_to(*hosts, settings=limited(connections=3), timeouts=PATIENT)
    answers = await asyncio.gather(*(net.ask(sidecar, net.get(f"/{n}", method=method)) for n in range(60)))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert len(one.asked) + len(two.asked) == 60
    assert circuit_of(sidecar).connections <= 3
    await settled(sidecar, eventually)()
