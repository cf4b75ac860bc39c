"""The benchmarks are not installed: they are found from the root of the tree, as `python -m benchmarks` finds them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def root() -> Path:
    """The tree's root."""
    return ROOT
