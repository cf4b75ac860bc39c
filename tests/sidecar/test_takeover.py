"""A sidecar that takes over: whose sockets it gets, what the old one finishes, and what happens when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from homeport.sidecar import Handover, TakeoverError, take_over
from homeport.sidecar.sockets import address_of, bind, dealt
from homeport.sidecar.takeover import HELLO

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows passes no sockets this way")


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: the path of a Unix socket has 107 bytes at most."""
    with TemporaryDirectory(prefix="hp") as directory:
        yield Path(directory) / "takeover.socket"


async def test_the_successor_serves_the_next_connection_and_the_old_one_what_it_has_begun(net: Net, path: Path) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slowly(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await release.wait()
        raw.send(net.ok(b"by the old one"))

    upstream = await net.upstream(slowly)
    old = await net.sidecar(static={"orders": [upstream.address]}, admin="127.0.0.1:0")
    retired = asyncio.Event()
    handover = Handover(path, lambda: old.sockets, retired.set)
    await handover.start()
    begun = await net.dial(old)
    begun.send(net.get(close=False))
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()

        taken = await take_over(path)
        second = await net.answering(net.ok(b"by the new one"))
        new = await net.sidecar(
            **old.at,
            static={"orders": [second.address]},
            sockets=taken.matching({"outbound": old.at["outbound"], "admin": old.at["admin"]}),
        )
        assert new.at == old.at
        await taken.ready()
        await retired.wait()
        retiring = asyncio.create_task(old.retire())
        await asyncio.sleep(0)
        assert (await net.ask(new, net.get())).endswith(b"by the new one")
        assert not retiring.done()
        release.set()
        answer = await begun.until_end()
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"by the old one")
        assert await retiring
    await handover.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the path of a Unix socket has 107 bytes at most")
async def test_a_state_directory_may_be_as_deep_as_any(net: Net, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 40) / "takeover.socket"
    old = await net.sidecar(static={"orders": ["127.0.0.1:1"]})
    retired = asyncio.Event()
    handover = Handover(deep, lambda: old.sockets, retired.set)
    await handover.start()
    taken = await take_over(deep)
    taken.matching({})
    await taken.ready()
    async with asyncio.timeout(net.patience_s):
        await retired.wait()
    await handover.close()
    assert list(deep.parent.iterdir()) == []


async def test_a_successor_that_dies_before_it_is_ready_changes_nothing(
    net: Net, path: Path, eventually: Eventually
) -> None:
    old = await net.sidecar(static={"orders": [(await net.answering(net.ok())).address]})
    left: list[str] = []
    handover = Handover(path, lambda: old.sockets, lambda: left.append("left"))
    await handover.start()
    taken = await take_over(path)
    taken.give_up()
    assert (await net.ask(old, net.get())).endswith(b"hi")
    again = await take_over(path)
    await again.ready()
    await eventually(lambda: left == ["left"])
    for each in again.sockets["outbound"]:
        each.close()
    await handover.close()


async def test_of_two_successors_only_one_takes_over(net: Net, path: Path) -> None:
    old = await net.sidecar()
    left: list[str] = []
    handover = Handover(path, lambda: old.sockets, lambda: left.append("left"))
    await handover.start()
    one, other = await take_over(path), await take_over(path)
    await one.ready()
    with pytest.raises(TakeoverError, match="another process"):
        await other.ready()
    assert left == ["left"]
    for taken in (one, other):
        taken.give_up()
    await handover.close()


async def test_more_sockets_are_handed_over_than_one_message_can_carry(path: Path) -> None:
    sockets = {f"tcp:{'a-long-name-' * 20}{number}": [socket.socket() for _ in range(9)] for number in range(60)}
    handover = Handover(path, lambda: sockets, lambda: None)
    await handover.start()
    taken = await take_over(path)
    try:
        assert list(taken.sockets) == list(sockets)
        for name, listening in sockets.items():
            ours = [os.fstat(each.fileno()).st_ino for each in listening]
            assert [os.fstat(each.fileno()).st_ino for each in taken.sockets[name]] == ours
            assert not any(each.get_inheritable() for each in taken.sockets[name])
    finally:
        taken.give_up()
        for each in [each for listening in sockets.values() for each in listening]:
            each.close()
    await handover.close()


