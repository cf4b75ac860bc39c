"""A second try beside a slow one: the first answer counts, the other try leaves nothing behind, it has its price."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.mesh.testing import running_loop, virtual_time
from homeport.sidecar import Budget, Hedging, Observing, Retries, ServiceSettings, Sidecar, Timeouts
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.upstream import Cluster
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound
from tests.sidecar.conftest import SEED, Net, Raw

if TYPE_CHECKING:
    from tests.conftest import Eventually

_SOON = Hedging(delay_s=0.02)


class Slow:
    """An upstream that answers when it is let to, and notes whose connections ended before that."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0
        self.dropped = 0
        self.go_on = asyncio.Event()

    async def script(self, raw: Raw) -> None:
        while True:
            await raw.head()
            self.asked += 1
            ended = asyncio.create_task(raw.reader.read(1))
            going = asyncio.create_task(self.go_on.wait())
            await asyncio.wait({ended, going}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, going):
                task.cancel()
            if not self.go_on.is_set():
                self.dropped += 1
                return
            await asyncio.gather(ended, return_exceptions=True)
            raw.send(self.answer)


def cluster_of(sidecar: Sidecar) -> Cluster:
    assert sidecar.outbound is not None
    return sidecar.outbound.clusters["orders"]


async def at_rest(sidecar: Sidecar, eventually: Eventually) -> None:
    """Nothing is counted that is not there any more."""
    cluster = cluster_of(sidecar)
    circuit = cluster.circuit
    assert circuit is not None
    await eventually(lambda: (circuit.requests, circuit.pending, circuit.retries, cluster.active) == (0, 0, 0, 0))


async def test_the_second_host_answers_where_the_first_is_slow(
    net: Net, eventually: Eventually, tmp_path: Path
) -> None:
    slow = Slow(net.ok(b"slow"))
    fast = await net.answering(net.ok(b"fast"))
    log = tmp_path / "log"
    sidecar = await net.proxy_to(
        await net.upstream(slow.script),
        fast,
        settings=ServiceSettings(hedging=_SOON),
        observing=Observing(access_log=str(log)),
    )
    while not slow.asked:
        assert (await net.ask(sidecar, net.get())).endswith(b"fast")
    await eventually(lambda: slow.dropped == slow.asked)  # the loser's connection is closed
    cluster = cluster_of(sidecar)
    assert (cluster.hedges, cluster.hedges_won) == (slow.asked, slow.asked)
    assert cluster.retries == cluster.hedges
    await at_rest(sidecar, eventually)
    await eventually(lambda: log.exists() and b'"HG"' in log.read_bytes())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["upstream"] for line in lines} == {fast.address}, "the log names who has answered"
    assert {line["status"] for line in lines} == {200}


async def test_the_first_host_may_still_be_the_first_to_answer(net: Net, eventually: Eventually) -> None:
    one, two = Slow(net.ok(b"one")), Slow(net.ok(b"two"))
    hosts = [await net.upstream(one.script), await net.upstream(two.script)]
    sidecar = await net.proxy_to(*hosts, settings=ServiceSettings(hedging=_SOON))
    client = await net.dial(sidecar)
    client.send(net.get())
    await eventually(lambda: one.asked or two.asked)
    first, second = (one, two) if one.asked else (two, one)
    await eventually(lambda: second.asked)
    first.go_on.set()
    assert (await client.until_end()).endswith(first.answer[-3:])
    await eventually(lambda: second.dropped == 1)
    cluster = cluster_of(sidecar)
    assert (cluster.hedges, cluster.hedges_won) == (1, 0)
    await at_rest(sidecar, eventually)


async def test_a_hedge_that_fails_leaves_the_first_try_alone(net: Net, eventually: Eventually) -> None:
    slow = Slow(net.ok(b"slow"))
    sick = await net.answering(net.ok(b"sick", status=b"503 Service Unavailable"))
    slow_host = await net.upstream(slow.script)
    settings = ServiceSettings(hedging=_SOON, retries=Retries(retries_max=1), outliers=None)
    net.registrar.feed("orders").say(slow_host.instance())
    sidecar = await net.sidecar(settings=settings)
    client = await net.dial(sidecar)
    client.send(net.get())
    net.registrar.feed("orders").say(slow_host.instance(), sick.instance())
    await eventually(lambda: sick.heads)
    slow.go_on.set()
    assert (await client.until_end()).endswith(b"slow")
    await at_rest(sidecar, eventually)


async def test_when_the_first_try_fails_the_hedge_is_what_is_left(net: Net, eventually: Eventually) -> None:
    slow = Slow(net.ok(b"hedge"))
    hedge_host = await net.upstream(slow.script)
    reset = asyncio.Event()

    async def breaks(raw: Raw) -> None:
        await raw.head()
        net.registrar.feed("orders").say(first.instance(), hedge_host.instance())
        await reset.wait()
        raw.reset()

    first = await net.upstream(breaks)
    settings = ServiceSettings(hedging=_SOON, retries=Retries(retries_max=1))
    sidecar = await net.proxy_to(first, settings=settings)
    client = await net.dial(sidecar)
    client.send(net.get())
    await eventually(lambda: slow.asked)
    reset.set()
    (endpoint, _) = cluster_of(sidecar).endpoints.values()
    await eventually(lambda: endpoint.active == 0)
    assert first.connections == 1, "no further retry beside it"
    slow.go_on.set()
    assert (await client.until_end()).endswith(b"hedge")
    await at_rest(sidecar, eventually)


