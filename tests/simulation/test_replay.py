"""A run is decided by its scenario alone: in any process, under any hash seed, written down and read again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from homeport.mesh.simulation import Scenario, generate, load, run, save
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.shrink import shrink

PROGRAM = """
import sys
from homeport.mesh.simulation import generate, run
for seed in map(int, sys.argv[1:]):
    print(seed, run(generate(seed)).hash)
"""
SEEDS = ("1", "2", "3", "5", "8", "10")  # over all three kinds of store


def _hashes(hash_seed: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "HOMEPORT_SEED"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SEEDS],
        env={**kept, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
        timeout=100,
    )
    return done.stdout


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    assert {generate(int(seed)).store for seed in SEEDS} == {"memory", "journal", "etcd"}
    first = _hashes("1")
    assert len(first.splitlines()) == len(SEEDS)
    assert _hashes("4711") == first


def test_a_scenario_that_was_written_down_runs_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOMEPORT_SEED", raising=False)
    scenario = generate(4)
    save(tmp_path / "scenario.json", scenario)
    assert load(tmp_path / "scenario.json") == scenario
    assert run(load(tmp_path / "scenario.json")).hash == run(scenario).hash


def test_different_seeds_live_different_lives() -> None:
    assert generate(1) != generate(2)


def test_shrinking_keeps_what_the_failure_needs_and_nothing_else() -> None:
    steps = tuple(Step(at=float(number), kind="key", who="writer1", what=f"put {number}") for number in range(40))
    scenario = Scenario(seed=1, store="memory", callers=2, writers=1, steps=steps)
    needed = {steps[7], steps[31]}
    shrunk = shrink(scenario, lambda candidate: needed <= set(candidate.steps))
    assert set(shrunk.steps) == needed
    assert (shrunk.callers, shrunk.writers) == (0, 1)
