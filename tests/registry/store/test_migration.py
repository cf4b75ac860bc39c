"""A store moved into etcd and back: whole, compared, and never half."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from homeport.client.core.errors import HomeportError, InvalidArgument
from homeport.client.core.model import KeyValue
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import run_virtual, running_loop, virtual_time
from homeport.registry.core import keys
from homeport.registry.core.txn import Put, Range, Txn
from homeport.registry.store.contract import lease_put
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd_cluster import Refused
from homeport.registry.store.journal import JournalError
from homeport.registry.store.migration import meaning, read_directory, read_etcd, write_directory, write_etcd
from tests.registry.store.test_replicas import Replica

PREFIX = b"/homeport/"
LEASE = 77


async def filled(data_dir: Path | None, count: int = 450) -> EmbeddedStore:
    """A running store with keys of all sizes, some on a lease."""
    store = EmbeddedStore(
        now=running_loop().time, rng=random.Random(1), data_dir=None if data_dir is None else str(data_dir)
    )
    await store.start()
    await store.commit(Txn(then=(lease_put(LEASE, 5.0), Put(b"on a lease", b"x", LEASE))))
    for at in range(count):
        await store.commit(Txn(then=(Put(b"k/%04d" % at, bytes(at * 20)),)))
    return store


def everything(store: EmbeddedStore | Replica) -> list[KeyValue]:
    mvcc = store.mvcc if isinstance(store, EmbeddedStore) else store.store.mvcc
    return list(mvcc.range(Range(b"", b"")).entries)


def test_there_and_back_it_is_the_same_with_another_name(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "one").mkdir()
        store = await filled(tmp_path / "one")
        before, names = everything(store), {store.store_id}
        with pytest.raises(JournalError):
            read_directory(str(tmp_path / "one"))
        await store.close()
        link = ModelLink(ModelEtcd(), 0.001)
        shown: list[int] = []
        moved = read_directory(str(tmp_path / "one"))
        names.add(await write_etcd(link, PREFIX, moved, random.Random(2), shown.append))
        assert shown == sorted(shown)
        assert shown[-1] == len(before)
        replica = Replica(link.etcd, 3)
        await replica.store.start()
        names.add(replica.store.store_id)
        assert meaning(everything(replica)) == meaning(before)
        assert await replica.renew(LEASE) == 5.0, "its leases go on"
        found, replicas = await read_etcd(link, PREFIX)
        assert replicas == 1
        await replica.store.close()
        names.add(write_directory(str(tmp_path / "two"), found, random.Random(4)))
        back = EmbeddedStore(now=running_loop().time, rng=random.Random(5), data_dir=str(tmp_path / "two"))
        await back.start()
        names.add(back.store_id)
        assert meaning(everything(back)) == meaning(before)
        assert back.lease_renew(LEASE) == 5.0
        assert len(names) == 3, "each copy is a history of its own"
        await back.close()

    run_virtual(run(), seed=1)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_what_was_cut_off_serves_nobody_and_can_be_done_again(at: int) -> None:
    async def run() -> None:
        store = await filled(None)
        entries = everything(store)
        etcd = ModelEtcd()
        link = ModelLink(etcd, 0.001)

        def cut(_done: int) -> None:
            nonlocal at
            at -= 1
            if not at:
                link.fail(True)

        with pytest.raises(HomeportError):
            await write_etcd(link, PREFIX, entries, random.Random(2), cut)
        link.fail(False)
        with pytest.raises(Refused, match="migration"):
            await Replica(etcd, 3).store.start()
        with pytest.raises(InvalidArgument):
            await read_etcd(link, PREFIX)
        await write_etcd(link, PREFIX, entries[:-1], random.Random(4), lambda _done: None)
        replica = Replica(etcd, 5)
        await replica.store.start()
        assert meaning(everything(replica)) == meaning(entries[:-1])
        await replica.store.close()
        await store.close()

    run_virtual(run(), seed=2)


@virtual_time(seed=3)
async def test_answers_that_get_lost_change_nothing() -> None:
    store = await filled(None, 120)
    link = ModelLink(ModelEtcd(), 0.001)
    link.lose_answers = 2

    def lose(_done: int) -> None:
        link.lose_answers = 1

    await write_etcd(link, PREFIX, everything(store), random.Random(2), lose)
    found, _ = await read_etcd(link, PREFIX)
    assert meaning(found) == meaning(everything(store))
    await store.close()


@virtual_time(seed=4)
async def test_nothing_that_is_there_is_written_over() -> None:
    etcd = ModelEtcd()
    replica = Replica(etcd, 1)
    await replica.store.start()
    await replica.put(b"a", b"1")
    with pytest.raises(InvalidArgument, match="already"):
        await write_etcd(ModelLink(etcd), PREFIX, [], random.Random(2), lambda _done: None)
    assert replica.get(b"a") == b"1"
    await replica.store.close()


def test_a_directory_that_holds_a_registry_is_left_alone(tmp_path: Path) -> None:
    write_directory(str(tmp_path), [KeyValue(keys.USER + b"a", b"1", 2, 2, 1, 0)], random.Random(1))
    with pytest.raises(InvalidArgument, match="already"):
        write_directory(str(tmp_path), [], random.Random(2))
    assert [kv.value for kv in read_directory(str(tmp_path))] == [b"1"]
    with pytest.raises(InvalidArgument):
        read_directory(str(tmp_path / "none"))
