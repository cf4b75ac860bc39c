"""A random life of an embedded store, in virtual time: writers, leases that end, compaction, checkpoints, restarts.

Everything is drawn from one generator, so a seed gives the same log of the disk every time.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Final

from homeport.mesh.simulation.disk import Disk
from homeport.mesh.testing import running_loop
from homeport.registry.core import keys
from homeport.registry.core.txn import Compare, Delete, Op, Put, Txn, TxnResult
from homeport.registry.store.backups import verify_backup
from homeport.registry.store.contract import lease_put
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.journal import Synchronous
from tests.crash.story import Story

WRITERS: Final = 6
CALLS: Final = 14  # of each writer between two restarts
NAMES: Final = tuple(b"k/%d" % number for number in range(12))
PAGES: Final = 24  # of log before a checkpoint: several in every life


def seeds(cases: int, first: int = 1) -> list[int]:
    """The seeds of so many cases; the environment variable HOMEPORT_SEED replays one instead."""
    given = os.environ.get("HOMEPORT_SEED")
    return list(range(first, first + cases)) if given is None else [int(given)]


def of_long(full: int, part: int) -> int:
    """How many cases a long test takes: all, or the share that LONG=slice asks for."""
    return part if os.environ.get("LONG") == "slice" else full


def make_store(
    directory: Path, rng: random.Random, vfs: str | None = None, synchronous: Synchronous = "FULL"
) -> EmbeddedStore:
    return EmbeddedStore(
        now=running_loop().time,
        rng=rng,
        data_dir=str(directory),
        vfs=vfs,
        synchronous=synchronous,
        checkpoint_pages=PAGES,
    )


class Life:
    """One store on one disk, from its creation on.

    Args:
        directory: where its files are.
        synchronous: what the journal asks of the disk.
    """

    def __init__(
        self, directory: Path, disk: Disk, story: Story, rng: random.Random, synchronous: Synchronous = "FULL"
    ) -> None:
        self.directory = directory
        self.disk = disk
        self.story = story
        self.rng = rng
        self.synchronous: Synchronous = synchronous
        self.store: EmbeddedStore
        self.leases: list[int] = []
        self.backups = 0

    async def run(self, restarts: int = 2) -> None:
        """Live through so many restarts, and end with the store closed."""
        for _ in range(restarts + 1):
            self.store = make_store(self.directory, self.rng, self.disk.name, self.synchronous)
            await self.store.start()
            self.story.follow(self.store, self.disk)
            async with asyncio.TaskGroup() as writers:
                for _writer in range(WRITERS):
                    writers.create_task(self._write())
            await self.store.close()

    async def _write(self) -> None:
        for _ in range(CALLS):
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.001, self.rng.uniform(0.0, 0.4))))
            await self._call()

    async def _call(self) -> None:
        rng, store = self.rng, self.store
        match rng.choices(
            ("put", "delete", "txn", "grant", "grant and put", "revoke", "renew", "compact", "backup"),
            (12, 4, 5, 3, 2, 2, 2, 1, 0.3),
        )[0]:
            case "put":
                await self._commit(Txn(then=(self._put(rng.choice(NAMES)),)))
            case "delete":
                low, high = sorted(rng.sample(NAMES, 2))
                await self._commit(Txn(then=(Delete(low, high if rng.random() < 0.3 else None),)))
            case "txn":
                some = rng.sample(NAMES, 4)
                guard = Compare(some[0], "mod", rng.choice(("<", ">")), store.mvcc.revision // 2)
                then: tuple[Op, ...] = (*[self._put(name) for name in some[:3]], Delete(some[3]))
                await self._commit(Txn((guard,), then, (self._put(some[3]),)))
            case "grant":
                lease = store.new_lease()
                await store.lease_grant(rng.choice((0.5, 2.0, 600.0)), lease)
                self.leases.append(lease)
            case "grant and put":
                lease = store.new_lease()
                put = Put(rng.choice(NAMES), rng.randbytes(20), lease)
                await self._commit(Txn(then=(lease_put(lease, rng.choice((0.5, 600.0))), put)))
                self.leases.append(lease)
            case "revoke" if self.leases:
                await store.lease_revoke(self.leases.pop(rng.randrange(len(self.leases))))
            case "renew" if self.leases:
                store.lease_renew(rng.choice(self.leases))
            case "compact" if store.mvcc.revision > store.mvcc.compact_revision:
                store.compact(rng.randint(store.mvcc.compact_revision + 1, store.mvcc.revision))
            case "backup":
                self.backups += 1
                copy = self.directory.with_name(f"backup-{self.backups}.db")
                await store.backup(str(copy))
                verify_backup(str(copy))

    def _put(self, name: bytes) -> Put:
        rng = self.rng
        size = rng.choices((rng.randrange(300), rng.randrange(20_000), 200_000), (30, 5, 0.3))[0]
        standing = [lease for lease in self.leases if self.store.mvcc.get(keys.lease(lease)) is not None]
        # A lease that stands now may end at head before this is decided: those that last are safe to name.
        lasting = [lease for lease in standing if (self.store.lease_remaining_s(lease) or 0.0) > 10.0]
        return Put(name, rng.randbytes(size), rng.choice(lasting) if lasting and rng.random() < 0.3 else 0)

    async def _commit(self, txn: Txn) -> TxnResult:
        result = await self.store.commit(txn)
        assert result.revision <= self.story.newest, "answered before it was durable"
        return result
