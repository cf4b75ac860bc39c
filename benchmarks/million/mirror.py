"""What each replica holds: a mirror of every key, and the catalogue made of it; and who is told of a change."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Final, cast

import msgspec

from benchmarks.contenders.homeport import example_instances
from benchmarks.million import CpuTimer
from benchmarks.proc import rss_bytes
from homeport.client.core import wire
from homeport.client.core.model import Instance, KeyValue
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change
from homeport.registry.peers import Outgoing, Peer, Peers
from homeport.registry.store.contract import LeaseRecord, Store

_OF_SERVICE: Final = 3
_CHANGED: Final = 30  # instances, all followed
_ROUNDS: Final = 20  # in which each of them changes
_LEASES_FROM: Final = 1 << 60  # as long as drawn ones


class _Reader:
    """An outlet that takes everything at once: what it costs to hand it over is ours, what sending costs is not."""

    def __init__(self) -> None:
        self.bytes = 0

    def ready(self) -> bool:
        return True

    def send(self, _watch: int, outgoing: Outgoing) -> None:
        self.bytes += len(outgoing.head) + len(outgoing.encoded)

    def deliver(self, watch: int, outgoing: Outgoing) -> bool:
        self.send(watch, outgoing)
        return True

    def wake(self) -> None:
        """Nothing waits."""


def held(instances: int, ttl_s: float, followers: int) -> dict[str, float]:
    """Fill a mirror and its catalogue, change some instances, and hand the changes to followers."""
    gc.collect()
    empty = rss_bytes(os.getpid())
    loading, following, delivering = CpuTimer(), CpuTimer(), CpuTimer()
    mvcc, catalogue = Mvcc(), Catalogue()
    gc.freeze()
    with loading.running():
        mvcc.load(_entries(instances, ttl_s), 3 * instances, 3 * instances)
        catalogue.load(mvcc)
    mirror = rss_bytes(os.getpid()) - empty
    gc.freeze()
    peers = Peers(cast("Store", None), catalogue)  # which it asks for watches of keys alone
    changed = [one for one, _ in zip(_examples(instances), range(_CHANGED), strict=False)]
    readers = [_Reader() for _ in range(followers)]
    for name in dict.fromkeys(one.service for one in changed):
        for number, reader in enumerate(readers):
            peer = Peer(reader)
            peers.follow(peer, number, name)
            peer.flush(catalogue)
    for weight in range(2, 2 + _ROUNDS):
        for one in changed:
            key = keys.instance(one.service, one.node, one.id)
            prev = mvcc.get(key)
            assert prev is not None
            new = wire.encode(msgspec.structs.replace(one, weight=weight, ttl_s=ttl_s))
            revision = mvcc.revision + 1
            kv = KeyValue(key, new, prev.create_revision, revision, prev.version + 1, prev.lease)
            with following.running():
                mvcc.apply(revision, (Change(key, kv, prev),))
                events = catalogue.apply(revision, (Change(key, kv, prev),))
            with delivering.running():
                peers.publish(events)
    changes = _ROUNDS * len(changed)
    gc.unfreeze()
    return {
        "mirror_memory": mirror / 2**30,
        "instance_memory": mirror / instances,
        "load_cpu": loading.total_s,
        "revision_cpu": following.total_s / changes * 1e6,
        "delivery_cpu": delivering.total_s / (changes * followers) * 1e6,
    }


def _examples(instances: int) -> Iterator[Instance]:
    """One after the other: a list of them would be what is measured."""
    for first in range(0, -(-instances // _OF_SERVICE), 1_000):
        yield from example_instances(1_000, _OF_SERVICE, first=first)


def _entries(instances: int, ttl_s: float) -> Iterator[KeyValue]:
    for at, one in zip(range(instances), _examples(instances), strict=False):
        lease = _LEASES_FROM + at
        registered = wire.encode(msgspec.structs.replace(one, ttl_s=ttl_s))
        yield KeyValue(keys.instance(one.service, one.node, one.id), registered, at + 2, at + 2, 1, lease)
        yield KeyValue(keys.id_of(one.node, one.id), one.service.encode(), at + 2, at + 2, 1, lease)
        record = wire.encode(LeaseRecord(ttl_s, f"{at % 5:016x}.1"))
        yield KeyValue(keys.lease(lease), record, at + 2, at + 2, 1, 0)
