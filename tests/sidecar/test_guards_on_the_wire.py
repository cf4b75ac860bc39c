"""Budgets, ejection, limits, timeouts and policies as a client of the sidecar meets them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from homeport.client.core.balancing import Balancing, HashOn, Outliers, Subset
from homeport.sidecar import Sidecar, Timeouts
from homeport.sidecar.core.settings import PLAIN, Budget, Circuit, Retries, ServiceSettings
from homeport.sidecar.http1.upstream import Cluster
from tests.sidecar.conftest import Net, Raw, Upstream


def cluster_of(sidecar: Sidecar, service: str = "orders") -> Cluster:
    assert sidecar.outbound is not None
    return sidecar.outbound.clusters[service]


def is_at_rest(sidecar: Sidecar) -> bool:
    """Nothing is counted that is not there any more."""
    cluster = cluster_of(sidecar)
    circuit = cluster.circuit
    assert circuit is not None
    return (circuit.requests, circuit.pending, circuit.retries, cluster.active) == (0, 0, 0, 0)


async def failing(net: Net, status: bytes = b"503 Service Unavailable") -> Upstream:
    return await net.answering(net.ok(b"sick", status=status))


async def silent(net: Net, arrived: asyncio.Event) -> Upstream:
    """An upstream that takes requests and says nothing."""

    async def script(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await raw.until_end()

    return await net.upstream(script)


async def test_an_exhausted_budget_passes_the_answer_on(net: Net) -> None:
    hosts = [await failing(net) for _ in range(3)]
    budget = Budget(ratio=1.0, reserve_per_s=0.0)
    sidecar = await net.proxy_to(*hosts, settings=ServiceSettings(retries=Retries(budget=budget), outliers=None))
    for _ in range(5):
        answer = await net.ask(sidecar, net.get())
        assert answer.endswith(b"sick")
    assert sum(len(host.heads) for host in hosts) == 10  # each request paid for one retry, and no more
    assert is_at_rest(sidecar)


async def test_without_retries_the_first_answer_is_the_answer(net: Net) -> None:
    hosts = [await failing(net) for _ in range(3)]
    sidecar = await net.proxy_to(*hosts, settings=PLAIN)
    assert (await net.ask(sidecar, net.get())).endswith(b"sick")
    assert sum(len(host.heads) for host in hosts) == 1


async def test_only_statuses_that_are_named_are_retried(net: Net) -> None:
    hosts = [await failing(net, b"500 Oops"), await failing(net, b"500 Oops")]
    sidecar = await net.proxy_to(*hosts)
    assert (await net.ask(sidecar, net.get())).startswith(b"HTTP/1.1 500 ")
    assert sum(len(host.heads) for host in hosts) == 1
    patient = await net.sidecar(settings=ServiceSettings(retries=Retries(retries_max=1, statuses=(500,))))
    assert (await net.ask(patient, net.get())).startswith(b"HTTP/1.1 500 ")
    assert sum(len(host.heads) for host in hosts) == 3


async def test_a_host_that_fails_is_left_alone_also_by_posts(net: Net) -> None:
    sick, well = await failing(net, b"500 Oops"), await net.answering(net.ok(b"well"))
    sidecar = await net.proxy_to(sick, well, settings=ServiceSettings(outliers=Outliers(consecutive_5xx=1)))
    while not sick.heads:
        await net.ask(sidecar, net.get(method="POST"))
    for _ in range(20):
        assert (await net.ask(sidecar, net.get(method="POST"))).endswith(b"well")
    assert len(sick.heads) == 1
    cluster = cluster_of(sidecar)
    assert cluster.outliers is not None
    assert cluster.outliers.ejections == 1


async def test_more_requests_than_a_service_may_have_are_503_uo(net: Net) -> None:
    arrived = asyncio.Event()
    sidecar = await net.proxy_to(await silent(net, arrived), settings=ServiceSettings(circuit=Circuit(requests_max=1)))
    first = await net.dial(sidecar)
    first.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: UO\r\n" in answer
    circuit = cluster_of(sidecar).circuit
    assert circuit is not None
    assert (circuit.requests, circuit.overflows) == (1, 1)


async def test_counts_come_back_to_nothing_however_requests_end(net: Net) -> None:
    async def resets(raw: Raw) -> None:
        await raw.head()
        raw.reset()

    hosts = [await net.upstream(resets), await failing(net), await net.answering(net.ok(b"well"))]
    refusing = hosts[0].instance(node="gone")
    sidecar = await net.sidecar(settings=ServiceSettings(outliers=None))
    net.registrar.feed("orders").say(*(host.instance() for host in hosts), refusing)
    for number in range(40):
        await net.ask(sidecar, net.get(method="GET" if number % 2 else "POST"))
    for _ in range(10):
        leaving = await net.dial(sidecar)
        leaving.send(net.get())
        leaving.reset()
    await net.ask(sidecar, net.get())
    async with asyncio.timeout(net.patience_s):
        while not is_at_rest(sidecar):
            await net.ask(sidecar, net.get())
    circuit = cluster_of(sidecar).circuit
    assert circuit is not None
    await sidecar.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert circuit.connections == 0


async def test_the_total_ends_all_tries_together(net: Net) -> None:
    arrived = asyncio.Event()
    stuck = [await silent(net, arrived) for _ in range(3)]
    answer = await net.ask(await net.proxy_to(*stuck, timeouts=Timeouts(total_s=1.0)), net.get())
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert sum(upstream.connections for upstream in stuck) == 1


async def test_the_total_gives_the_answer_that_an_earlier_try_brought(net: Net) -> None:
    arrived = asyncio.Event()
    sidecar = await net.proxy_to(await failing(net), await silent(net, arrived), timeouts=Timeouts(total_s=0.3))
    while not arrived.is_set():
        answer = await net.ask(sidecar, net.get())
    assert answer.endswith(b"sick") or b"not finished within 0.3 s" in answer
    assert is_at_rest(sidecar)


async def test_a_service_may_have_a_shorter_time_per_try(net: Net) -> None:
    arrived = asyncio.Event()
    sidecar = await net.proxy_to(
        await silent(net, arrived), await net.answering(net.ok(b"alive")), settings=ServiceSettings(per_try_s=1.0)
    )
    while not arrived.is_set():
        assert (await net.ask(sidecar, net.get())).endswith(b"alive")


@pytest.mark.parametrize("hash_on", [HashOn(header="x-user"), HashOn(cookie="user")])
async def test_a_key_sticks_to_its_host(net: Net, hash_on: HashOn) -> None:
    hosts = [await net.answering(net.ok(b"host %d" % at)) for at in range(4)]
    settings = ServiceSettings(balancing=Balancing(policy="maglev", hash_on=hash_on))
    sidecar = await net.proxy_to(*hosts, settings=settings)
    seen: set[bytes] = set()
    for user in range(12):
        extra = f"X-User: {user}\r\nCookie: a=b; user={user}\r\n"
        answers = {(await net.ask(sidecar, net.get(extra=extra)))[-6:] for _ in range(3)}
        assert len(answers) == 1
        seen |= answers
    assert len(seen) > 1


@pytest.mark.parametrize("policy", ["round-robin", "peak-ewma"])
async def test_other_policies_serve_from_every_host(net: Net, policy: str) -> None:
    hosts = [await net.answering(net.ok(b"%d" % at)) for at in range(3)]
    balancing = Balancing(policy=policy)  # type: ignore[arg-type]
    sidecar = await net.proxy_to(*hosts, settings=ServiceSettings(balancing=balancing))
    served = Counter([(await net.ask(sidecar, net.get()))[-1:] for _ in range(12)])
    assert set(served) == {b"0", b"1", b"2"}
    if policy == "round-robin":
        assert set(served.values()) == {4}


async def test_one_service_may_be_called_differently(net: Net) -> None:
    blue, green = await net.answering(net.ok(b"blue")), await net.answering(net.ok(b"green"))
    for service in ("orders", "bills"):
        net.registrar.feed(service).say(blue.instance(service, tags=("blue",)), green.instance(service))
    only_blue = ServiceSettings(balancing=Balancing(subset=Subset(tag="blue", fallback="none")))
    sidecar = await net.sidecar(services={"Orders": only_blue})
    assert {(await net.ask(sidecar, net.get()))[-4:] for _ in range(10)} == {b"blue"}
    assert len({(await net.ask(sidecar, net.get(host="bills")))[-4:] for _ in range(20)}) == 2


async def test_who_was_refused_is_read_again_in_the_next_turn_of_the_loop(net: Net) -> None:
    sidecar = await net.sidecar()
    client = await net.dial(sidecar)
    for _ in range(5):
        client.send(net.get(host="1.2.3.4", close=False))
        assert b" 404 " in await client.head()
        await client.until(b"\n")  # the text of the answer, which ends the exchange
    assert sidecar.outbound is not None
    (downstream,) = sidecar.outbound.connections
    downstream.wait_a_turn()
    assert not downstream.transport.is_reading()
    await asyncio.sleep(0)
    assert downstream.transport.is_reading()
