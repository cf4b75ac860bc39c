"""A disk that fails: full, broken or half-writing, at any operation.

The store turns read-only and says why; reads and watches go on; it recovers by itself when the disk does. What was
acknowledged stays, what was refused never happened, what is unknown happened wholly or not at all; and all of that
holds if the power goes at any moment, even where a failed sync made the kernel forget what it had not written.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import pytest

from homeport.client.core.errors import OutcomeUnknown, ReadOnly
from homeport.client.core.model import Lost
from homeport.mesh.simulation.disk import Call, Disk, Error, Fault
from homeport.mesh.testing import run_virtual, running_loop
from homeport.registry.core.txn import Compare, Put, Range, Txn
from homeport.registry.core.watches import Watcher
from homeport.registry.store.journal import JournalError
from tests.crash.recovery import cut_and_recover, expect_intact
from tests.crash.story import Step, Story
from tests.crash.workload import NAMES, WRITERS, make_store, of_long, seeds

CUTS = 25  # of the power, for each life on a failing disk
FAULTS = 6  # in one life
RECOVERED_S = 3.0  # more than two looks at the disk apart
ALL: frozenset[Call] = frozenset(("open", "read", "write", "truncate", "sync", "delete"))


_WRITES: Final[frozenset[Call]] = frozenset(("write", "truncate"))
_SYNCS: Final[frozenset[Call]] = frozenset(("sync",))


class Sufferer:
    """A store on a disk that fails again and again, with writers that note what they were told."""

    def __init__(self, directory: Path, disk: Disk, story: Story, rng: random.Random) -> None:
        self.disk = disk
        self.story = story
        self.rng = rng
        self.store = make_store(directory, rng, disk.name)
        self.unknown: list[frozenset[tuple[bytes, bytes]]] = []
        self.refused: list[frozenset[tuple[bytes, bytes]]] = []
        self.acknowledged = 0
        self.stops = 0
        self.done = False
        self.watcher: Watcher
        self.woken = asyncio.Event()
        self.heard: dict[int, Step] = {}

    async def run(self) -> None:
        store, story = self.store, self.story
        await store.start()
        story.follow(store, self.disk)
        first = store.mvcc.revision + 1
        self.watcher = store.watch(b"", b"", 0, self.woken.set)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(self._write())
            watching = tasks.create_task(self._watch())
            for _ in range(FAULTS):
                await asyncio.sleep(self.rng.uniform(0.0, 0.5))
                await self._suffer()
            self.done = True
            watching.cancel()
        self._take()
        assert self.heard == {revision: story.steps[revision] for revision in range(first, story.newest + 1)}
        await store.close()
        steps = {frozenset((key, kv.value) for key, kv in step.items() if kv) for step in story.steps.values()}
        written = {pair for step in steps for pair in step}
        for attempt in self.unknown:
            assert attempt in steps or not attempt & written, "an unknown write happened by half"
        for attempt in self.refused:
            assert not attempt & written, "a refused write happened"

    async def _watch(self) -> None:
        while True:
            await self.woken.wait()
            self.woken.clear()
            self._take()

    def _take(self) -> None:
        while self.watcher.pending:
            batch = self.watcher.take()
            assert not isinstance(batch, Lost)
            if batch is not None:
                self.heard[batch.revision] = {change.key: change.kv for change in batch.changes}

    async def _write(self) -> None:
        while not self.done:
            await asyncio.sleep(self.rng.uniform(0.0, 0.02))
            store = self.store
            if self.rng.random() < 0.03 and store.mvcc.revision > store.mvcc.compact_revision:
                store.compact(self.rng.randint(store.mvcc.compact_revision + 1, store.mvcc.revision))
            await self._put(self.rng.sample(NAMES, self.rng.randint(1, 4)))

    async def _put(self, names: list[bytes], compare: tuple[Compare, ...] = ()) -> bool:
        size = self.rng.choices((16, self.rng.randrange(20_000)), (20, 1))[0]
        attempt = {name: self.rng.randbytes(16 + size) for name in names}
        pairs = frozenset(attempt.items())
        self.story.attempts.add(pairs)
        try:
            puts = tuple([Put(name, value) for name, value in attempt.items()])
            result = await self.store.commit(Txn(compare, puts))
        except OutcomeUnknown:
            self.unknown.append(pairs)
            return False
        except ReadOnly:
            self.story.attempts.discard(pairs)
            self.refused.append(pairs)
            return False
        assert result.succeeded, "a compare did not see the truth"
        step = self.story.steps[result.revision]
        assert {key: kv.value for key, kv in step.items() if kv} == attempt
        self.acknowledged += 1
        return True

    async def _suffer(self) -> None:
        """One fault, from its beginning to the recovery from it."""
        rng, store, loop = self.rng, self.store, running_loop()
        calls = rng.choice((ALL, _WRITES, _SYNCS, _WRITES | _SYNCS))
        fault = Fault(calls, rng.choice(("full", "io")), rng.random() < 0.5, rng.randrange(30))
        known = store.mvcc.get(b"k/control")
        with self.disk.failing(fault):
            until = loop.time() + rng.uniform(0.5, 5.0)
            while loop.time() < until:
                await asyncio.sleep(0.05)
                if store.read_only is not None:
                    self._expect_readable()
            self.stops += store.read_only is not None
        until = loop.time() + RECOVERED_S
        while store.read_only is not None:
            assert loop.time() < until, f"still read-only: {store.read_only}"
            await asyncio.sleep(0.05)
        known = store.mvcc.get(b"k/control")
        truth = Compare(b"k/control", "mod", "=", known.mod_revision if known else 0)
        assert await self._put([b"k/control"], (truth,))

    def _expect_readable(self) -> None:
        store, story = self.store, self.story
        assert store.read_only
        with pytest.raises(ReadOnly) as caught:
            store.commit(Txn(then=(Put(b"k/refused", b""),)))
        assert store.read_only in caught.value.message
        entries = store.mvcc.range(Range(b"", b"")).entries
        assert {kv.key: kv for kv in entries} == story.states[story.newest]
        numbers = store.numbers()
        assert numbers["head_revision"] == numbers["revision"] == story.newest


def suffer(directory: Path, seed: int) -> None:
    print(f"HOMEPORT_SEED={seed}")
    rng = random.Random(seed)
    story = Story()
    (directory / "disk").mkdir()

    async def live() -> Sufferer:
        sufferer = Sufferer(directory / "disk", disk, story, rng)
        await sufferer.run()
        return sufferer

    with Disk() as disk:
        sufferer = run_virtual(live(), seed=seed)
        assert sufferer.stops, "no fault was ever met"
        assert sufferer.acknowledged
        expect_intact(directory / "disk")
        positions = [*(rng.randint(0, disk.position) for _ in range(CUTS)), disk.position]
        cut_and_recover(disk, story, positions, directory / "left", rng, seed)


@pytest.mark.parametrize("seed", seeds(4))
def test_a_failing_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    suffer(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", seeds(of_long(60, 8), first=2001))
def test_disks_that_fail_in_many_ways_lose_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    suffer(tmp_path, seed)


@pytest.mark.parametrize("error", ["full", "io"])
@pytest.mark.parametrize("filled", [False, True], ids=["new", "filled"])
def test_a_store_that_cannot_open_its_disk_says_so_and_opens_it_later(
    tmp_path: Path, error: Error, filled: bool
) -> None:
    """Whichever operation is the first to fail."""

    async def fail(directory: Path, disk: Disk, skip: int) -> int:
        story, rng = Story(), random.Random(skip)
        if filled:
            store = make_store(directory, rng, disk.name)
            await store.start()
            story.follow(store, disk)
            for name in NAMES:
                await store.commit(Txn(then=(Put(name, b"1"),)))
            await store.close()
        fault = Fault(ALL, error, skip=skip)
        with disk.failing(fault):
            store = make_store(directory, rng, disk.name)
            try:
                await store.start()
            except JournalError as raised:
                refusal = raised.message
            else:
                refusal = ""
                assert store.mvcc.revision == story.newest
                await store.close()
            assert not refusal or str(directory) in refusal
        store = make_store(directory, rng, disk.name)
        await store.start()
        story.expect_kept(store, disk.position, rng)
        await store.close()
        return fault.hits

    with Disk() as disk:
        skip = 0
        while run_virtual(fail(tmp_path / f"{skip}", disk, skip)):
            skip += 1
    assert skip > (6 if filled else 30)
