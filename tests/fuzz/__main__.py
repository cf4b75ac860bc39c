"""`python -m tests.fuzz TARGET [SECONDS]`: coverage-guided fuzzing of one target with atheris (`make fuzz TARGET=...`).

A target is one file in `targets` with `one(data: bytes) -> None`, which raises if a promise is broken. Its seeds are
the files of `corpus/TARGET`; what is found and worth keeping goes there too, and `test_corpus.py` runs all of them with
every `make test`. New seeds found on the way, and a case that fails, are written to `build/fuzz/TARGET`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
NO_TARGETS = frozenset({"__init__", "http1"})  # what several targets share


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem not in NO_TARGETS)


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in targets():
        sys.exit(f"which target? One of: {', '.join(targets())}")
    try:
        atheris = importlib.import_module("atheris")  # not for every Python and system, so not for the type checker
    except ImportError:
        sys.exit("atheris is not installed: pip install --group fuzz (wheels: Linux, CPython 3.11 to 3.13)")
    name, seconds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 60
    with atheris.instrument_imports(include=["homeport"]):
        target = importlib.import_module(f"tests.fuzz.targets.{name}")
    found = Path("build/fuzz") / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", f"-artifact_prefix={found}/failed-"]
    dictionary = HERE / "corpus" / f"{name}.dict"
    if dictionary.exists():
        options.append(f"-dict={dictionary}")
    atheris.Setup([sys.argv[0], *options, str(found), str(HERE / "corpus" / name)], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
