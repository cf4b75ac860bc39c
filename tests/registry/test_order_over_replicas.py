"""Calls take effect in the order in which they came, over a shared store that decides them when they are written."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from homeport.client import Busy, Check, Client, Instance
from homeport.client.core.messages import Deregister, Register, Registered, ReportCheck, Resolve, SetState
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import connector_factory, virtual_time
from tests.client.replicas import Replica

LATENCY_S = 0.01
ORDERS = Instance(service="orders", id="o", port=1, ttl_s=10.0)


def replica(etcd: ModelEtcd, seed: int) -> Replica:
    return Replica(ModelLink(etcd, LATENCY_S), seed)


async def names(client: Client) -> list[str]:
    return [one.id for one in (await client.call(Resolve(service="orders", passing=False))).instances]


@virtual_time(seed=1)
async def test_what_is_deregistered_right_behind_its_registration_is_gone() -> None:
    async with replica(ModelEtcd(), 1) as one, one.client() as client:
        registering = asyncio.ensure_future(client.call(Register(instance=ORDERS)))
        leaving = asyncio.ensure_future(client.call(Deregister(id="o")))
        assert (await registering).lease
        assert (await leaving).applied, "it saw what was sent before it"
        assert await names(client) == []
        assert one.store.leases() == []


@virtual_time(seed=2)
async def test_a_state_and_a_report_right_behind_a_registration_are_about_it() -> None:
    beat = Check(name="beat", kind="ttl", ttl_s=5.0)
    instance = Instance(service="orders", id="o", port=1, ttl_s=10.0, checks=(beat,))
    async with replica(ModelEtcd(), 1) as one, one.client() as client:
        registering = asyncio.ensure_future(client.call(Register(instance=instance)))
        reporting = asyncio.ensure_future(client.call(ReportCheck(id="o", check="beat", status="passing")))
        setting = asyncio.ensure_future(client.call(SetState(id="o", state="draining")))
        await registering
        assert (await reporting).applied
        assert (await setting).applied
        (found,) = (await client.call(Resolve(service="orders", passing=False))).instances
        assert (found.state, found.status) == ("draining", "passing")


@virtual_time(seed=3)
async def test_however_many_register_the_same_at_one_replica_the_last_one_stands() -> None:
    async with replica(ModelEtcd(), 1) as one, one.client() as client:
        calls = [client.call(Register(instance=Instance(service="orders", id="o", port=at))) for at in range(1, 60)]
        answers = await asyncio.gather(*calls)
        assert all(isinstance(answer, Registered) for answer in answers)
        (found,) = (await client.call(Resolve(service="orders"))).instances
        assert found.port == 59


@virtual_time(seed=4)
async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    async with replica(ModelEtcd(), 1) as one, one.client() as client:
        first = asyncio.ensure_future(client.call(Register(instance=ORDERS)))
        given_up = asyncio.ensure_future(client.call(Deregister(id="o")))
        last = asyncio.ensure_future(client.call(Register(instance=ORDERS)))
        await asyncio.sleep(LATENCY_S)
        first.cancel()
        given_up.cancel()
        assert (await last).lease
        assert await names(client) in (["o"], []), "what was given up may have happened, before the last"
        assert await names(client) == ["o"]


@virtual_time(seed=5)
async def test_who_is_overtaken_again_and_again_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that there was nothing to do."""
    async with replica(ModelEtcd(), 1) as one, one.client() as client:
        await client.call(Register(instance=ORDERS))
        monkeypatch.setattr("homeport.registry.registrations._RACES_MAX", 0)
        for request in (Deregister(id="o"), SetState(id="o", state="draining")):
            with pytest.raises(Busy):
                await client.call(request)
        assert await names(client) == ["o"]


@virtual_time(seed=6)
async def test_events_fired_all_at_once_at_two_replicas_all_take_place() -> None:
    etcd = ModelEtcd()
    async with replica(etcd, 1) as one, replica(etcd, 2) as two:
        at = [(await each.serve(http=f"127.0.0.1:850{number}")).http for number, each in enumerate((one, two))]
        async with aiohttp.ClientSession(connector=connector_factory()) as session:

            async def fire(number: int) -> int:
                async with session.put(f"http://{at[number % 2]}/v1/event/fire/deploy", data=b"%d" % number) as answer:
                    return answer.status

            assert set(await asyncio.gather(*map(fire, range(40)))) == {200}
            async with session.get(f"http://{at[0]}/v1/event/list?name=deploy") as answer:
                assert len(await answer.json()) == 40
