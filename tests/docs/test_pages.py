"""Every block of code in README and docs does what it says; `harness/page.py` says how that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.harness.page import ROOT, Reader, follow, pages


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in pages()])
def test_every_block_does_what_it_says(page: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        follow(ROOT / page, reader)
    print(f"{page}: {reader.ran} blocks ran, {len(reader.skipped)} did not")
    for place, reason in reader.skipped:
        print(f"  {place}: {reason}")
        assert len(reason.split()) >= 3, f"{place}: say why it cannot run"
