"""Broken variants of the product, as patches: each must be caught, or the simulator proves nothing.

A patch begins with the guarantee that it breaks. The quick test holds the patches to the tree, so that they go on
applying; the long one puts each on a copy of the tree and searches seeds until the guarantee is seen to break.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from homeport.mesh.simulation import guarantees
from tests.crash.workload import of_long

ROOT = Path(__file__).parents[2]
VARIANTS = sorted((Path(__file__).parent / "variants").glob("*.patch"))
ROOTS = ("client", "registry", "sidecar", "mesh")
SEEDS_MAX = 500
SEARCH = """
import sys
from homeport.mesh.simulation import generate, run
guarantee, most = sys.argv[1], int(sys.argv[2])
for seed in range(1, most + 1):
    if guarantee in {violation.guarantee for violation in run(generate(seed)).violations}:
        print(seed)
        sys.exit(0)
sys.exit(1)
"""


def guarantee_of(variant: Path) -> str:
    return variant.read_text().splitlines()[0].removeprefix("Breaks: ")


def apply(variant: Path, tree: Path, *options: str) -> None:
    done = subprocess.run(
        ["git", "apply", *options, str(variant)], cwd=tree, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, f"{variant.name} does not apply any more: {done.stderr}"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_still_applies(variant: Path) -> None:
    apply(variant, ROOT, "--check")


def test_every_guarantee_has_a_variant() -> None:
    broken = {guarantee_of(variant) for variant in VARIANTS}
    assert broken == set(guarantees.ALL)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("variant", VARIANTS[:: of_long(1, 3)], ids=lambda path: path.stem)
def test_a_variant_is_caught(variant: Path, tmp_path: Path) -> None:
    for name in ROOTS:
        shutil.copytree(ROOT / name, tmp_path / name)
    apply(variant, tmp_path)
    kept = {name: value for name, value in os.environ.items() if name != "HOMEPORT_SEED"}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, guarantee_of(variant), str(SEEDS_MAX)],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": os.pathsep.join(str(tmp_path / name) for name in ROOTS)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, f"not caught in {SEEDS_MAX} seeds\n{done.stderr[-2_000:]}"
    print(f"caught by seed {done.stdout.strip()}")
