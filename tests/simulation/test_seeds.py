"""Random lives of whole clusters hold every guarantee: some seeds always, hundreds in the long tier.

HOMEPORT_SEED replays one; `make simulate` searches as many as one likes.
"""

from __future__ import annotations

import os

import pytest

from homeport.mesh.simulation import generate, run
from tests.crash.workload import of_long, seeds

QUICK = 16
LONG_FIRST = 1_000  # so that the long tier does not repeat the quick one


def expect_all_held(seed: int) -> None:
    result = run(generate(seed))
    assert not result.violations, "\n".join([*result.trace[-40:], *map(str, result.violations)])


@pytest.mark.parametrize("seed", seeds(QUICK))
def test_every_guarantee_holds_in_a_random_life(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOMEPORT_SEED", raising=False)  # the seed of a scenario is that of its loop too
    expect_all_held(seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
@pytest.mark.skipif("HOMEPORT_SEED" in os.environ, reason="one seed is replayed above")
def test_every_guarantee_holds_in_hundreds_of_lives(part: int) -> None:
    share = of_long(200, 30)
    for seed in range(LONG_FIRST + part * share, LONG_FIRST + (part + 1) * share):
        expect_all_held(seed)
