"""What survives a restart, and what a backup holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeport.client import Check, Client, HomeportError, KvEvents, Unavailable
from homeport.client.core.messages import BackupOpen, BackupRead, LeaseGrant, RestoreCommit, RestoreWrite
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry
from homeport.registry.core.leases import TICK_S
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.journal import JournalError

Eventually = Callable[..., Awaitable[None]]


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Registry(tmp_path, node="n") as registry, registry.client() as client:
        await client.kv.put("a", b"1")
        await client.kv.put("a", b"2")
        await client.kv.put("b", b"x")
        await client.kv.delete("b")
        await client.register("orders", port=1, ttl_s=30.0, id="o").start()
        await client.register(
            "static", port=2, ttl_s=0.0, id="s", checks=[Check(name="c", kind="ttl", ttl_s=9)]
        ).start()
        before = registry.store.mvcc
        hashes = [before.hash(revision) for revision in range(2, before.revision + 1)]
        store_id = registry.store.store_id
    async with Registry(tmp_path, node="n") as registry, registry.client() as client:
        after = registry.store.mvcc
        assert registry.store.store_id == store_id
        assert (after.revision, after.compact_revision) == (before.revision, before.compact_revision)
        assert [after.hash(revision) for revision in range(2, after.revision + 1)] == hashes, "its history too"
        assert await client.services() == {"orders": (), "static": ()}
        assert len(await client.resolve("orders")) == 1
        entry = await client.kv.get("a")
        assert entry is not None
        assert (entry.value, entry.version) == (b"2", 2)
        assert await client.kv.put("a", b"3") == before.revision + 1


async def test_a_key_watch_resumes_over_a_restart_without_losing_anything(
    tmp_path: Path, unused_port: int, eventually: Eventually
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        events = client.kv.watch("a", prefix=True)
        async with Registry(tmp_path) as registry:
            await registry.serve(rpc=address)
            first = asyncio.ensure_future(anext(events))
            await eventually(lambda: registry.peers.watches == 1)
            await client.kv.put("a1", b"1")
            await first
        async with Registry(tmp_path) as registry, registry.client() as inside:
            await inside.kv.put("a2", b"2")  # before the watcher is back
            await registry.serve(rpc=address)
            event = await anext(events)
            assert isinstance(event, KvEvents)
            assert [change.key for change in event.events] == [b"a2"]
        await events.aclose()


@virtual_time(seed=11)
async def test_after_a_restart_every_surviving_lease_has_its_full_ttl_again(tmp_path: Path) -> None:
    loop = running_loop()
    async with Registry(tmp_path) as registry, registry.client() as client:
        lease = (await client.call(LeaseGrant(ttl_s=10.0))).lease
        await client.kv.put("a", b"1", lease=lease)
        await asyncio.sleep(9.0)
    async with Registry(tmp_path) as registry, registry.client() as client:
        restarted = loop.time()
        gone = asyncio.Event()
        registry.store.listen(lambda _revision, _changes: gone.set())
        await gone.wait()
        assert 10.0 <= loop.time() - restarted <= 10.0 + TICK_S
        assert await client.kv.get("a") is None


async def test_a_second_registry_on_the_same_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with Registry(tmp_path) as registry, registry.client() as client:
        with pytest.raises(JournalError, match="in use by another process"):
            await Registry(tmp_path).start()
        await client.kv.put("a", b"1")


async def test_history_on_disk_is_compacted_with_the_history_in_memory(tmp_path: Path, eventually: Eventually) -> None:
    async with Registry(tmp_path) as registry, registry.client() as client:
        for number in range(60):
            await client.kv.put("same", b"%d" % number)
            await client.kv.put(f"gone{number}", b"")
            await client.kv.delete(f"gone{number}")
        registry.store.compact(registry.store.mvcc.revision - 5)
        await client.kv.put("last", b"")
        assert isinstance(registry.store, EmbeddedStore)
        journal = registry.store._journal
        assert journal is not None
        await eventually(lambda: journal.compact_revision == registry.store.mvcc.compact_revision)
        digest = registry.store.mvcc.hash()
    async with Registry(tmp_path) as registry:
        assert registry.store.mvcc.hash() == digest
        assert registry.store.mvcc.history_length() == 6
        assert len(registry.store.mvcc) == 2


@pytest.mark.parametrize("durable", [True, False])
async def test_a_backup_puts_everything_back_under_a_new_identity(tmp_path: Path, durable: bool) -> None:
    async with Registry(tmp_path if durable else None, node="n") as registry:
        at = await registry.serve(rpc="127.0.0.1:0", http="127.0.0.1:0")
        async with Client(at.rpc or "") as client, registry.client() as inside:
            for number in range(30):
                await client.kv.put(f"k{number}", b"v" * 50_000)
            await client.register("orders", port=1, ttl_s=30.0, id="o", node="n").start()
            revision, digest = registry.store.mvcc.revision, registry.store.mvcc.hash()
            store_id = registry.store.store_id
            copy = await _download(client)
            await client.kv.put("k3", b"after the backup")
            await client.kv.delete("k1", prefix=True)
            await _upload(client, copy)
            assert (await client.call(RestoreCommit(), timeout_s=60.0)).applied
            while registry.store.store_id == store_id:
                await asyncio.wait_for(client.wait_connected(1.0), 30.0)
                await _turn()
            assert len(await client.kv.list()) == 30
            entry = await inside.kv.get("k3")
            assert entry is not None
            assert entry.value == b"v" * 50_000
            assert registry._at == at, "at the same addresses"
            assert "orders" in await client.services()
            assert registry.store.mvcc.hash(revision) == digest, "what it was at that revision, to the byte"
    if durable:
        async with Registry(tmp_path) as registry, registry.client() as inside:
            assert len(await inside.kv.list()) == 30


async def _turn() -> None:
    turn = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, turn.set)
    await turn.wait()


async def test_a_damaged_backup_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with Registry(tmp_path) as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client:
            await client.kv.put("a", b"MARKER" * 100)
            copy = await _download(client)
            await client.kv.put("a", b"later")
            damaged = copy.replace(b"MARKERMARKER", b"MARKERmARKER", 1)
            assert damaged != copy
            for bad in (damaged, copy[: len(copy) // 2], b"", b"not a database at all" * 1000):
                await _upload(client, bad)
                with pytest.raises(HomeportError) as refused:
                    await client.call(RestoreCommit(), timeout_s=60.0)
                assert not isinstance(refused.value, Unavailable)
            entry = await client.kv.get("a")
            assert entry is not None
            assert entry.value == b"later"


async def test_a_backup_is_consistent_at_one_revision_while_writes_go_on(tmp_path: Path) -> None:
    async with Registry(tmp_path / "one") as registry, registry.client() as client:
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await client.kv.put(f"left{number % 50}", b"%d" % number * 500)
                await client.kv.put(f"right{number % 50}", b"%d" % number * 500)

        writing = asyncio.ensure_future(write())
        await registry.store.backup(str(tmp_path / "copy"))
        stop.set()
        await writing
        mvcc = registry.store.mvcc
        async with Registry(None) as other:
            await other.restore(str(tmp_path / "copy"))
            revision = other.store.mvcc.revision
            assert revision > 1
            assert other.store.mvcc.hash() == mvcc.hash(revision), "exactly what the store was at that revision"


async def _download(client: Client) -> bytes:
    opened = await client.call(BackupOpen(), timeout_s=60.0)
    data = b""
    while piece := (await client.call(BackupRead(offset=len(data)))).data:
        data += piece
    assert len(data) == opened.size
    return data


async def _upload(client: Client, data: bytes) -> None:
    for offset in range(0, len(data) or 1, 500_000):
        await client.call(RestoreWrite(offset=offset, data=data[offset : offset + 500_000]))


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("file", "file of that name; choose another"),
        ("file/below", "file of that name; choose another"),
        ("x" * 300, "choose another"),
        ("nul\0", "choose another"),
    ],
)
async def test_a_data_directory_that_cannot_be_one_is_refused_in_words_that_say_what_to_do(
    path: str, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    registry = Registry(data_dir=tmp_path / path)
    with pytest.raises(JournalError, match=advice):
        await registry.start()


async def test_a_journal_that_is_a_directory_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "registry.db").mkdir()
    with pytest.raises(JournalError, match="check the permissions"):
        await Registry(data_dir=tmp_path).start()
