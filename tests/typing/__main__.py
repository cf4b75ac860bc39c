"""`python -m tests.typing PYRIGHT`: whether all types that a user can meet are known and declared.

What users can meet is all of `homeport.client`, and elsewhere what `__all__` names with everything on it. pyright's
`--verifytypes` reads one package with one `py.typed` at its top, and knows nothing of namespaces. So it is shown the
same files as one ordinary package: a folder `homeport` of links to the four. It looks for packages where the first
Python on the PATH does, whatever interpreter it is told to use.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROOTS = ("client", "registry", "sidecar", "mesh")
WHOLE = "homeport.client."
# Attributes that lead to inner parts, whose types are complete for mypy --strict, which infers some of them; and those
# whose own type has such attributes.
INNER = {
    "homeport.registry.registry.Registry": ("store", "catalogue", "peers", "operations"),
    "homeport.sidecar.sidecar.Sidecar": ("outbound", "inbound", "observer"),
    "homeport.mesh.testing.mesh.Member": ("sidecar",),
    "homeport.mesh.testing.mesh.Mesh": ("registry",),
}
NAMED = ("homeport.registry", "homeport.sidecar", "homeport.mesh.testing")


def main(pyright: Path) -> int:
    """Print what is not complete; 1 if anything is not."""
    asserted = subprocess.run([pyright, "--pythonpath", sys.executable, Path(__file__).parent], check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        report = _verify(pyright, Path(folder))
    met = tuple(_public())
    inner = {*INNER, *(f"{owner}.{name}" for owner, names in INNER.items() for name in names)}
    symbols = [each for each in report["symbols"] if f"{each['name']}.".startswith(met) and each["name"] not in inner]
    incomplete = [each for each in symbols if not each["isTypeKnown"] or each["isTypeAmbiguous"]]
    for symbol in incomplete:
        print(f"{symbol['name']} ({symbol['category']}) is not complete")
        for found in symbol["diagnostics"]:
            where = found.get("range", {}).get("start", {}).get("line", -1) + 1
            print(f"{symbol['name']} ({Path(found.get('file', '')).name}:{where}): {found['message']}")
    print(f"types: {len(symbols) - len(incomplete)} of {len(symbols)} public symbols are complete")
    return int(bool(asserted or incomplete or not symbols))


def _public() -> Iterator[str]:
    """What the full names of public symbols begin with: where the things that are named are defined."""
    yield WHOLE
    for module in map(importlib.import_module, NAMED):
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{getattr(value, '__module__', module.__name__)}.{getattr(value, '__qualname__', name)}."


def _verify(pyright: Path, folder: Path) -> Any:
    package = folder / "homeport"
    package.mkdir()
    for name in ("__init__.py", "py.typed"):
        (package / name).touch()
    for root in ROOTS:
        (package / root).symlink_to(ROOT / root / "homeport" / root)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        [pyright, "--outputjson", "--ignoreexternal", "--verifytypes", "homeport"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)["typeCompleteness"]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
