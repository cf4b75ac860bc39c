"""Bounds: whatever a slow, silent or greedy end could make the proxy wait for or keep has one, and it is set once."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.errors import Closed, InvalidArgument
from homeport.sidecar import Limits, Timeouts

if TYPE_CHECKING:
    from tests.sidecar.conftest import Feed, Net, Raw

PIECE = b"x" * 65_536


@pytest.mark.parametrize("kind", [Limits, Timeouts])
def test_a_bound_is_more_than_nothing(kind: type[Limits | Timeouts]) -> None:
    for field in dataclasses.fields(kind):
        for value in (0, -1):
            with pytest.raises(ValueError, match=field.name):
                kind(**{field.name: value})


async def test_limits_are_those_that_were_set(net: Net) -> None:
    bounds = Limits(line_bytes=300, head_bytes=1000, headers=3)
    sidecar = await net.proxy_to(await net.answering(net.ok()), limits=bounds)
    for status, request in (
        (414, net.get("/" + "a" * 300)),
        (431, net.get(extra="X-A: " + "a" * 1000 + "\r\n")),
        (431, net.get(extra="X-A: a\r\n" * 4)),
        (200, net.get("/" + "a" * 200)),
    ):
        assert (await net.ask(sidecar, request)).startswith(b"HTTP/1.1 %d " % status)
    sidecar = await net.proxy_to(await net.answering(net.ok()), limits=Limits(connections=2))
    for each in (await net.dial(sidecar), await net.dial(sidecar)):
        each.send(net.get(close=False))
        await each.head()
    assert (await net.ask(sidecar, b"")).startswith(b"HTTP/1.1 503 ")


async def test_a_total_timeout_ends_an_exchange_that_never_falls_silent(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            raw.send(b"1\r\nx\r\n")
            await raw.writer.drain()
            await asyncio.sleep(0.02)

    sidecar = await net.proxy_to(await net.upstream(script), timeouts=Timeouts(total_s=1.0))
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not answer.endswith(b"0\r\n\r\n")
    assert sidecar.outbound is not None
    assert sidecar.outbound.active == 0


async def test_a_total_timeout_before_the_answer_is_504_ut_whatever_the_tries(net: Net) -> None:
    async def never(raw: Raw) -> None:
        await raw.until_end()

    stuck = [await net.upstream(never) for _ in range(3)]
    sidecar = await net.proxy_to(*stuck, timeouts=Timeouts(total_s=0.2, first_byte_s=0.15))
    answer = await net.ask(sidecar, net.get())
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"x-homeport-response-flags: UT\r\n" in answer


async def test_an_upload_after_an_early_answers_head_lives_while_it_flows(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await raw.exactly(12)
        raw.send(b"hi")

    client = await net.dial(await net.proxy_to(await net.upstream(script), timeouts=Timeouts(stream_s=1.5)))
    client.send(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 12\r\n\r\n")
    await client.head()
    for _ in range(12):
        client.send(b"x")
        await asyncio.sleep(0.2)
    assert (await client.until_end()) == b"hi"


async def test_a_client_that_asks_and_does_not_read_is_not_read_either(net: Net) -> None:
    sidecar = await net.proxy_to(await net.answering(net.ok(PIECE)))
    client = await net.dial(sidecar)
    requests = net.get(close=False, extra="X-Pad: " + "x" * 8000 + "\r\n") * 16
    sent = 0
    while True:  # until nothing more goes in
        client.send(requests)
        sent += 16
        try:
            async with asyncio.timeout(0.5):
                await client.writer.drain()
        except TimeoutError:
            break
        assert sent < 10_000
    assert sidecar.outbound is not None
    (held,) = sidecar.outbound.connections
    assert held.held_bytes < 1 << 20
    client.writer.write_eof()
    for _ in range(sent):
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await client.exactly(len(PIECE))
    assert await client.until_end() == b""


async def test_a_client_that_only_asks_for_refusals_is_not_answered_without_end(net: Net) -> None:
    sidecar = await net.proxy_to()
    client = await net.dial(sidecar)
    requests = net.get(host="example.com", close=False) * 1000
    sent = 0
    while True:
        client.send(requests)
        sent += 1000
        try:
            async with asyncio.timeout(0.5):
                await client.writer.drain()
        except TimeoutError:
            break
        assert sent < 1_000_000
    assert sidecar.outbound is not None
    (held,) = sidecar.outbound.connections
    assert held.transport.get_write_buffer_size() < 1 << 20


async def test_an_early_answer_is_not_cut_short_because_its_client_is_slow_to_read_it(net: Net) -> None:
    size = 8 << 20

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(net.ok(b"x" * size, status=b"413 Content Too Large"))
        await raw.until_end()

    timeouts = Timeouts(linger_s=0.1)
    client = await net.dial(await net.proxy_to(await net.upstream(script), timeouts=timeouts))
    client.send(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 10\r\n\r\nhalf")
    await client.head()
    await asyncio.sleep(0.5)  # what the proxy still holds must outlive its lingering
    assert len(await client.exactly(size)) == size


@pytest.mark.parametrize(("error", "status"), [(InvalidArgument("no such name"), 404), (Closed("closed"), 503)])
async def test_a_service_that_cannot_be_followed_is_an_answer_and_the_connection_goes_on(
    net: Net, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def subscribe(service: str) -> Feed:
        raise error

    sidecar = await net.proxy_to()
    monkeypatch.setattr(net.registrar, "subscribe", subscribe)
    client = await net.dial(sidecar)
    for _ in range(2):
        client.send(net.get(extra="x-homeport-service: a/b\r\n", close=False))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        await client.exactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


async def test_an_answer_of_204_says_nothing_of_a_body(net: Net) -> None:
    made = await net.answering(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = await net.ask(await net.proxy_to(made), net.get())
    assert b"transfer-encoding" not in answer.lower()


@pytest.mark.parametrize("target", ['http://a"b/', "http://me@orders/", "http://orders:80:80/", "http:///x"])
async def test_an_absolute_target_has_a_valid_host(net: Net, target: str) -> None:
    made = await net.answering(net.ok())
    sidecar = await net.sidecar(inbound="127.0.0.1:0", app=made.address)
    for listener in ("outbound", "inbound"):
        answer = await net.ask(sidecar, net.get(target), listener)
        assert answer.startswith(b"HTTP/1.1 40"), answer
    assert made.connections == 0
