"""What fuzzing and soaking have found, each said as a promise."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import msgspec
import pytest

from homeport.client import Client
from homeport.client.core import wire
from homeport.client.core.errors import InvalidArgument, ProtocolError
from homeport.client.core.messages import Hello, WatchService
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry
from homeport.registry.fronts.consul.answers import Refusal
from homeport.registry.fronts.consul.bodies import decode as decode_body
from homeport.registry.fronts.consul.bodies import go_name
from homeport.registry.store.journal import Journal, JournalError
from homeport.sidecar.core.routing import parsed


class _Body(msgspec.Struct, rename=go_name):
    """A body with one field."""

    key: str = ""


NOT_UTF_8 = b"\xff\xfe"


def test_a_call_whose_text_is_not_utf_8_is_refused_and_named() -> None:
    with pytest.raises(ProtocolError, match="not a MessagePack-RPC message"):
        wire.decode_message(b"\x94\x00\x01\xa2" + NOT_UTF_8 + b"\x90")
    frame = b"\x91\x81\xa7service\xa2" + NOT_UTF_8
    with pytest.raises(InvalidArgument, match="params"):
        wire.decode_params(WatchService, frame)


def test_a_document_of_routes_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        parsed(b'{"routes": [{"name": "' + NOT_UTF_8 + b'"}]}')


def test_a_body_of_consuls_api_that_is_not_utf_8_is_a_400() -> None:
    with pytest.raises(Refusal) as caught:
        decode_body(_Body, b'{"Key": "' + NOT_UTF_8 + b'"}')
    assert caught.value.status == 400


def test_a_journal_whose_name_is_not_utf_8_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "homeport.db"
    Journal(str(path), "a-name-that-stands-out").close()
    content = path.read_bytes()
    assert content.count(b"a-name-that-stands-out") == 1
    path.write_bytes(content.replace(b"a-name", b"\xc4-name"))
    with pytest.raises(JournalError, match=r"is corrupt .* restore a backup"):
        Journal(str(path), "x")


@virtual_time(seed=11)
async def test_a_client_that_ends_its_half_of_a_connection_with_a_watch_open_is_let_go() -> None:
    async with Registry() as registry:
        at = await registry.serve(rpc="127.0.0.1:7400")
        assert at.rpc is not None
        host, port = at.rpc.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(wire.ask(1, Hello()) + wire.ask(2, WatchService(watch=1, service="orders")))
        writer.write_eof()
        async with asyncio.timeout(1.0):
            assert await reader.read(), "both are answered, and then the connection ends"
        writer.close()


@virtual_time(seed=12)
async def test_connections_that_are_gone_leave_no_buffers_to_the_collector() -> None:
    async with Registry() as registry:
        at = await registry.serve(rpc="127.0.0.1:7400")
        assert at.rpc is not None
        gc.collect()
        others = [each for each in gc.get_objects() if isinstance(each, wire.Splitter)]  # of other tests
        gc.disable()  # a process with many objects collects as rarely as that
        try:
            for _ in range(5):
                async with Client(at.rpc) as client:
                    await client.services()
            await asyncio.sleep(1.0)
            splitters = [each for each in gc.get_objects() if isinstance(each, wire.Splitter)]
            held = [each for each in splitters if each not in others and each._unpacker is not None]
        finally:
            gc.enable()
        assert held == []
