"""Failed answers that are held back while another try may bring a better one: stalled, cut off, or asking to wait."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.balancing.outliers import OutlierDetector
from homeport.sidecar import Outliers, Retries, ServiceSettings, Timeouts
from homeport.sidecar.core import retry_after
from tests.sidecar.endpoints import cluster_of
from tests.sidecar.test_retries import refusing_instance

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net, Raw

_SICK = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\nsick"  # four bytes are missing
_PER_TRY_S = 0.2


async def _until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(30.0):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


async def test_a_failed_answer_that_stalls_is_delivered_when_nobody_else_can_be_asked(net: Net) -> None:
    go_on = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(_SICK)
        await go_on.wait()
        raw.send(b"!!!!")
        await raw.head()

    sidecar = await net.proxy_to(await net.upstream(script), settings=ServiceSettings(per_try_s=_PER_TRY_S))
    client = await net.dial(sidecar)
    client.send(net.get())
    assert (await client.head()).startswith(b"HTTP/1.1 503 ")
    assert await client.exactly(4) == b"sick"
    go_on.set()
    assert await client.exactly(4) == b"!!!!"


async def fails_worse(raw: Raw) -> None:
    """A host that takes a request and breaks the connection."""
    await raw.head()
    raw.reset()


async def says_nothing(raw: Raw) -> None:
    await raw.until_end()


@pytest.mark.parametrize("other", [fails_worse, says_nothing, None])
async def test_a_failed_answer_that_stalls_is_delivered_when_no_other_try_does_better(
    net: Net, other: Callable[[Raw], Awaitable[None]] | None
) -> None:
    asked: list[bytes] = []
    go_on = asyncio.Event()
    once = ServiceSettings(per_try_s=_PER_TRY_S, retries=Retries(retries_max=1), outliers=None)

    async def script(raw: Raw) -> None:
        asked.append(await raw.head())
        feed.say(first.instance(), second)
        raw.send(_SICK)
        await go_on.wait()
        raw.send(b"!!!!")
        await raw.until_end()

    first = await net.upstream(script)
    second = (await net.upstream(other)).instance() if other is not None else refusing_instance()
    feed = net.registrar.feed("orders")
    feed.say(first.instance())
    sidecar = await net.sidecar(settings=once)
    client = await net.dial(sidecar)
    client.send(net.get(close=False))
    assert (await client.head()).startswith(b"HTTP/1.1 503 ")
    assert await client.exactly(4) == b"sick"
    go_on.set()
    assert await client.exactly(4) == b"!!!!"
    assert len(asked) == 1
    outbound = sidecar.outbound
    assert outbound is not None
    await _until(lambda: outbound.clusters["orders"].active == 0)


async def test_a_long_failed_answer_is_held_back_too_and_nothing_of_it_is_lost(net: Net) -> None:
    size = 8_000_000

    async def script(raw: Raw) -> None:
        await raw.head()
        feed.say(first.instance(), second.instance())
        raw.send(b"HTTP/1.1 503 Sick\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await raw.until_end()

    first = await net.upstream(script)
    second = await net.upstream(says_nothing)
    feed = net.registrar.feed("orders")
    feed.say(first.instance())
    settings = ServiceSettings(per_try_s=_PER_TRY_S, retries=Retries(retries_max=1), outliers=None)
    sidecar = await net.sidecar(settings=settings)
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert len(answer.partition(b"\r\n\r\n")[2]) == size
    assert second.connections == 1


async def test_what_is_left_of_a_body_reaches_the_next_host_where_the_first_had_taken_no_more(net: Net) -> None:
    begun = asyncio.Event()

    async def full(raw: Raw) -> None:
        await raw.head()
        await raw.exactly(4)
        feed.say(first.instance(), second.instance())
        (client,) = connections
        assert client.exchange is not None
        assert client.exchange.upstream is not None
        client.exchange.upstream.pause_writing()  # as the loop does; how much goes in first is the kernel's choice
        assert client.waits_for_upstream
        raw.send(_SICK)
        await asyncio.Event().wait()

    async def takes_all(raw: Raw) -> None:
        await raw.head()
        await raw.exactly(4)  # so little that it is never full: nothing else would have the client read again
        begun.set()
        raw.send(net.ok(await raw.exactly(5)))
        await raw.until_end()

    first, second = await net.upstream(full), await net.upstream(takes_all)
    feed = net.registrar.feed("orders")
    feed.say(first.instance())
    sidecar = await net.sidecar()
    assert sidecar.outbound is not None
    connections = sidecar.outbound.connections
    client = await net.dial(sidecar)
    client.send(b"PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 9\r\nConnection: close\r\n\r\nsome")
    async with asyncio.timeout(net.patience_s):
        await begun.wait()
    client.send(b" more")
    assert (await client.until_end()).endswith(b" more")


async def test_the_only_host_is_asked_again_when_it_has_said_when(net: Net) -> None:
    asked: list[bytes] = []

    def answer(head: bytes) -> bytes:
        asked.append(head)
        if len(asked) > 1:
            return net.ok(b"well")
        return net.ok(b"later", status=b"429 Too Many Requests", extra=b"Retry-After: 1\r\n")

    settings = ServiceSettings(retries=Retries(statuses=(429,), retry_after_s_max=2.0))
    sidecar = await net.proxy_to(await net.answering(answer), settings=settings)
    assert (await net.ask(sidecar, net.get())).endswith(b"well")
    assert len(asked) == 2


async def test_a_failed_answer_that_stalls_is_given_up_for_another_host(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(_SICK)
        await asyncio.Event().wait()

    well = await net.answering(net.ok(b"well"))
    sick = await net.upstream(script)
    sidecar = await net.proxy_to(sick, well, settings=ServiceSettings(per_try_s=_PER_TRY_S))
    for _ in range(6):
        assert (await net.ask(sidecar, net.get())).endswith(b"well")
    assert sick.connections


async def test_a_429_is_passed_on_unless_the_policy_names_it(net: Net) -> None:
    busy = await net.answering(net.ok(b"busy", status=b"429 Too Many Requests"))
    well = await net.answering(net.ok(b"well"))
    plain = await net.proxy_to(busy, service="plain")
    assert (await net.ask(plain, net.get(host="plain"))).startswith(b"HTTP/1.1 429 ")
    named = ServiceSettings(retries=Retries(statuses=(429, 503)))
    sidecar = await net.proxy_to(busy, well, settings=named)
    for _ in range(8):
        assert (await net.ask(sidecar, net.get())).endswith(b"well")
    assert busy.heads
    assert sidecar.outbound is not None
    assert not any(endpoint.ejected for endpoint in sidecar.outbound.clusters["orders"].endpoints.values())


async def test_a_retry_after_is_waited_for_if_it_is_short_and_passed_on_if_it_is_long(net: Net) -> None:
    asked: list[bytes] = []

    def answer(head: bytes) -> bytes:
        asked.append(head)
        if len(asked) > 1:
            return net.ok(b"well")
        return net.ok(b"later", status=b"503 Service Unavailable", extra=b"Retry-After: %d\r\n" % after)

    host, other = await net.answering(answer), await net.answering(answer)
    settings = ServiceSettings(retries=Retries(retry_after_s_max=1.0))
    sidecar = await net.proxy_to(host, other, settings=settings)
    loop = asyncio.get_running_loop()
    after = 1
    began = loop.time()
    assert (await net.ask(sidecar, net.get())).endswith(b"well")
    assert loop.time() - began >= 1.0, "the second try came too early"
    asked.clear()
    after = 2
    answered = await net.ask(sidecar, net.get())
    assert answered.startswith(b"HTTP/1.1 503 ")
    assert answered.endswith(b"later")
    assert len(asked) == 1


async def test_a_client_that_leaves_while_a_retry_after_is_waited_for_leaves_nothing_behind(net: Net) -> None:
    busy = await net.answering(net.ok(b"", status=b"503 Service Unavailable", extra=b"Retry-After: 30\r\n"))
    settings = ServiceSettings(retries=Retries(retry_after_s_max=60.0))
    other = await net.answering(net.ok(b"", status=b"503 Service Unavailable", extra=b"Retry-After: 30\r\n"))
    sidecar = await net.proxy_to(busy, other, settings=settings)
    outbound = sidecar.outbound
    assert outbound is not None
    client = await net.dial(sidecar)
    client.send(net.get())
    await _until(lambda: bool(busy.heads or other.heads) and not outbound.clusters["orders"].active)
    assert outbound.active == 1, "it waits"
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.reset()
    await _until(lambda: not outbound.connections)
    assert outbound.active == 0
    assert len(busy.heads) + len(other.heads) == 1
    circuit = outbound.clusters["orders"].circuit
    assert circuit is not None
    assert (circuit.requests, circuit.retries, circuit.pending) == (0, 0, 0)


async def test_an_options_for_a_whole_server_is_asked_with_an_asterisk(net: Net) -> None:
    host = await net.answering(net.ok())
    sidecar = await net.proxy_to(host)
    request = b"OPTIONS http://orders HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n"
    assert (await net.ask(sidecar, request)).startswith(b"HTTP/1.1 200 ")
    assert host.heads[-1].startswith(b"OPTIONS * HTTP/1.1\r\n")
    await net.ask(sidecar, request.replace(b"http://orders", b"http://orders?x"))
    assert host.heads[-1].startswith(b"OPTIONS /?x HTTP/1.1\r\n")
    await net.ask(sidecar, request.replace(b"OPTIONS", b"GET", 1))
    assert host.heads[-1].startswith(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", b"200"), ("TRACE", b"405")])
async def test_the_hops_of_options_and_trace_are_counted(net: Net, method: str, status: bytes) -> None:
    host = await net.answering(net.ok())
    sidecar = await net.proxy_to(host)
    await net.ask(sidecar, net.get(method=method, extra="Max-Forwards: 3\r\n"))
    assert b"\r\nMax-Forwards: 2\r\n" in host.heads[-1]
    before = len(host.heads)
    answer = await net.ask(sidecar, net.get(method=method, extra="Max-Forwards: 0\r\n"))
    assert answer.startswith(b"HTTP/1.1 %b " % status)
    assert b"\r\nAllow: " in answer
    assert len(host.heads) == before
    await net.ask(sidecar, net.get(extra="Max-Forwards: 0\r\n"))
    assert b"\r\nMax-Forwards: 0\r\n" in host.heads[-1], "other methods are not counted"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b" 120 ", 120.0),
        (b"Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        (b"Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        (b"soon", None),
        (b"-3", None),
        (b"9" * 40, None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(value: bytes, seconds: float | None) -> None:
    assert retry_after.delay_s(value, wall_s=60.0) == seconds


def test_an_answer_that_is_cut_off_is_one_try_of_its_host() -> None:
    made = cluster_of(3)
    host = next(iter(made.endpoints.values()))
    detector = OutlierDetector(Outliers())
    host.answers += 1  # its head has come and was counted
    detector.failed(host, 0, made.endpoints.values(), 0.0, random.Random(1), answered=True)
    assert (host.answers, host.errors) == (1, 1)
    detector.failed(host, 0, made.endpoints.values(), 0.0, random.Random(1))
    assert (host.answers, host.errors) == (2, 2)


async def test_a_host_is_blamed_once_for_an_answer_that_fails_and_is_then_cut_off(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(_SICK)
        raw.writer.close()

    sidecar = await net.proxy_to(await net.upstream(script), timeouts=Timeouts())
    assert (await net.ask(sidecar, net.get())).endswith(b"sick"), "with nobody else, what there is of it"
    assert sidecar.outbound is not None
    (endpoint,) = sidecar.outbound.clusters["orders"].endpoints.values()
    assert (endpoint.answers, endpoint.errors) == (1, 1)
