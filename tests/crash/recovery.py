"""Opening what a power cut left: by the ordinary code, held to the story, written to, and now and then cut again."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Final

import apsw

from homeport.mesh.simulation.disk import Disk
from homeport.mesh.simulation.power import PowerCut
from homeport.mesh.testing import run_virtual
from homeport.registry.core.txn import EndLease, Put, Txn
from homeport.registry.store.contract import lease_put
from homeport.registry.store.journal import FILE_NAME, Journal
from tests.crash.story import PromiseBroken, Story
from tests.crash.workload import make_store

AGAIN: Final = 0.25  # how often the power goes again while a store recovers


def lay_out(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory hold exactly these files."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path, content in files.items():
        (directory / Path(path).name).write_bytes(content)


async def recover(directory: Path, disk: Disk | None, story: Story, position: int, rng: random.Random) -> Story:
    """Open what a power cut left, hold it to the story, write on, and close; return what is its story now."""
    vfs = disk.name if disk is not None else None
    store = make_store(directory, rng, vfs)
    await store.start()
    left = story.expect_kept(store, position, rng)
    left.follow(store, disk)
    lease = store.new_lease()
    await store.commit(Txn(then=(lease_put(lease, 5.0), Put(b"k/again", rng.randbytes(50), lease))))
    writes = [store.commit(Txn(then=(Put(b"k/%d" % number, b"later"),))) for number in range(3)]
    for write in writes:
        await write
    if rng.random() < 0.5:
        await store.commit(Txn(then=(EndLease(lease),)))
    await store.close()
    journal = Journal(str(directory / FILE_NAME), "", vfs=vfs)
    try:
        loaded = journal.load()
    finally:
        journal.close()
    if {key: loaded.get(key) for key in loaded.keys(b"", b"")} != left.states[left.newest]:
        raise PromiseBroken("what was written after the recovery is not there")
    return left


def expect_intact(directory: Path) -> None:
    """SQLite itself finds no fault with a journal's file."""
    db = apsw.Connection(str(directory / FILE_NAME), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        found = db.pragma("integrity_check")
    finally:
        db.close()
    if found != "ok":
        raise PromiseBroken(f"integrity_check: {found}")


def cut_and_recover(
    log: Disk, story: Story, positions: list[int], directory: Path, rng: random.Random, seed: int
) -> None:
    """Cut the power at some positions of a log, in ascending order, and look at each."""
    power = PowerCut(log.log, rng)
    for position in sorted(positions):
        power.advance(position)
        lay_out(directory, power.draw())
        try:
            again = rng.random() < AGAIN
            with Disk() as disk:
                disk.adopt(str(directory))
                start = disk.position
                left = run_virtual(recover(directory, disk, story, position, rng), seed=seed)
                expect_intact(directory)
                if again:
                    second = PowerCut(disk.log, rng)
                    at = rng.randint(start, disk.position)
                    second.advance(at)
                    lay_out(directory, second.draw())
                    # Without a disk of ours: the system's own VFS opens it just as well.
                    run_virtual(recover(directory, None, left, at, rng), seed=seed)
                    expect_intact(directory)
        except BaseException as error:
            error.add_note(f"the power went at operation {position} of {log.position}; HOMEPORT_SEED={seed} replays it")
            raise
