"""Power cuts: whatever was acknowledged is there afterwards, whole, in order, and nothing that was never decided.

A life of the store is recorded on a disk, once for each seed; then the power goes at random positions of the record,
the files are rebuilt as such a cut may leave them, and the ordinary code opens them. A quarter of the stores lose
power again while they recover. With anything but `synchronous=FULL` the same test finds losses, as it must.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from homeport.mesh.simulation.disk import Disk
from homeport.mesh.testing import run_virtual
from homeport.registry.store.journal import Synchronous
from tests.crash.recovery import cut_and_recover
from tests.crash.story import PromiseBroken, Story
from tests.crash.workload import Life, of_long, seeds

CUTS = 100  # of one life


def cut_power(directory: Path, seed: int, cuts: int, synchronous: Synchronous = "FULL") -> None:
    """Record a life and cut its power at random positions.

    Raises:
        PromiseBroken: something that was acknowledged is lost.
    """
    print(f"HOMEPORT_SEED={seed}")
    rng = random.Random(seed)
    story = Story()
    with Disk() as disk:
        (directory / "disk").mkdir()
        run_virtual(Life(directory / "disk", disk, story, rng, synchronous).run(), seed=seed)
        positions = [rng.randint(0, disk.position) for _ in range(cuts)]
        cut_and_recover(disk, story, positions, directory / "left", rng, seed)


@pytest.mark.parametrize("seed", seeds(3))
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path, seed: int) -> None:
    cut_power(tmp_path, seed, CUTS)


@pytest.mark.long
@pytest.mark.parametrize("seed", seeds(of_long(30, 6), first=1001))
def test_what_was_acknowledged_survives_thousands_of_power_cuts(tmp_path: Path, seed: int) -> None:
    cut_power(tmp_path, seed, CUTS)


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_without_full_syncs_power_cuts_lose_what_was_acknowledged(tmp_path: Path, synchronous: Synchronous) -> None:
    with pytest.raises(PromiseBroken):
        cut_power(tmp_path, seed=1, cuts=CUTS, synchronous=synchronous)
