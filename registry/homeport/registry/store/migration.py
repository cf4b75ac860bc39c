"""A whole store moved to another place: from a data directory, a backup or etcd, into a directory or etcd.

What arrives is a history of its own, with a new name. In a directory it keeps its revisions; etcd gives every key a new
one, so what is compared afterwards (`meaning`) is keys, values and leases. In etcd a mark stands under the prefix until
all is there and compared: no replica starts over half a store, and who begins again clears what was cut off.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.mvcc import FIRST_REVISION, Mvcc
from homeport.registry.core.txn import Range
from homeport.registry.store.backups import install_backup, write_backup
from homeport.registry.store.contract import LeaseRecord
from homeport.registry.store.directory import make_directory
from homeport.registry.store.etcd_batches import Layout
from homeport.registry.store.etcd_cluster import EtcdCluster, Refused, Unreachable, Write
from homeport.registry.store.etcd_reading import read_all
from homeport.registry.store.journal import FILE_NAME, Journal

_AT_ONCE: Final = 100  # keys in one transaction, of the 128 operations that etcd takes
_AT_ONCE_BYTES: Final = 512 * 1024  # of its 1.5 MiB; one largest value goes alone
_TRIES_MAX: Final = 50  # of one transaction, while members fail over: ten seconds at least
_RETRY_S: Final = 0.2

Show = Callable[[int], None]


def meaning(entries: Sequence[KeyValue]) -> str:
    """A digest of what a store says, whatever the revisions and whichever replica runs its leases."""
    digest = hashlib.blake2b(digest_size=16)
    for kv in sorted(entries, key=lambda kv: kv.key):
        for field in (kv.key, _value(kv)):
            digest.update(len(field).to_bytes(8, "big") + field)
        digest.update(kv.lease.to_bytes(8, "big"))
    return digest.hexdigest()


def _value(kv: KeyValue) -> bytes:
    """The value, of a lease without what only its present replicas need."""
    if not kv.key.startswith(keys.LEASES):
        return kv.value
    record = wire.decode(LeaseRecord, kv.value)
    return wire.encode(msgspec.structs.replace(record, owner="", attached=0))


def read_directory(path: str) -> list[KeyValue]:
    """What the journal in a data directory holds.

    Raises:
        JournalError: a registry has it open, or it cannot be read.
        InvalidArgument: there is none.
    """
    file = os.path.join(path, FILE_NAME)
    if not os.path.exists(file):
        raise InvalidArgument(f"{path} holds no registry", field="from")
    journal = Journal(file, "")
    try:
        return _entries(journal.load())
    finally:
        journal.close()


def _entries(mvcc: Mvcc) -> list[KeyValue]:
    return list(mvcc.range(Range(b"", b"")).entries)


def write_directory(path: str, entries: Sequence[KeyValue], rng: Rng) -> str:
    """Make a data directory of it; return the new store's name.

    Raises:
        JournalError: it cannot be written.
        InvalidArgument: a registry is there already.
    """
    file = os.path.join(path, FILE_NAME)
    if os.path.exists(file):
        raise InvalidArgument(f"{path} holds a registry already; name an empty directory", field="to")
    make_directory(path)
    store_id = f"{rng.randrange(1 << 64):016x}"
    plain = [msgspec.structs.replace(kv, value=_value(kv)) for kv in entries]
    with tempfile.TemporaryDirectory(dir=path, prefix="migrating-") as folder:
        whole = os.path.join(folder, "backup")
        write_backup(whole, store_id, plain, max((kv.mod_revision for kv in plain), default=FIRST_REVISION))
        install_backup(whole, file, store_id)
    _expect_same(entries, read_directory(path))
    return store_id


async def read_etcd(cluster: EtcdCluster, prefix: bytes) -> tuple[list[KeyValue], int]:
    """What a store in etcd holds, and how many replicas serve it now.

    Raises:
        InvalidArgument: there is none, or only what was left of a migration.
    """
    layout = Layout(prefix)
    found = (await cluster.page(layout.id, None, 0, 1)).entries
    if not found or (await cluster.page(layout.migrating, None, 0, 1)).entries:
        raise InvalidArgument(f"there is no whole registry under {prefix.decode()!r}", field="from")
    layout.named(found[0])
    everything = await read_all(cluster, layout)
    return everything.entries, len(everything.members)


async def write_etcd(cluster: EtcdCluster, prefix: bytes, entries: Sequence[KeyValue], rng: Rng, show: Show) -> str:
    """Write it under an empty prefix; return the new store's name.

    Raises:
        InvalidArgument: a registry is there already.
        Refused: etcd does not let us, or somebody else writes there.
        Unreachable: etcd does not answer; to begin again is safe.
    """
    layout = Layout(prefix)
    if (await cluster.page(layout.id, None, 0, 1)).entries:
        if not (await cluster.page(layout.migrating, None, 0, 1)).entries:
            raise InvalidArgument(f"there is a registry under {prefix.decode()!r} already; name another", field="to")
        await _clear(cluster, layout)
    store_id = f"{rng.randrange(1 << 64):016x}"
    begin = [Write(layout.id, store_id.encode()), Write(layout.migrating, store_id.encode())]
    await _carry_out(cluster, [(layout.id, 0)], begin, layout.migrating, store_id)
    found = (await cluster.page(layout.id, None, 0, 1)).entries
    marked = (await cluster.page(layout.migrating, None, 0, 1)).entries
    if not found or not marked or layout.named(found[0]) != store_id:
        raise Refused(f"somebody else writes under {prefix.decode()!r}")
    guard = [(layout.migrating, marked[0].mod_revision)]
    done = 0
    for writes in _portions(layout, entries):
        await _carry_out(cluster, guard, writes, layout.migrating, store_id)
        done += len(writes)
        show(done)
    _expect_same(entries, (await read_all(cluster, layout)).entries)
    await _carry_out(cluster, guard, [Write(layout.migrating, None)], layout.id, store_id)
    return store_id


async def _clear(cluster: EtcdCluster, layout: Layout) -> None:
    """Remove what a migration that was cut off has left, its mark last."""
    found = await read_all(cluster, layout)
    for at in range(0, len(found.entries), _AT_ONCE):
        writes = [layout.write(kv.key, None) for kv in found.entries[at : at + _AT_ONCE]]
        await _carry_out(cluster, [], writes, layout.migrating, "")
    await _carry_out(cluster, [], [Write(layout.id, None), Write(layout.migrating, None)], layout.id, "")


def _portions(layout: Layout, entries: Sequence[KeyValue]) -> Iterator[list[Write]]:
    writes: list[Write] = []
    size = 0
    for kv in entries:
        value = _value(kv)
        if writes and (len(writes) >= _AT_ONCE or size + len(kv.key) + len(value) > _AT_ONCE_BYTES):
            yield writes
            writes, size = [], 0
        writes.append(layout.write(kv.key, value, kv.lease))
        size += len(kv.key) + len(value)
    if writes:
        yield writes


async def _carry_out(
    cluster: EtcdCluster, guards: Sequence[tuple[bytes, int]], writes: Sequence[Write], read: bytes, store_id: str
) -> None:
    """Have it done, however often it must be asked for: doing it twice is as good as once."""
    for attempt in range(_TRIES_MAX):
        try:
            answer = await cluster.txn(guards, writes, read)
        except Unreachable:
            if attempt == _TRIES_MAX - 1:
                raise
            await asyncio.sleep(_RETRY_S)
            continue
        # A lost answer leaves its own mark behind, or takes it away: then the guard of the next attempt does not hold.
        ours = answer.read is not None and answer.read.value.decode() == store_id
        if not answer.succeeded and not (attempt and ours):
            raise Refused("somebody else writes at the same place; nothing of theirs was touched")
        return


def _expect_same(entries: Sequence[KeyValue], arrived: Sequence[KeyValue]) -> None:
    if meaning(entries) != meaning(arrived):
        raise Refused(f"of {len(entries)} keys {len(arrived)} arrived, or others: the copy is not the same")
