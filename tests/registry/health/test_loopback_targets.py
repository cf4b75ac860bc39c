"""Who looks at what only those on one machine can reach: nobody elsewhere, and only while somebody is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from homeport.client import Check, Client, Instance
from homeport.client.core import wire
from homeport.client.core.messages import Explain, Register, Registered, Renew, SetState
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import virtual_time
from homeport.registry.core import keys
from homeport.registry.core.locality import is_local
from homeport.registry.core.txn import Put, Txn
from homeport.registry.peers import NoOutlet, Peer
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd import EtcdStore
from homeport.registry.store.etcd_ownership import MEMBER_TTL_S
from tests.client import replicas

MOVED_S = 1.0  # until all replicas know of a registration, or of a replica that left


class Replica(replicas.Replica):
    """A registry on a machine of that name."""

    def __init__(self, link: ModelLink, seed: int, host: str) -> None:
        super().__init__(link, seed)
        self.host = host

    def _make_store(self, now: Callable[[], float], _backup: str | None) -> EmbeddedStore | EtcdStore:
        return EtcdStore(self._model, now=now, rng=self._rng, host=self.host)

    def looks(self, id: str = "o") -> bool:  # noqa: A002 - the field's name everywhere else
        return bool(self._scheduler.looked(("n", id)))


@asynccontextmanager
async def machines(*hosts: str) -> AsyncIterator[tuple[list[Replica], list[Client]]]:
    """A replica on each, and a client of each."""
    etcd = ModelEtcd()
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(Replica(ModelLink(etcd, 0.001), n, host)) for n, host in enumerate(hosts)
        ]
        yield running, [await stack.enter_async_context(replica.client()) for replica in running]


def local(ttl_s: float, port: int = 1) -> Instance:
    check = Check(name="alive", kind="http", url=f"http://127.0.0.1:{port}/health")
    return Instance(service="orders", id="o", address="10.0.0.1", port=port, ttl_s=ttl_s, checks=(check,))


async def register(client: Client, instance: Instance, lease: int = 0) -> Registered:
    done = await client.call(Register(instance=instance, lease=lease))
    await asyncio.sleep(MOVED_S)
    return done


@virtual_time(seed=1)
@pytest.mark.parametrize("ttl_s", [0.0, 60.0])
@pytest.mark.parametrize("seed", range(4))  # by which hashing chooses
async def test_a_loopback_target_is_looked_at_where_it_was_registered(ttl_s: float, seed: int) -> None:
    async with machines("a", "b", "c") as (running, clients):
        at = random.Random(seed).randrange(3)
        await register(clients[at], local(ttl_s, port=seed + 1))
        assert [replica.looks() for replica in running] == [here == at for here in range(3)]


@virtual_time(seed=2)
@pytest.mark.parametrize("ttl_s", [0.0, 60.0])
async def test_nobody_elsewhere_looks_when_the_replica_on_its_machine_is_gone(ttl_s: float) -> None:
    async with machines("a", "b", "b") as (running, clients):
        lease = (await register(clients[0], local(ttl_s))).lease
        await running[0].close()
        await asyncio.sleep(MEMBER_TTL_S)
        assert [replica.looks() for replica in running[1:]] == [False, False]
        said = (await clients[1].call(Explain(node="n", id="o"))).reasons
        assert any("only replicas on machine a can look" in reason for reason in said), said
        if lease:
            await clients[1].call(Renew(leases=(lease,)))
        await clients[1].call(SetState(id="o", state="up", lease=lease))
        await register(clients[1], local(ttl_s), lease)  # as a client does that has moved
        assert [replica.looks() for replica in running[1:]] == [False, False]
        async with Replica(ModelLink(running[1]._model.etcd, 0.001), 9, "a") as again:
            await asyncio.sleep(MOVED_S)
            assert again.looks()
        await asyncio.sleep(MOVED_S)
        await register(clients[1], local(ttl_s, port=2), lease)
        assert [replica.looks() for replica in running[1:]].count(True) == 1, "it was taken there now"


@virtual_time(seed=3)
async def test_replicas_on_one_machine_look_for_each_other() -> None:
    async with machines("a", "a", "b") as (running, clients):
        await register(clients[0], local(0.0))
        assert [replica.looks() for replica in running].count(True) == 1
        assert not running[2].looks()
        first = next(replica for replica in running if replica.looks())
        await first.close()
        await asyncio.sleep(MOVED_S)
        assert [replica.looks() for replica in running if replica is not first] == [True, False]


@virtual_time(seed=4)
async def test_a_connection_that_breaks_elsewhere_is_no_reason_to_look() -> None:
    async with machines("a", "b") as (running, clients):
        lease = (await register(clients[0], local(60.0))).lease
        peer = Peer(NoOutlet())
        peer.registered["n", "o"] = lease
        running[1]._duties.peer_lost(peer)
        await asyncio.sleep(0.0)
        assert [replica.looks() for replica in running] == [True, False]


@virtual_time(seed=5)
async def test_what_an_earlier_release_registered_is_looked_at_as_it_did() -> None:
    async with machines("a", "b") as (running, _):
        value = wire.encode(msgspec.structs.replace(local(0.0), node="n"))
        old = EtcdStore(ModelLink(running[0]._model.etcd), now=asyncio.get_running_loop().time, rng=random.Random(7))
        await old.start()
        key = keys.instance("orders", "n", "o")
        await old.commit(Txn(then=(Put(key, value), Put(keys.id_of("n", "o"), b"orders"))))
        await old.close()
        await asyncio.sleep(MOVED_S)
        assert [replica.looks() for replica in running].count(True) == 1


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("127.0.0.1:80", True),
        ("127.9.9.9:80", True),
        ("localhost:80", True),
        ("LocalHost:80", True),
        ("app.localhost:80", True),
        ("[::1]:80", True),
        ("[0:0:0:0:0:0:0:1]:80", True),
        ("[::ffff:127.0.0.1]:80", True),
        ("10.0.0.1:80", False),
        ("localhosts.example.com:80", False),
        ("127.example.com:80", False),
        ("[fd00::1]:80", False),
    ],
)
def test_what_a_loopback_target_is(target: str, loopback: bool) -> None:
    tcp = Check(name="c", kind="tcp", address=target)
    http = Check(name="c", kind="http", url=f"http://{target}/health")
    for check in (tcp, http):
        assert is_local(Instance(service="s", id="i", address="10.0.0.1", port=1, checks=(check,))) == loopback
    address = target.rpartition(":")[0].strip("[]")
    assert is_local(Instance(service="s", id="i", address=address, port=1)) == loopback