async def test_a_successor_that_takes_too_long_to_be_ready_is_told_so_and_nothing_changes(
    net: Net, path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("homeport.sidecar.takeover._READY_S", 0.05)
    old = await net.sidecar()
    left: list[str] = []
    handover = Handover(path, lambda: old.sockets, lambda: left.append("left"))
    await handover.start()
    slow = await take_over(path)
    await eventually(lambda: "came to nothing" in caplog.text)
    with pytest.raises(TakeoverError, match="to start"):
        await slow.ready()
    slow.give_up()
    assert left == []
    await handover.close()


async def test_sockets_of_other_addresses_are_not_taken(net: Net, path: Path) -> None:
    old = await net.sidecar(admin="127.0.0.1:0")
    handover = Handover(path, lambda: old.sockets, lambda: None)
    await handover.start()
    taken = await take_over(path)
    kept = taken.matching({"outbound": old.at["outbound"], "admin": "127.0.0.1:1"})
    assert list(kept) == ["outbound"]
    taken.give_up()
    await handover.close()


async def test_the_last_to_listen_for_successors_owns_the_path(net: Net, path: Path) -> None:
    first, second = (Handover(path, dict, lambda: None) for _ in range(2))
    await first.start()
    await second.start()
    await first.close()
    assert _is_ours_alone(path)
    (await take_over(path)).give_up()
    await second.close()
    assert not _is_ours_alone(path)


def _is_ours_alone(path: Path) -> bool:
    return path.exists() and path.stat().st_mode & 0o077 == 0


async def test_nobody_to_take_over_from_is_an_error_that_names_the_place(path: Path) -> None:
    with pytest.raises(TakeoverError, match=str(path)):
        await take_over(path)


@pytest.mark.parametrize("reply", [b"nonsense", b"", json.dumps({"outbound": 3}).encode(), b'{"outbound": "x"}'])
async def test_whoever_answers_nonsense_is_not_believed(path: Path, reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        writer.close()

    server = await asyncio.start_unix_server(answer, str(path))
    with pytest.raises(TakeoverError, match="does not hand over"):
        await take_over(path)
    server.close()


@pytest.mark.parametrize("said", [b"", b"hello\n", HELLO[:-1], HELLO + b"not yet\n"])
async def test_whoever_asks_wrongly_ends_nothing(net: Net, path: Path, said: bytes) -> None:
    old = await net.sidecar(static={"orders": [(await net.answering(net.ok())).address]})
    left: list[str] = []
    handover = Handover(path, lambda: old.sockets, lambda: left.append("left"))
    await handover.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(said)
    writer.write_eof()
    async with asyncio.timeout(net.patience_s):
        await reader.read()
    writer.close()
    assert left == []
    assert (await net.ask(old, net.get())).endswith(b"hi")
    await handover.close()


def test_sockets_that_share_a_port_share_it_with_nobody_else() -> None:
    made = bind("127.0.0.1:0", 3)
    assert len({address_of(each) for each in made}) == 1
    for count in (1, 2):
        with pytest.raises(OSError, match="in use"):
            bind(address_of(made[0]), count)
    for each in made:
        each.close()


@pytest.mark.parametrize("workers", range(1, 7))
@pytest.mark.parametrize("sockets", range(1, 7))
def test_every_worker_has_a_socket_and_every_socket_a_worker(sockets: int, workers: int) -> None:
    made = [socket.socket() for _ in range(sockets)]
    hands = dealt(made, workers)
    assert len(hands) == workers
    assert all(hands)
    assert {id(each) for hand in hands for each in hand} == {id(each) for each in made}
    for each in made:
        each.close()