async def test_when_both_fail_there_is_one_answer(net: Net, eventually: Eventually) -> None:
    async def never(raw: Raw) -> None:
        await raw.until_end()

    hosts = [await net.upstream(never) for _ in range(3)]
    settings = ServiceSettings(hedging=_SOON, retries=Retries(retries_max=1))
    sidecar = await net.proxy_to(*hosts, settings=settings, timeouts=Timeouts(first_byte_s=0.3))
    for _ in range(3):
        assert (await net.ask(sidecar, net.get())).startswith(b"HTTP/1.1 504 ")
    assert sum(host.connections for host in hosts) == 6
    await at_rest(sidecar, eventually)


async def test_a_client_that_leaves_ends_both_tries(net: Net, eventually: Eventually) -> None:
    one, two = Slow(b""), Slow(b"")
    hosts = [await net.upstream(one.script), await net.upstream(two.script)]
    sidecar = await net.proxy_to(*hosts, settings=ServiceSettings(hedging=_SOON))
    client = await net.dial(sidecar)
    client.send(net.get())
    await eventually(lambda: one.asked and two.asked)
    assert sidecar.outbound is not None
    for connection in list(sidecar.outbound.connections):
        connection.transport.abort()
    await eventually(lambda: one.dropped and two.dropped)
    await at_rest(sidecar, eventually)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("POST", ServiceSettings(hedging=_SOON)),
        ("GET", ServiceSettings()),
        ("GET", ServiceSettings(hedging=_SOON, retries=Retries(budget=Budget(ratio=0.001, reserve_per_s=0.0)))),
    ],
)
async def test_no_hedge_without_being_safe_asked_for_and_paid(
    net: Net, method: str, settings: ServiceSettings, eventually: Eventually
) -> None:
    one, two = Slow(net.ok(b"one")), Slow(net.ok(b"two"))
    hosts = [await net.upstream(one.script), await net.upstream(two.script)]
    sidecar = await net.proxy_to(*hosts, settings=settings)
    client = await net.dial(sidecar)
    client.send(net.get(method=method))
    await eventually(lambda: one.asked + two.asked)
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(5 * _SOON.delay_s, passed.set)
    await passed.wait()
    assert one.asked + two.asked == 1
    assert cluster_of(sidecar).hedges == 0
    one.go_on.set()
    two.go_on.set()
    await client.until_end()


async def test_a_body_is_sent_to_both(net: Net, eventually: Eventually) -> None:
    bodies: list[bytes] = []

    async def script(raw: Raw) -> None:
        await raw.head()
        bodies.append(await raw.exactly(5))
        if len(bodies) == 2:
            raw.send(net.ok(b"both"))
        await raw.until_end()

    hosts = [await net.upstream(script), await net.upstream(script)]
    sidecar = await net.proxy_to(*hosts, settings=ServiceSettings(hedging=_SOON))
    client = await net.dial(sidecar)
    client.send(b"PUT / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: 5\r\n\r\nab")
    await eventually(lambda: any(host.connections for host in hosts))
    client.send(b"cde")
    assert (await client.until_end()).endswith(b"both")
    assert bodies == [b"abcde", b"abcde"]
    await at_rest(sidecar, eventually)


def test_what_hedging_may_be_is_told() -> None:
    with pytest.raises(InvalidArgument, match=r"hedging\.delay_s is 0\.0; allowed: 0\.001 to 60"):
        Hedging(delay_s=0.0)
    with pytest.raises(InvalidArgument, match="a hedge is a retry"):
        ServiceSettings(hedging=_SOON, retries=None)


@virtual_time(seed=SEED)
async def test_a_hedge_is_sent_when_its_time_has_come_and_not_before() -> None:
    loop = running_loop()
    asked_s: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked_s.append(loop.time())
        if len(asked_s) > 1:
            writer.write(Net.ok(b"second"))
        await reader.read()
        writer.close()

    addresses = ["10.0.0.1", "10.0.0.2"]
    servers: list[asyncio.Server] = []
    for address in addresses:
        with loop.network.host(address):
            servers.append(await asyncio.start_server(serve, address, 80))
    static = {"orders": [f"{address}:80" for address in addresses]}
    settings = ServiceSettings(hedging=Hedging(delay_s=0.75))
    outbound = Outbound(loop, random.Random(SEED), "me", None, Options(static=static, settings=settings))
    servers.append(await loop.create_server(lambda: Downstream(outbound), "127.0.0.1", 15_001))
    reader, writer = await asyncio.open_connection("127.0.0.1", 15_001)
    writer.write(Net.get())
    assert (await reader.read()).endswith(b"second")
    assert 0.75 <= asked_s[1] - asked_s[0] < 0.76
    writer.close()
    outbound.close()
    for server in servers:
        server.close()
