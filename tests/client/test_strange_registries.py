"""Registries that are busy, slow, broken or not there: the client says what is the matter and keeps trying."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from homeport.client import (
    Client,
    ConnectionLost,
    HomeportError,
    InvalidArgument,
    KvEvents,
    Link,
    Receiver,
    StreamTransport,
    Unauthorized,
    Unavailable,
)
from homeport.client.core import wire
from homeport.client.core.errors import Busy
from homeport.client.core.messages import KvFound, LeaseGrant, Pong, Watching, Welcome
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry

Eventually = Callable[..., Awaitable[None]]
Answer = Callable[[wire.Ask, asyncio.StreamWriter], bytes]
WELCOME = Welcome(version=1, server="s", node="n", store_id="0" * 16, revision=1, limits={})


class Script:
    """A registry that answers as the test says; `asked` holds the methods of all calls but hello, `links` counts."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.links = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links += 1
        splitter = wire.Splitter()
        try:
            while data := await reader.read(65_536):
                for frame in splitter.feed(data):
                    ask = wire.decode_message(frame)
                    assert isinstance(ask, wire.Ask)
                    if ask.method == "hello":
                        writer.write(wire.answer(ask.msgid, WELCOME))
                    else:
                        self.asked.append(ask.method)
                        writer.write(self.answer(ask, writer))
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[tuple[Script, str]]:
    script = Script(answer)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    try:
        yield script, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@virtual_time(seed=21)
async def test_a_registry_that_is_too_busy_for_a_ping_is_alive() -> None:
    busy = wire.answer_error
    async with (
        scripted(lambda ask, _: busy(ask.msgid, Busy("not now", retry_after_s=1.0))) as (script, at),
        Client(at) as client,
    ):
        assert await client.wait_connected()
        await asyncio.sleep(60.0)
        assert client.connected
        assert client.link_epoch == 1
        assert script.asked.count("ping") >= 5


@virtual_time(seed=22)
async def test_a_registry_that_leaves_pings_unanswered_is_left() -> None:
    async with scripted(lambda _ask, _writer: b"") as (_, at), Client(at) as client:
        assert await client.wait_connected()
        await asyncio.sleep(30.0)
        assert client.link_epoch > 1


async def test_an_answer_that_makes_no_sense_fails_its_call_at_once() -> None:
    async with scripted(lambda ask, _: wire.answer(ask.msgid, "nonsense")) as (_, at), Client(at) as client:
        with pytest.raises(ConnectionLost, match="make no sense"):
            await asyncio.wait_for(client.call(LeaseGrant(ttl_s=5.0), timeout_s=60.0), 30.0)


async def test_a_call_whose_own_answer_breaks_the_link_is_repeated_once_at_most() -> None:
    async with scripted(lambda ask, _: wire.answer(ask.msgid, "nonsense")) as (script, at), Client(at) as client:
        with pytest.raises(ConnectionLost, match="make no sense"):
            await asyncio.wait_for(client.kv.get("a"), 30.0)
        assert script.asked == ["kv_get", "kv_get"]


async def test_a_call_is_repeated_as_long_as_links_merely_break() -> None:
    left = 4

    def answer(ask: wire.Ask, writer: asyncio.StreamWriter) -> bytes:
        nonlocal left
        left -= 1
        if left:
            writer.close()
            return b""
        return wire.answer(ask.msgid, KvFound(1))

    async with scripted(answer) as (script, at), Client(at) as client:
        assert (await client.kv.get("a")) is None
        assert script.asked == ["kv_get"] * 4


async def test_details_of_an_error_may_have_any_names() -> None:
    strange = {"message": "m", "code": "c", "self": "s", "details": 1}

    def answer(ask: wire.Ask, _writer: asyncio.StreamWriter) -> bytes:
        error = msgspec.msgpack.encode(("not_found", "there is none", strange))
        return b"\x94\x01" + msgspec.msgpack.encode(ask.msgid) + error + b"\xc0"

    async with scripted(answer) as (_, at), Client(at) as client:
        with pytest.raises(HomeportError, match="there is none") as failed:
            await asyncio.wait_for(client.kv.get("a"), 30.0)
        assert failed.value.details == strange
        assert client.link_epoch == 1


async def test_what_a_registry_says_at_length_is_cut_in_the_middle() -> None:
    text = "begin " + "x" * 100_000 + " allowed: 7"

    def answer(ask: wire.Ask, _writer: asyncio.StreamWriter) -> bytes:
        return wire.answer_error(ask.msgid, InvalidArgument(text))

    async with scripted(answer) as (_, at), Client(at) as client:
        with pytest.raises(InvalidArgument) as failed:
            await client.kv.get("a")
        assert len(str(failed.value)) == 300
        assert str(failed.value).startswith("begin xxx")
        assert str(failed.value).endswith("xxx allowed: 7")


