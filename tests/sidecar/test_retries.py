"""What is tried again, over real sockets: the promises of `homeport.sidecar.core.retries`."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.model import Instance
from homeport.sidecar import Circuit, ServiceSettings, Timeouts
from homeport.sidecar.core import limits
from homeport.sidecar.sockets import address_of
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net, Raw


def refusing_instance(service: str = "orders") -> Instance:
    """An address where nobody listens."""
    return Instance(service=service, id="dead", address="127.0.0.1", port=free_port())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH"])
async def test_a_refused_connect_is_tried_elsewhere_whatever_the_method(net: Net, method: str) -> None:
    alive = await net.answering(net.ok(b"alive"))
    net.registrar.feed("orders").say(refusing_instance(), alive.instance())
    sidecar = await net.sidecar()
    for _ in range(8):
        assert (await net.ask(sidecar, net.get(method=method))).endswith(b"alive")


async def test_a_service_with_only_dead_hosts_answers_503_uf(net: Net) -> None:
    net.registrar.feed("orders").say(refusing_instance())
    answer = await net.ask(await net.sidecar(), net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: UF\r\n" in answer


async def test_a_503_of_one_host_is_retried_on_the_other_for_get_and_passed_on_for_post(net: Net) -> None:
    sick = await net.answering(net.ok(b"sick", status=b"503 Service Unavailable"))
    well = await net.answering(net.ok(b"well"))
    sidecar = await net.proxy_to(sick, well)
    for _ in range(10):
        assert (await net.ask(sidecar, net.get())).endswith(b"well")
    only_sick = await net.proxy_to(sick, service="only-sick")
    before = len(sick.heads)
    answer = await net.ask(only_sick, net.get(host="only-sick", method="POST"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"sick")
    assert len(sick.heads) == before + 1


async def test_exhausted_retries_give_the_last_upstream_answer(net: Net) -> None:
    hosts = [await net.answering(net.ok(b"sick %d" % n, status=b"503 Service Unavailable")) for n in range(5)]
    answer = await net.ask(await net.proxy_to(*hosts), net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"sick " in answer
    assert sum(len(host.heads) for host in hosts) == 3
    assert max(len(host.heads) for host in hosts) == 1


async def test_a_failed_answer_is_what_the_client_gets_when_the_next_try_fails_worse(net: Net) -> None:
    sick = await net.answering(net.ok(b"sick", status=b"503 Service Unavailable"))
    net.registrar.feed("orders").say(sick.instance(), refusing_instance())
    sidecar = await net.sidecar()
    for _ in range(6):
        answer = await net.ask(sidecar, net.get())
        assert answer.endswith(b"sick")


async def test_a_404_is_never_retried(net: Net) -> None:
    hosts = [await net.answering(net.ok(b"no", status=b"404 Not Found")) for _ in range(3)]
    assert (await net.ask(await net.proxy_to(*hosts), net.get())).startswith(b"HTTP/1.1 404 ")
    assert sum(len(host.heads) for host in hosts) == 1


async def test_a_reset_of_a_reused_connection_is_repeated_on_a_fresh_one_for_get(net: Net) -> None:
    async def answer_once_then_reset(raw: Raw) -> None:
        await raw.head()
        raw.send(net.ok())
        await raw.head()
        raw.reset()

    fickle = await net.upstream(answer_once_then_reset)
    sidecar = await net.proxy_to(fickle)
    client = await net.dial(sidecar)
    for _ in range(5):
        client.send(net.get(close=False))
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.exactly(2) == b"hi"
    assert fickle.connections >= 4


@pytest.mark.parametrize("begun", [b"HTTP/1.1 20", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_host_that_had_begun_to_answer_on_a_reused_connection_is_not_asked_again(
    net: Net, begun: bytes
) -> None:
    asked: list[bytes] = []

    async def script(raw: Raw) -> None:
        asked.append(await raw.head())
        raw.send(net.ok())
        asked.append(await raw.head())
        raw.send(begun)

    sidecar = await net.proxy_to(await net.upstream(script))
    await net.ask(sidecar, net.get())
    answer = await net.ask(sidecar, net.get())
    assert b"HTTP/1.1 50" in answer
    assert len(asked) == 2


@pytest.mark.parametrize("reused", [True, False])
async def test_a_post_is_never_repeated_once_it_was_sent(
    net: Net, reused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POOL_IDLE_ONCE_S", 60.0)
    posts: list[bytes] = []
    feed = net.registrar.feed("orders")
    other = await net.answering(net.ok(b"other"))

    async def script(raw: Raw) -> None:
        head = await raw.head()
        if head.startswith(b"GET"):
            raw.send(net.ok())
            head = await raw.head()
        posts.append(head)
        feed.say(fickle.instance(), other.instance())  # another host is there to be tried, and must not be
        raw.reset()

    fickle = await net.upstream(script)
    sidecar = await net.proxy_to(fickle)
    if reused:
        await net.ask(sidecar, net.get())
    answer = await net.ask(sidecar, net.get(method="POST"))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"x-homeport-response-flags: UC\r\n" in answer
    assert [head[:4] for head in posts] == [b"POST"]
    assert fickle.connections == 1
    assert other.connections == 0


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_only_what_can_be_repeated_goes_out_on_a_connection_that_has_been_idle_for_long(
    net: Net, monkeypatch: pytest.MonkeyPatch, method: bytes
) -> None:
    monkeypatch.setattr(limits, "POOL_IDLE_S", 60.0)
    monkeypatch.setattr(limits, "POOL_IDLE_ONCE_S", -1.0)  # whatever the clock: too long
    upstream = await net.answering(net.ok())
    sidecar = await net.proxy_to(upstream)
    await net.ask(sidecar, net.get())
    await net.ask(sidecar, net.get(method=method.decode()))
    assert upstream.connections == (2 if method == b"POST" else 1)
    await net.ask(sidecar, net.get())
    assert upstream.connections == (2 if method == b"POST" else 1), "none is lost to the pool"


async def test_a_post_is_not_written_to_a_connection_whose_end_is_here_but_not_yet_heard_of(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POOL_IDLE_ONCE_S", 60.0)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        sidecar = await net.sidecar(static={"orders": [address_of(listening)]})
        client = await net.dial(sidecar)
        async with asyncio.timeout(net.patience_s):
            client.send(net.get(close=False))
            first, _ = await loop.sock_accept(listening)
            await loop.sock_recv(first, 4096)
            await loop.sock_sendall(first, net.ok())
            await client.head()
            await client.exactly(2)
            client.send(net.get(method="POST"))  # both are in the kernel before the loop looks
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            second, _ = await loop.sock_accept(listening)
            with second:
                assert (await loop.sock_recv(second, 4096)).startswith(b"POST ")
                await loop.sock_sendall(second, net.ok())
                assert (await client.until_end()).endswith(b"hi")


async def test_a_post_uses_what_is_there_where_no_more_connections_may_be_opened(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POOL_IDLE_S", 60.0)
    monkeypatch.setattr(limits, "POOL_IDLE_ONCE_S", -1.0)  # whatever the clock: too long
    upstream = await net.answering(net.ok())
    sidecar = await net.proxy_to(upstream, settings=ServiceSettings(circuit=Circuit(connections_max=1)))
    await net.ask(sidecar, net.get())
    assert (await net.ask(sidecar, net.get(method="POST"))).endswith(b"hi")
    assert upstream.connections == 1


async def test_a_get_that_was_reset_before_any_byte_is_answered_by_another_host(net: Net) -> None:
    feed = net.registrar.feed("orders")
    other = await net.answering(net.ok(b"other"))

    async def script(raw: Raw) -> None:
        await raw.head()
        feed.say(fickle.instance(), other.instance())
        raw.reset()

    fickle = await net.upstream(script)
    assert (await net.ask(await net.proxy_to(fickle), net.get())).endswith(b"other")


async def test_a_body_up_to_the_bound_is_sent_again_and_a_larger_one_is_not(net: Net) -> None:
    bodies: list[int] = []

    async def sick(raw: Raw) -> None:
        while True:
            head = await raw.head()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await raw.exactly(length)
            bodies.append(length)
            raw.send(net.ok(b"sick", status=b"503 Service Unavailable"))

    sidecar = await net.proxy_to(await net.upstream(sick), await net.upstream(sick), await net.upstream(sick))
    for length, tries in ((60_000, 3), (200_000, 1)):
        bodies.clear()
        head = f"PUT /x HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        assert (await net.ask(sidecar, head.encode() + b"x" * length)).endswith(b"sick")
        assert bodies == [length] * tries


async def test_gets_that_wait_on_an_endpoint_that_turns_critical_are_moved_and_posts_stay(net: Net) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    release = asyncio.Event()

    async def stuck(raw: Raw) -> None:
        arrived.put_nowait(await raw.head())
        await release.wait()
        raw.send(net.ok(b"late"))

    slow = await net.upstream(stuck)
    fast = await net.answering(net.ok(b"fast"))
    feed = net.registrar.feed("orders")
    feed.say(slow.instance())
    sidecar = await net.sidecar()
    reader, poster = await net.dial(sidecar), await net.dial(sidecar)
    reader.send(net.get())
    poster.send(net.get(method="POST"))
    async with asyncio.timeout(net.patience_s):
        await arrived.get()
        await arrived.get()
    feed.say(slow.instance(status="critical"), fast.instance())
    assert (await reader.until_end()).endswith(b"fast")
    release.set()
    assert (await poster.until_end()).endswith(b"late")


async def test_a_draining_endpoint_finishes_what_it_has_and_gets_nothing_new(net: Net) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def stuck(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await release.wait()
        raw.send(net.ok(b"old"))

    old = await net.upstream(stuck)
    new = await net.answering(net.ok(b"new"))
    feed = net.registrar.feed("orders")
    feed.say(old.instance())
    sidecar = await net.sidecar()
    waiting = await net.dial(sidecar)
    waiting.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
    feed.say(old.instance(state="draining"), new.instance())
    for _ in range(4):
        assert (await net.ask(sidecar, net.get())).endswith(b"new")
    release.set()
    assert (await waiting.until_end()).endswith(b"old")
    assert old.connections == 1


async def test_an_inbound_without_its_app_lets_even_a_post_go_elsewhere(net: Net) -> None:
    dead = refusing_instance()
    inbound = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=f"127.0.0.1:{dead.port}")
    direct = await net.ask(inbound, net.get(method="POST"), "inbound")
    assert direct.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-undelivered: 1\r\n" in direct
    alive = await net.answering(net.ok(b"alive"))
    host, port = inbound.at["inbound"].split(":")
    net.registrar.feed("orders").say(
        Instance(service="orders", id="in", address=host, port=int(port)), alive.instance()
    )
    sidecar = await net.sidecar()
    for _ in range(8):
        assert (await net.ask(sidecar, net.get(method="POST"))).endswith(b"alive")
    net.registrar.feed("lonely").say(Instance(service="lonely", id="in", address=host, port=int(port)))
    answer = await net.ask(sidecar, net.get(host="lonely", method="POST"))
    assert b"x-homeport-response-flags: UF\r\n" in answer
    assert b"undelivered" not in answer


async def test_an_application_cannot_claim_that_it_never_got_a_request(net: Net) -> None:
    liar = await net.answering(
        net.ok(b"lie", status=b"503 Service Unavailable", extra=b"X-Homeport-Undelivered: 1\r\n")
    )
    inbound = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=liar.address)
    assert b"undelivered" not in (await net.ask(inbound, net.get(method="POST"), "inbound")).lower()


async def never(raw: Raw) -> None:
    """An application that takes requests and says nothing."""
    await raw.until_end()


async def test_no_first_byte_in_time_is_504_ut(net: Net) -> None:
    stuck = await net.upstream(never)
    for method in ("GET", "POST"):
        answer = await net.ask(await net.proxy_to(stuck, timeouts=Timeouts(first_byte_s=0.1)), net.get(method=method))
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"x-homeport-response-flags: UT\r\n" in answer


async def test_a_get_without_a_first_byte_in_time_goes_to_another_host(net: Net) -> None:
    sidecar = await net.proxy_to(
        await net.upstream(never), await net.answering(net.ok(b"alive")), timeouts=Timeouts(first_byte_s=1.0)
    )
    for _ in range(4):
        assert (await net.ask(sidecar, net.get())).endswith(b"alive")


async def test_more_requests_than_an_endpoint_may_have_are_503_uo(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACTIVE_MAX", 1)
    arrived = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await raw.until_end()

    sidecar = await net.proxy_to(await net.upstream(script))
    (await net.dial(sidecar)).send(net.get())
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-homeport-response-flags: UO\r\n" in answer


async def test_a_body_that_stops_coming_is_408(net: Net) -> None:
    sidecar = await net.proxy_to(await net.upstream(never), timeouts=Timeouts(body_s=0.2))
    answer = await net.ask(sidecar, b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 9\r\n\r\nhalf")
    assert answer.startswith(b"HTTP/1.1 408 ")
