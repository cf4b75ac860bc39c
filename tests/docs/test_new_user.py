"""A new user's day: README and tutorial, word for word, in an environment that has nothing but what they install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.harness.page import ROOT, Reader, follow

VERSIONS = ("3.11", "3.13")  # the oldest and the newest that are promised


def interpreter(version: str) -> Path:
    """A Python of this version, wherever there is one; skip if there is none."""
    for candidate in _candidates(version):
        asked = [str(candidate), "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        if found.stdout.strip() == version:
            return candidate
    pytest.skip(f"there is no Python {version} here")


def _candidates(version: str) -> Iterator[Path]:
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        yield Path(sys.base_prefix) / "bin" / "python3"
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python3"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.long
@pytest.mark.timeout(900)  # pip fetches what is not in its cache
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_new_user_gets_to_the_end(
    page: str, version: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter(version)
    if page == "README.md":  # the tutorial makes its own
        subprocess.run([python, "-m", "venv", tmp_path / ".venv"], check=True)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"{(ROOT / 'constraints.txt').read_text()}homeport @ {wheel.as_uri()}\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    monkeypatch.setenv("PIP_ONLY_BINARY", ":all:")
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    with Reader(tmp_path, python=tmp_path / ".venv" / "bin" / "python", installing=True) as reader:
        follow(ROOT / page, reader)
    installed = [str(tmp_path / ".venv" / "bin" / "pip"), "show", "homeport"]
    shown = subprocess.run(installed, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) in shown, "it is the wheel that was tried, not this working tree"
    assert f"python{version}" in shown
    assert not any(each.reason.startswith("installs") for each in reader.skipped)
