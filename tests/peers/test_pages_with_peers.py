"""The blocks of the documentation that need foreign programs or clients, with these."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.harness.page import ROOT, Reader, follow, pages

NEEDY = [page for page in pages() if "<!-- needs: " in page.read_text()]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in NEEDY])
def test_every_block_that_needs_something_foreign_runs(page: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        follow(ROOT / page, reader)
    for place, reason in reader.skipped:
        if reason.startswith("needs "):
            pytest.skip(f"{place} {reason}")
