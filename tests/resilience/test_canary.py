"""A canary takes over from the old version, share by share, while everyone goes on asking."""

from __future__ import annotations

import json

import pytest

from homeport.client import Client
from tests.resilience.site import SERVICE, Site

SHARES = (0, 1, 5, 25, 50, 75, 100)


def document(percent: int) -> bytes:
    to = [{"subset": {"version": "1"}, "weight": 100 - percent}, {"subset": {"version": "2"}, "weight": percent}]
    return json.dumps({"routes": [{"name": "canary", "to": to}]}).encode()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_nobody_notices_that_a_canary_takes_over(site: Site, workers: str) -> None:
    for name, version in (("old-1", "1"), ("old-2", "1"), ("new-1", "2"), ("new-2", "2")):
        await site.add(name, options=("--version", version))
    await site.available("old-1", "old-2", "new-1", "new-2")
    load, seen = site.load(), []
    async with Client(site.rpc) as client:
        await client.kv.put(f"homeport/routes/{SERVICE}", document(0))
        await site.start_edge("--workers", workers)
        async with load.running():
            for percent in SHARES:
                await client.kv.put(f"homeport/routes/{SERVICE}", document(percent))
                before = len(site.witness("new-1") + site.witness("new-2"))
                await load.more(150)
                seen.append(len(site.witness("new-1") + site.witness("new-2")) - before)
            old = len(site.witness("old-1") + site.witness("old-2"))
            await load.more(100)
            assert len(site.witness("old-1") + site.witness("old-2")) - old <= 8  # those under way at the last change
    print(f"of 150 requests the new version had, at {SHARES} percent: {seen}")
    assert load.judge() == []
    assert seen[0] == 0
    assert 30 < seen[4] < 120
    assert seen[6] > 130