@virtual_time(seed=23)
async def test_a_key_watch_that_nobody_answers_is_opened_again() -> None:
    opened = 0

    def answer(ask: wire.Ask, _writer: asyncio.StreamWriter) -> bytes:
        nonlocal opened
        if ask.method == "ping":
            return wire.answer(ask.msgid, Pong(1))
        if ask.method != "watch_kv":
            return b""
        opened += 1
        if opened < 3:
            return b""
        event = msgspec.msgpack.encode((wire.TELL, "kv", (opened, KvEvents(2, ()))))
        return wire.answer(ask.msgid, Watching("0" * 16, 1)) + event

    async with scripted(answer) as (script, at), Client(at) as client:
        events = client.kv.watch("a")
        assert await asyncio.wait_for(anext(events), 60.0) == KvEvents(2, ())
        assert script.asked.count("cancel_watch") == 2
        assert script.links == 1


@virtual_time(seed=24)
async def test_a_service_watch_that_a_busy_registry_refused_is_opened_again() -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        refused = 2

        class Refusing(StreamTransport):
            async def connect(self, receiver: Receiver) -> Link:
                link = await super().connect(receiver)
                asked = link.call

                def call(request: object) -> object:
                    nonlocal refused
                    if getattr(request, "method", "") == "watch_service" and refused:
                        refused -= 1
                        answer = asyncio.get_running_loop().create_future()
                        answer.set_exception(Busy("not now"))
                        return answer
                    return asked(request)  # type: ignore[arg-type]  # whatever it is, it is handed on

                link.call = call  # type: ignore[method-assign,assignment]  # what the registry would do under load
                return link

        async with Client(transport=Refusing(at)) as client:
            assert await client.resolve("orders") == ()
            assert not refused


async def test_an_address_that_no_system_would_look_up_is_said_to_be_wrong_at_once() -> None:
    async with Client("a..b:8300") as client:
        with pytest.raises(InvalidArgument, match=r"a\.\.b:8300"):
            await asyncio.wait_for(client.kv.get("a"), 30.0)


@pytest.mark.parametrize("address", ["h:²", "h:0", "h:65536", "h:" + "9" * 5000, "h:٣", ":1", "h:", "h: 1"])
def test_an_address_with_a_strange_port_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        Client(address)


async def test_a_client_whose_transport_fails_by_a_defect_keeps_trying(caplog: pytest.LogCaptureFixture) -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        tries = 0

        class Defective(StreamTransport):
            async def connect(self, receiver: Receiver) -> Link:
                nonlocal tries
                tries += 1
                if tries < 3:
                    raise RuntimeError("a transport's defect")
                return await super().connect(receiver)

        async with Client(transport=Defective(at)) as client:
            assert await client.kv.put("a", b"1") > 1
        assert "a transport's defect" in caplog.text


async def test_a_refused_client_is_served_once_the_registry_lets_it_in(unused_port: int) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address, token="new") as client:
        async with Registry(token="old") as registry:
            await registry.serve(rpc=address)
            with pytest.raises(Unauthorized):
                await client.kv.get("a")
        async with Registry(token="new") as registry:
            await registry.serve(rpc=address)
            assert await client.wait_connected(30.0)
            assert await client.kv.get("a") is None


async def test_one_registry_that_refuses_does_not_speak_for_another_that_serves(unused_port: int) -> None:
    async with Registry(token="right") as registry, Registry() as other:
        refusing = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        serving = (await other.serve(rpc="127.0.0.1:0")).rpc or ""
        async with Client(refusing, serving) as client:
            assert await client.kv.get("a") is None
        async with Client(f"127.0.0.1:{unused_port}", refusing) as client:
            with pytest.raises(Unauthorized):
                await client.kv.get("a")
        async with Client(f"127.0.0.1:{unused_port}") as client:
            with pytest.raises(Unavailable):
                await client.call(LeaseGrant(ttl_s=1.0), timeout_s=0.2)


@virtual_time(seed=25)
async def test_a_link_that_breaks_at_once_is_not_opened_again_in_a_hurry() -> None:
    links: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(running_loop().time())
        await reader.read(1000)
        writer.write(wire.answer(1, WELCOME))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Client(at, rng=running_loop().rng):
        await asyncio.sleep(300.0)
    server.close()
    assert 30 < len(links) < 300, "every 5 s at most once it has gone on for a while"
