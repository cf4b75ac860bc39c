"""What is built and checked is what is in the tree: build backends and type checkers can drop files silently."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = ("client", "registry", "sidecar", "mesh")


def _tracked(*folders: str) -> set[str]:
    """Files of the working tree that belong to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Without isolation: the backend is installed, and a test must not need the network.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return out


def test_the_wheel_holds_every_module_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {re.sub(r"^[^/]+/", "", name) for name in _tracked(*ROOTS)}
    assert packed == expected
    assert "homeport/__init__.py" not in packed, "homeport is a namespace, shared by four roots"
    assert {f"homeport/{root}/py.typed" for root in ROOTS} <= packed


def test_the_source_distribution_holds_code_tests_and_docs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    expected = _tracked(*ROOTS, "tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md", "LICENSE")
    assert expected <= packed


def test_every_root_is_a_namespace_portion() -> None:
    for root in ROOTS:
        assert not (ROOT / root / "homeport" / "__init__.py").exists()
        assert not (ROOT / root / "__init__.py").exists()


def test_mypy_reads_every_python_file_of_the_tree() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    counted = re.search(r"(?:in|checked) (\d+) source files", done.stdout)
    assert counted, done.stdout
    files = {name for name in _tracked(*ROOTS, "tests", "benchmarks") if name.endswith(".py")}
    assert int(counted[1]) == len(files)
