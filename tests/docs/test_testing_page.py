"""The tests that docs/testing.md shows pass, as a user would run them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


def test_the_page_s_tests_pass(pytester: pytest.Pytester) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    if importlib.util.find_spec("consul") is None:  # one of them uses a real client of Consul's: py-consul
        blocks = [block for block in blocks if "import consul" not in block]
    pytester.makepyfile("\n\n".join(blocks))
    written = sum(block.count("def test_") for block in blocks)
    unset = "ignore:The configuration option"  # pytest-asyncio's, of a run that has no configuration
    args = ("-p", "no:cacheprovider", "-W", "error", "-W", unset, "--asyncio-mode=auto")
    pytester.runpytest_subprocess(*args).assert_outcomes(passed=written)
