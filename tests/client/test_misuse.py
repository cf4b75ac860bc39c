"""What people do with a client that they should not, or not at that moment: it is told, and hurts nobody else."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from homeport.client import (
    Busy,
    Client,
    Closed,
    InvalidArgument,
    Link,
    Receiver,
    ServiceEvent,
    StreamTransport,
    Unavailable,
    WrongLoop,
)
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry
from tests.client.conftest import Connect


async def test_a_client_of_an_earlier_loop_says_so_and_closes_quietly(registry: Registry) -> None:
    at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
    client = Client(at)

    async def first() -> None:
        await client.start()
        await client.kv.put("k", b"1")

    async def second() -> None:
        with pytest.raises(WrongLoop, match=r"each asyncio\.run is another"):
            await client.kv.get("k")
        with pytest.raises(WrongLoop):
            client.subscribe("orders")
        with pytest.raises(WrongLoop):
            await client.resolve("orders")
        await client.close()
        with pytest.raises(Closed):
            await client.kv.get("k")

    def scripts() -> None:
        asyncio.run(first())
        asyncio.run(second())

    await asyncio.to_thread(scripts)


async def test_a_client_that_another_thread_tries_to_use_says_so_and_goes_on(connect: Connect) -> None:
    async with connect() as client:
        await client.kv.put("k", b"1")
        told: list[BaseException] = []

        async def there() -> None:
            for wrong in (client.kv.get("k"), client.resolve("orders"), client.lock("l").acquire(), client.close()):
                try:
                    await wrong
                except WrongLoop as error:
                    told.append(error)

        thread = threading.Thread(target=lambda: asyncio.run(there()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(told) == 4
        found = await client.kv.get("k")
        assert found is not None
        assert found.value == b"1"


async def test_outside_of_any_loop_a_client_says_so(connect: Connect) -> None:
    async with connect() as client:
        told: list[type[BaseException]] = []

        def outside() -> None:
            try:
                client.subscribe("orders")
            except WrongLoop as error:
                told.append(type(error))

        await asyncio.to_thread(outside)
        assert told == [WrongLoop]


@virtual_time(seed=1)
async def test_a_client_whose_closing_is_cancelled_leaves_nobody_waiting() -> None:
    client = Client("10.0.0.9:8300")
    await client.start()
    waiting = [asyncio.ensure_future(client.wait_link()), asyncio.ensure_future(anext(client.kv.watch("k")))]
    await asyncio.sleep(1.0)
    closing = asyncio.ensure_future(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    async with asyncio.timeout(1.0):
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, Closed)
    await client.close()


@virtual_time(seed=2)
async def test_a_key_watch_that_a_busy_registry_refused_is_opened_again() -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        refused = 2

        class Refusing(StreamTransport):
            async def connect(self, receiver: Receiver) -> Link:
                link = await super().connect(receiver)
                asked = link.call

                def call(request: object) -> object:
                    nonlocal refused
                    if getattr(request, "method", "") == "watch_kv" and refused:
                        refused -= 1
                        answer = asyncio.get_running_loop().create_future()
                        answer.set_exception(Busy("not now"))
                        return answer
                    return asked(request)  # type: ignore[arg-type]  # whatever it is, it is handed on

                link.call = call  # type: ignore[method-assign,assignment]  # what the registry would do under load
                return link

        async with Client(transport=Refusing(at)) as client:
            steps = client.kv.follow("k")
            await anext(steps)
            later = asyncio.ensure_future(anext(steps))
            await asyncio.sleep(0.5)
            await client.kv.put("k", b"1")
            await asyncio.wait_for(later, 10.0)
            assert not refused
            await steps.aclose()


async def test_a_closed_subscription_tells_its_listeners_nothing_more(
    registry: Registry, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with connect() as client:
        stays, goes = client.subscribe("orders"), client.subscribe("orders")
        told: list[ServiceEvent] = []
        goes.listen(told.append)
        await goes.wait_known(5.0)
        before = len(told)
        goes.close()
        news = asyncio.Event()
        stays.listen(lambda _event: news.set())
        async with client.register("orders", port=1):
            await asyncio.wait_for(news.wait(), 5.0)
        assert len(told) == before
        stays.close()
    assert not caplog.records


@virtual_time(seed=3)
async def test_what_has_the_wrong_type_is_refused_where_it_is_given() -> None:
    async with Registry() as registry, registry.client() as client:
        with pytest.raises(InvalidArgument, match=r"value\.encode\(\)"):
            await client.kv.put("k", "text")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="allowed: text or bytes"):
            await client.kv.put(1, b"")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="port"):
            client.register("orders", port="80")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="a list of texts"):
            client.register("orders", port=80, tags="abc")
        assert await client.kv.list() == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:8500", ["127.0.0.1:8300"]])
def test_an_address_of_another_kind_is_refused_and_says_which_is_meant(address: Any) -> None:
    with pytest.raises(InvalidArgument, match="8300 by default"):
        Client(address)


@virtual_time(seed=4)
async def test_a_port_that_speaks_something_else_is_said_to() -> None:
    class Http(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = await asyncio.get_running_loop().create_server(Http, "127.0.0.1", 8500)
    async with Client("127.0.0.1:8500") as client:
        with pytest.raises(Unavailable, match="does not speak RPC"):
            await client.kv.get("k")
    server.close()


async def test_who_asks_in_a_loop_until_there_is_an_instance_gets_it(connect: Connect) -> None:
    async with connect() as client, connect() as other:
        assert await client.resolve("orders") == ()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(other.register("orders", port=8080, id="orders-1").start())
            while not (found := await client.resolve("orders")):  # the test's own timeout bounds it
                pass
        assert [one.id for one in found] == ["orders-1"]
