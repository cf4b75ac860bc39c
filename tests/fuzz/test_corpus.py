"""What fuzzing has found stays found: every seed of every target runs here, cut off and doubled too."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.__main__ import HERE, targets

SEEDS = [
    pytest.param(name, path, id=f"{name}-{path.name}")
    for name in targets()
    for path in sorted((HERE / "corpus" / name).iterdir())
]


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_a_seed_keeps_the_promise_of_its_target(name: str, seed: Path) -> None:
    one = importlib.import_module(f"tests.fuzz.targets.{name}").one
    data = seed.read_bytes()
    one(data)
    for at in range(1, len(data), max(1, len(data) // 64)):
        one(data[:at])
        one(data + data[at:])


def test_every_target_has_seeds() -> None:
    assert {seed.values[0] for seed in SEEDS} == set(targets())
