"""Scenarios that once broke a guarantee, kept by `make keep-seed`: they hold now."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeport.mesh.simulation import load, run

KEPT = sorted((Path(__file__).parent / "regressions").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_once_broke_holds_now(path: Path) -> None:
    result = run(load(path))
    assert not result.violations, "\n".join([*result.trace[-40:], *map(str, result.violations)])
