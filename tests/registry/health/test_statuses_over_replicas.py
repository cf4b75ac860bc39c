"""What was found of an instance is written of that instance, of that check and by who is in charge, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from homeport.client import Check, Client, Instance
from homeport.client.core.messages import Register
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from homeport.registry.core.health import Verdict
from homeport.registry.core.limits import STATUS_TICK_S
from homeport.registry.store.etcd_ownership import MEMBER_TTL_S
from tests.client.replicas import Replica

LATENCY_S = 0.001
SETTLED_S = 2.5  # until what is pending is written, and replicas know of each other
KEY = ("n", "o")
ALIVE = Check(name="alive", kind="http", url="http://10.0.0.1:1/health", interval_s=3600.0)
ONE = Instance(service="orders", id="o", address="10.0.0.1", port=1, ttl_s=600.0, checks=(ALIVE,))
PASSING = Verdict("passing", "200 OK")


@asynccontextmanager
async def cluster(count: int) -> AsyncIterator[tuple[list[Replica], Client]]:
    etcd = ModelEtcd()
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(Replica(ModelLink(etcd, LATENCY_S), n)) for n in range(count)]
        yield running, await stack.enter_async_context(running[0].client())


def status(replica: Replica) -> str:
    record = replica.catalogue.checks.one(KEY, "alive")
    return record.status if record is not None else "none"


@virtual_time(seed=1)
@pytest.mark.parametrize("before_s", [step * LATENCY_S / 2 for step in range(1, 9)])
@pytest.mark.parametrize("same", [True, False])
async def test_a_verdict_on_its_way_when_an_instance_is_registered_anew(before_s: float, same: bool) -> None:
    async with cluster(1) as ((one,), client):
        created = (await client.call(Register(instance=ONE))).create_revision
        other = msgspec.structs.replace(ALIVE, url="http://10.0.0.1:1/other")
        anew = ONE if same else msgspec.structs.replace(ONE, checks=(other,))
        one._statuses.report(KEY, created, "alive", PASSING)
        await asyncio.sleep(STATUS_TICK_S - before_s)
        again = await client.call(Register(instance=anew))
        assert again.create_revision == created
        await asyncio.sleep(SETTLED_S)
        # Written before, it is of the check that was; what goes on as before keeps its status.
        assert status(one) == "passing" if same else status(one) == "none"


@virtual_time(seed=2)
async def test_what_a_replica_found_while_it_was_cut_off_is_nothing_to_the_one_that_took_over() -> None:
    async with cluster(2) as (running, client):
        created = (await client.call(Register(instance=ONE))).create_revision
        await asyncio.sleep(SETTLED_S)
        away, other = sorted(running, key=lambda replica: not replica._scheduler.looked(KEY))
        away._model.fail(True)
        away._statuses.report(KEY, created, "alive", Verdict("critical", "timeout"))
        await asyncio.sleep(MEMBER_TTL_S + SETTLED_S)
        assert other._scheduler.looked(KEY)
        other._statuses.report(KEY, created, "alive", PASSING)
        await asyncio.sleep(SETTLED_S)
        away._model.fail(False)
        await asyncio.sleep(MEMBER_TTL_S + SETTLED_S)
        assert [replica.store.read_only for replica in running] == [None, None]
        assert [status(replica) for replica in running] == ["passing", "passing"]
        assert [one.mark for one in away.catalogue.services["orders"].instances(passing=False)] == [""]
