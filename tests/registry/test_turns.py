"""Very many things are seen to without a long turn of the loop."""

from __future__ import annotations

import asyncio

from homeport.client import Check, Instance
from homeport.client.core.messages import Register
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from homeport.registry.turns import InTurns
from tests.client.replicas import Replica

COUNT = 1_100  # more than two turns


def looked_after(replica: Replica) -> int:
    """How many instances' checks it runs."""
    return sum(bool(replica._scheduler.looked(("n", f"i{at}"))) for at in range(COUNT))


@virtual_time(seed=1)
async def test_everything_is_seen_to_once_and_others_have_their_turn_between() -> None:
    seen: list[int] = []
    ends: list[int] = []
    turns = InTurns(seen.append, 10, lambda: ends.append(len(seen)))
    turns.begin(range(35))
    steps = [len(seen)]
    while turns.under_way:
        await asyncio.sleep(0)
        steps.append(len(seen))
    assert seen == list(range(35))
    assert max(after - before for before, after in zip([0, *steps], steps, strict=False)) == 10
    assert ends == [35]


@virtual_time(seed=2)
async def test_a_new_beginning_forgets_the_rest_of_the_one_before() -> None:
    seen: list[int] = []
    turns = InTurns(seen.append, 10)
    turns.begin(range(100))
    turns.begin(range(1000, 1005))
    await asyncio.sleep(0.1)
    assert seen == [*range(10), *range(1000, 1005)]
    turns.begin(range(100))
    turns.stop()
    await asyncio.sleep(0.1)
    assert len(seen) == 25


@virtual_time(seed=3)
async def test_all_checks_of_a_replica_that_is_gone_are_taken_over_however_many_they_are() -> None:
    etcd = ModelEtcd()
    one = Replica(ModelLink(etcd, 0.001), 1)
    await one.start()
    async with Replica(ModelLink(etcd, 0.001), 2) as two, two.client() as client:
        check = Check(name="up", kind="tcp", address="192.0.2.1:1", interval_s=3600.0)
        for at in range(COUNT):
            instance = Instance(service=f"s{at % 7}", id=f"i{at}", address="192.0.2.1", port=1, checks=(check,))
            await client.call(Register(instance=instance))
        await one.store.barrier()
        looked = [looked_after(one), looked_after(two)]
        assert sum(looked) == COUNT
        assert min(looked) > COUNT / 3, "shared out"
        await one.close()
        await asyncio.sleep(0.1)
        assert looked_after(two) == COUNT
