"""A client that moves from replica to replica, over a model of etcd, in virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import cast

import pytest

from homeport.client import Client, Instance, ReadOnly
from homeport.client.connection import Connection, Follower
from homeport.client.core.limits import ROUND_S
from homeport.client.core.messages import Register
from homeport.client.transport import Transport
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from tests.client.replicas import Replica


@virtual_time(seed=1)
async def test_a_client_that_fails_over_never_reads_backwards() -> None:
    etcd = ModelEtcd()
    slow = ModelLink(etcd, 0.001)
    one, two = Replica(ModelLink(etcd, 0.001), 1), Replica(slow, 2)
    await one.start()
    async with two, Client(transport=one.transport) as client:
        client._connection.transports.append(two.transport)
        await client.kv.put("a", b"1")
        await two.store.barrier()
        slow.latency_s = 0.5  # what is written from here on reaches two late
        await client.kv.put("a", b"2")
        await one.close()
        found = await client.kv.get("a")
        assert found is not None
        assert found.value == b"2"
        assert client.link_epoch == 2


@virtual_time(seed=2)
async def test_a_replica_that_does_not_catch_up_is_passed_over() -> None:
    etcd = ModelEtcd()
    links = [ModelLink(etcd, 0.001) for _ in range(3)]
    one, two, three = (Replica(link, seed) for seed, link in enumerate(links))
    await one.start()
    async with two, three, Client(transport=one.transport) as client:
        client._connection.transports += [two.transport, three.transport]
        await client.kv.put("a", b"1")
        await two.store.barrier()
        links[1].fail(True)
        await client.kv.put("a", b"2")
        await one.close()
        async with asyncio.timeout(20.0):
            found = await client.kv.get("a")
        assert found is not None
        assert found.value == b"2"


@virtual_time(seed=4)
async def test_a_registration_leaves_a_replica_that_is_cut_off_and_stays_registered() -> None:
    etcd = ModelEtcd()
    cut = ModelLink(etcd, 0.001)
    two = Replica(ModelLink(etcd, 0.001), 2)
    async with Replica(cut, 1) as one, two, Client(transport=one.transport) as client:
        client._connection.transports.append(two.transport)
        seen: list[int] = []
        registration = client.register("orders", port=1, ttl_s=3.0, id="o")
        await registration.start()
        async with two.client() as other:
            following = other.subscribe("orders")
            assert await following.wait_known(5.0)
            following.listen(lambda _event: seen.append(len(following.instances)))
            cut.fail(True)
            await asyncio.sleep(30.0)
            assert client.link_epoch == 2
            assert registration.error is None
            assert [len(following.instances), *seen].count(0) == 0
            cut.fail(False)


@virtual_time(seed=5)
async def test_without_any_quorum_a_registration_goes_round_and_is_there_when_it_is_back() -> None:
    etcd = ModelEtcd()
    links = [ModelLink(etcd, 0.001) for _ in range(2)]
    async with Replica(links[0], 1) as one, Replica(links[1], 2) as two, Client(transport=one.transport) as client:
        client._connection.transports.append(two.transport)
        registration = client.register("orders", port=1, ttl_s=3.0, id="o")
        await registration.start()
        for link in links:
            link.fail(True)
        await asyncio.sleep(60.0)
        met = registration.error
        assert met is not None
        assert client.link_epoch <= 1 + len(links) * (1 + 60.0 / ROUND_S), "it does not hurry round"
        for link in links:
            link.fail(False)
        await asyncio.sleep(10.0)
        assert registration.error is None
        for replica in (one, two):
            async with replica.client() as other:
                assert len(await other.resolve("orders")) == 1


@virtual_time(seed=6)
async def test_a_read_of_the_newest_sees_what_any_replica_has_acknowledged() -> None:
    etcd = ModelEtcd()
    slow = ModelLink(etcd, 0.2)
    async with Replica(ModelLink(etcd, 0.001), 1) as one, Replica(slow, 2) as two, one.client() as a, two.client() as b:
        for number in range(5):
            await a.kv.put("a", b"%d" % number)
            found = await b.kv.get("a", newest=True)
            assert found is not None
            assert found.value == b"%d" % number
        slow.fail(True)
        with pytest.raises(ReadOnly):
            await b.kv.get("a", newest=True)
        assert await b.kv.get("a") is not None
        slow.fail(False)


@virtual_time(seed=7)
async def test_who_registers_the_same_again_is_told_so() -> None:
    async with Replica(ModelLink(ModelEtcd(), 0.001), 1) as one, one.client() as client:
        same = Instance(service="orders", id="o", port=1, ttl_s=3.0)
        first = await client.call(Register(instance=same))
        assert await client.call(Register(instance=same, lease=first.lease)) == first


@virtual_time(seed=8)
async def test_the_clients_of_a_replica_that_is_gone_come_to_all_the_others() -> None:
    etcd = ModelEtcd()
    gone, *others = (Replica(ModelLink(etcd, 0.001), seed) for seed in range(4))
    await gone.start()
    async with AsyncExitStack() as stack:
        for other in others:
            await stack.enter_async_context(other)
        clients = [await stack.enter_async_context(Client(transport=gone.transport)) for _ in range(60)]
        for client in clients:
            client._connection.transports += [other.transport for other in others]
            await client.kv.get("a")
        await gone.close()
        for client in clients:
            assert await client.kv.get("a") is None
        assert min(len(other._links) for other in others) >= 10
        assert sum(len(other._links) for other in others) == 60


def test_after_a_loss_every_other_registry_is_tried_before_the_one_that_was_lost() -> None:
    transports = [cast("Transport", object()) for _ in range(5)]
    connection = Connection(transports, random.Random(1), cast("Follower", None))
    turns = connection._in_turn()
    assert [next(turns) for _ in range(7)] == [*transports, *transports[:2]], "as given, again and again"
    for _ in range(20):
        lost = next(turns)
        connection.link_epoch += 1
        tried = [next(turns) for _ in transports]
        assert tried[-1] is lost
        assert {id(one) for one in tried} == {id(one) for one in transports}
