"""What the benchmark of picks counts are picks."""

from __future__ import annotations

import pytest

from benchmarks.load.picks import picker
from homeport.sidecar.core.endpoint import Endpoint


@pytest.mark.parametrize("what", ["choice", "least-request", "peak-ewma", "round-robin", "maglev"])
def test_every_policy_picks_endpoints(what: str) -> None:
    pick = picker(what, 3)
    picked = {pick(b"user-%d" % number) for number in range(100)}
    assert all(isinstance(endpoint, Endpoint) for endpoint in picked)
    assert len(picked) > 1
