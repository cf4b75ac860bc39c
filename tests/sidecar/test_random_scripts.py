"""Whatever happens in whatever order, every count comes back to nothing and no task is left; see `scripts`."""

from __future__ import annotations

import pytest

from homeport.mesh.testing import run_virtual
from tests.crash.workload import of_long
from tests.sidecar.scripts import play

BATCH = 25  # scripts a test
EVERY_TIME = 12  # batches: three hundred scripts
LONG = of_long(200, 12)  # batches: five thousand scripts, or three hundred more where time is short


def _play(batch: int) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        try:
            run_virtual(play(seed), seed=seed)
        except BaseException as error:
            error.add_note(f"the script of seed {seed}")
            raise


@pytest.mark.parametrize("batch", range(EVERY_TIME))
def test_nothing_is_left_of_any_script(batch: int) -> None:
    _play(batch)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(EVERY_TIME, EVERY_TIME + LONG))
def test_nothing_is_left_of_thousands_of_scripts(batch: int) -> None:
    _play(batch)
