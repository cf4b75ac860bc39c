"""`python -m tests.typing PYRIGHT`: whether all types that a user of the four packages can meet are known and declared.

pyright's `--verifytypes` reads one package with one `py.typed` at its top, and knows nothing of namespaces. So it is
shown the same files as one ordinary package: a folder `homeport` of links to the four. It looks for packages where the
first Python on the PATH does, whatever interpreter it is told to use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROOTS = ("client", "registry", "sidecar", "mesh")


def main(pyright: Path) -> int:
    """Print what is not complete; 1 if anything is not."""
    asserted = subprocess.run([pyright, "--pythonpath", sys.executable, Path(__file__).parent], check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        report = _verify(pyright, Path(folder))
    symbols = [symbol for symbol in report["symbols"] if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    for symbol in symbols:
        for found in symbol["diagnostics"]:
            where = found.get("range", {}).get("start", {}).get("line", -1) + 1
            print(f"{symbol['name']} ({Path(found.get('file', '')).name}:{where}): {found['message']}")
    counts = report["exportedSymbolCounts"]
    print(f"types: {report['completenessScore']:.2%} of {sum(counts.values())} public symbols are complete")
    return int(bool(asserted or symbols))


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
