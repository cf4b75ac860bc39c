"""Several stores over one etcd, and everything that can go wrong between them, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from homeport.client.core import wire
from homeport.client.core.errors import HomeportError, OutcomeUnknown, ReadOnly
from homeport.client.core.model import KeyValue, Lost
from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.mesh.testing import run_virtual, running_loop, virtual_time
from homeport.registry.core import keys
from homeport.registry.core.leases import TICK_S
from homeport.registry.core.txn import Compare, Delete, EndLease, Put, Range, RangeResult, Txn
from homeport.registry.core.watches import Batch, Watcher
from homeport.registry.store.answers import ttl_s
from homeport.registry.store.contract import LeaseRecord
from homeport.registry.store.etcd import EtcdStore
from homeport.registry.store.etcd_cluster import Page, Write
from homeport.registry.store.etcd_ownership import PROMISE_S

LATENCY_S = 0.001
QUIET_S = 12.0  # longer than a membership lives


class Replica:
    """A store and its way to etcd."""

    def __init__(
        self, etcd: ModelEtcd, seed: int, prefix: bytes = b"/homeport/", now: Callable[[], float] | None = None
    ) -> None:
        self.link = ModelLink(etcd, LATENCY_S)
        self.store = EtcdStore(self.link, now=now or running_loop().time, rng=random.Random(seed), prefix=prefix)

    async def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> int:
        return (await self.store.commit(Txn(then=(Put(key, value, lease),)))).revision

    def get(self, key: bytes) -> bytes | None:
        found = self.store.mvcc.get(key)
        return None if found is None else found.value

    async def grant(self, ttl_s: float) -> int:
        lease = self.store.new_lease()
        await self.store.lease_grant(ttl_s, lease)
        return lease

    async def renew(self, lease: int) -> float:
        return await ttl_s(self.store.lease_renew(lease))

    async def die(self) -> None:
        """Without a word: nothing of it reaches etcd any more."""
        self.link.fail(True)
        await self.store.close()


async def until(condition: Callable[[], object]) -> None:
    """Let virtual time pass until something holds, to a hundredth of a second."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never held")


@asynccontextmanager
async def replicas(count: int, etcd: ModelEtcd | None = None) -> AsyncIterator[list[Replica]]:
    etcd = etcd or ModelEtcd()
    found = [Replica(etcd, seed) for seed in range(count)]
    for replica in found:
        await replica.store.start()
    try:
        yield found
    finally:
        for replica in found:
            replica.link.fail(False)
            await replica.store.close()


async def same(*these: Replica) -> None:
    """Wait until all have seen everything, and compare them wholly."""
    for replica in these:
        await replica.store.barrier()
    assert len({(one.store.mvcc.revision, one.store.mvcc.hash()) for one in these}) == 1


@virtual_time(seed=1)
async def test_replicas_are_one_store_with_the_same_revisions() -> None:
    async with replicas(3) as (one, two, three):
        assert one.store.store_id == two.store.store_id == three.store.store_id
        revision = await one.put(b"a", b"1")
        assert one.get(b"a") == b"1", "its own write at once"
        await two.store.barrier()
        assert two.get(b"a") == b"1", "another's after a barrier"
        assert await three.put(b"b", b"2") > revision
        await same(one, two, three)


@virtual_time(seed=2)
async def test_registries_under_other_prefixes_share_nothing() -> None:
    etcd = ModelEtcd()
    one, other = Replica(etcd, 1, b"/one/"), Replica(etcd, 2, b"/other/")
    await one.store.start()
    await one.put(b"a", b"1")
    await other.store.start()
    assert other.store.store_id != one.store.store_id
    assert (other.store.mvcc.revision, len(other.store.mvcc)) == (1, 0)
    await other.put(b"a", b"2")
    assert one.get(b"a") == b"1"
    await one.store.close()
    await other.store.close()


@virtual_time(seed=3)
async def test_a_replica_that_starts_late_has_everything() -> None:
    etcd = ModelEtcd()
    async with replicas(1, etcd) as (one,):
        for at in range(2_500):
            await one.put(b"%05d" % at, b"x")
        await one.store.commit(Txn(then=(Delete(b"00000"),)))
        late = Replica(etcd, 9)
        await late.store.start()
        await same(one, late)
        assert isinstance(late.store.watch(b"", b"", 2, lambda: None).take(), Lost), "history before it is not there"
        await late.store.close()


@virtual_time(seed=4)
async def test_of_two_that_compare_and_set_at_once_one_wins() -> None:
    async with replicas(2) as (one, two):

        async def count(replica: Replica, times: int) -> None:
            while times:
                kv = replica.store.mvcc.get(b"n")
                now = int(kv.value) if kv else 0
                compare = Compare(b"n", "mod", "=", kv.mod_revision if kv else 0)
                done = await replica.store.commit(Txn((compare,), (Put(b"n", b"%d" % (now + 1)),)))
                times -= done.succeeded

        await asyncio.gather(*(count(replica, 20) for replica in (one, two, one, two)))
        await same(one, two)
        assert one.get(b"n") == b"80"


@virtual_time(seed=5)
async def test_a_failed_compare_is_answered_from_what_all_others_have_written() -> None:
    async with replicas(2) as (one, two):
        await one.put(b"a", b"1")
        await two.store.barrier()
        writing = asyncio.ensure_future(one.put(b"a", b"2"))
        await asyncio.sleep(1.5 * LATENCY_S)  # etcd has it, and one is about to hear of that
        seen = Txn((Compare(b"a", "value", "=", b"none"),), (), (Range(b"a"),))
        await writing
        answer = (await two.store.commit(seen)).responses[0]
        assert isinstance(answer, RangeResult)
        assert answer.entries[0].value == b"2", "two's mirror may not have had it, but its answer must"


@virtual_time(seed=7)
async def test_renewals_write_nothing_until_another_replica_hears_one() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(10.0)
        await one.put(b"a", b"", lease)
        await two.store.barrier()
        revision = one.store.mvcc.revision
        for _ in range(10):
            await asyncio.sleep(3.0)
            assert one.store.lease_renew(lease) == 10.0
        assert one.store.mvcc.revision == revision
        for _ in range(10):
            await asyncio.sleep(3.0)
            assert await two.renew(lease) == 10.0
        await same(one, two)
        assert one.store.mvcc.revision == revision + 1, "one write for the failover"
        assert (one.store.numbers()["leases_owned"], two.store.numbers()["leases_owned"]) == (0, 1)
        renewed = running_loop().time()
        await until(lambda: one.get(b"a") is None)
        assert 10.0 <= running_loop().time() - renewed <= 10.0 + TICK_S


@virtual_time(seed=8)
async def test_a_replicas_death_ends_no_lease_and_each_gets_its_full_ttl_from_another() -> None:
    loop = running_loop()
    async with replicas(3) as (one, two, three):
        leases = [await one.grant(5.0) for _ in range(50)]
        for lease in leases:
            await one.put(b"a/%d" % lease, b"", lease)
        renewing = asyncio.ensure_future(_renew(one, leases))
        await asyncio.sleep(8.0)
        renewing.cancel()
        await one.die()
        died = loop.time()
        await until(lambda: two.store.numbers()["leases_owned"] + three.store.numbers()["leases_owned"] == 50)
        assert loop.time() - died <= QUIET_S
        assert min(two.store.numbers()["leases_owned"], three.store.numbers()["leases_owned"]) > 10, "shared out"
        adopted = loop.time()
        gone: dict[int, float] = {}
        while len(gone) < 50:
            await asyncio.sleep(0.01)
            gone |= {lease: loop.time() for lease in leases if lease not in gone and two.get(b"a/%d" % lease) is None}
        assert all(5.0 - 0.1 <= when - adopted <= 5.0 + 2 * TICK_S for when in gone.values())


async def _renew(replica: Replica, leases: list[int]) -> None:
    while True:
        for lease in leases:
            assert replica.store.lease_renew(lease) == 5.0
        await asyncio.sleep(1.0)


@virtual_time(seed=9)
async def test_one_that_leaves_in_order_is_succeeded_at_once() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(5.0)
        await one.store.close()
        await asyncio.sleep(0.1)
        assert two.store.numbers()["leases_owned"] == 1
        assert two.store.lease_renew(lease) == 5.0


@virtual_time(seed=10)
async def test_without_a_quorum_reads_go_on_and_nothing_is_acknowledged_and_lost() -> None:
    async with replicas(2) as (one, two):
        await one.put(b"a", b"1")
        one.link.fail(True)
        with pytest.raises(OutcomeUnknown):
            await one.put(b"a", b"2")
        assert one.store.read_only
        assert one.get(b"a") == b"1"
        with pytest.raises(ReadOnly):
            await one.put(b"a", b"3")
        with pytest.raises(ReadOnly):
            await one.store.barrier()
        await two.put(b"a", b"4")
        one.link.fail(False)
        await until(lambda: not one.store.read_only)
        assert one.get(b"a") == b"4"
        await one.put(b"a", b"5")
        await same(one, two)


@virtual_time(seed=11)
async def test_what_an_owner_answers_that_cannot_know_of_a_take_over_holds() -> None:
    loop = running_loop()
    async with replicas(2) as (one, two):
        lease = await one.grant(2.0)
        await one.put(b"a", b"", lease)
        await two.store.barrier()
        one.link.fail(True)
        assert await two.renew(lease) == 2.0, "one that was long on its way, say"
        answered = 0.0
        while not one.store.read_only:
            with suppress(ReadOnly):
                answered = loop.time() if await one.renew(lease) else answered
            await asyncio.sleep(0.1)
        assert answered
        await until(lambda: two.get(b"a") is None)
        assert 2.0 - LATENCY_S <= loop.time() - answered <= PROMISE_S + 2.0 + TICK_S


@virtual_time(seed=11)
async def test_a_replica_that_is_cut_off_says_so_before_its_leases_are_given_away() -> None:
    loop = running_loop()
    async with replicas(2) as (one, two):
        lease = await one.grant(30.0)
        one.link.fail(True)
        cut = loop.time()
        await until(lambda: one.store.read_only)
        assert loop.time() - cut < 10.0
        assert two.store.numbers()["leases_owned"] == 0
        await until(lambda: two.store.numbers()["leases_owned"])
        one.link.fail(False)
        await until(lambda: not one.store.read_only)
        await one.store.barrier()
        assert (one.store.numbers()["leases_owned"], two.store.numbers()["leases_owned"]) == (0, 1)
        assert await one.renew(lease) == 30.0


@virtual_time(seed=12)
async def test_what_was_compacted_unseen_is_read_anew_without_a_gap() -> None:
    etcd = ModelEtcd()
    async with replicas(2, etcd) as (one, two):
        for at in range(5):
            await one.put(b"%d" % at, b"old")
        await two.store.barrier()
        revision = two.store.mvcc.revision
        watchers = [two.store.watch(b"7", None, 0, lambda: None), two.store.watch(b"", b"", 0, lambda: None)]
        two.link.fail(True)
        for at in range(3, 8):
            await one.put(b"%d" % at, b"new")
        await one.store.commit(Txn(then=(Delete(b"0"),)))
        etcd.compact()
        two.link.fail(False)
        await until(lambda: two.get(b"7") is not None)
        assert {kv.key: kv.value for kv in two.store.mvcc.range(Range(b"", b"")).entries} == {
            kv.key: kv.value for kv in one.store.mvcc.range(Range(b"", b"")).entries
        }
        lost = two.store.watch(b"", b"", revision + 1, lambda: None).take()
        assert isinstance(lost, Lost), "whoever resumes in between is told"
        for watcher in watchers:
            assert watcher.take() == Lost(from_revision=revision + 1, to_revision=two.store.mvcc.revision)
            assert watcher.take() is None
            assert not watcher.pending
        last = await one.put(b"7", b"newest")
        await two.store.barrier()
        assert [batch.revision for batch in map(Watcher.take, watchers) if isinstance(batch, Batch)] == [last, last]
        assert two.store.numbers()["etcd_resyncs"] == 1


@virtual_time(seed=21)
async def test_watchers_are_told_of_what_came_and_went_unseen() -> None:
    """The state is the same before and after, and nothing but the loss says that there was something between."""
    etcd = ModelEtcd()
    async with replicas(2, etcd) as (one, two):
        await one.put(b"a", b"1")
        await two.store.barrier()
        watcher = two.store.watch(b"brief", None, 0, lambda: None)
        two.link.fail(True)
        await one.put(b"brief", b"")
        await one.store.commit(Txn(then=(Delete(b"brief"),)))
        etcd.compact()
        two.link.fail(False)
        await until(lambda: two.store.numbers()["etcd_resyncs"])
        assert isinstance(watcher.take(), Lost)


@virtual_time(seed=12)
async def test_a_mirror_that_missed_only_what_came_and_went_is_at_the_revision_of_the_others() -> None:
    """Or clients that have seen that revision would take this replica to be behind until the next write."""
    etcd = ModelEtcd()
    async with replicas(2, etcd) as (one, two):
        await one.put(b"a", b"1")
        await two.store.barrier()
        two.link.fail(True)
        await one.put(b"b", b"2")
        await one.store.commit(Txn(then=(Delete(b"b"),)))
        etcd.compact()
        two.link.fail(False)
        await until(lambda: two.store.numbers()["etcd_resyncs"] == 1)
        assert two.store.mvcc.revision == one.store.mvcc.revision


@virtual_time(seed=13)
async def test_a_key_put_on_a_lease_as_it_ends_goes_with_it_or_keeps_it() -> None:
    for attempt in range(40):
        etcd = ModelEtcd()
        async with replicas(2, etcd) as (one, two):
            lease = await one.grant(5.0)
            await two.store.barrier()
            putting = asyncio.ensure_future(_put_after(two, attempt * LATENCY_S / 10, lease))
            await asyncio.sleep(2 * LATENCY_S)
            await one.store.commit(Txn(then=(EndLease(lease),)))
            await putting
            await same(one, two)
            assert one.get(b"a") is None or one.store.mvcc.get(keys.lease(lease)) is not None


async def _put_after(replica: Replica, delay_s: float, lease: int) -> None:
    await asyncio.sleep(delay_s)
    with suppress(HomeportError):
        await replica.put(b"a", b"", lease)


@virtual_time(seed=16)
async def test_what_a_range_did_not_hold_it_does_not_hold_when_it_is_written() -> None:
    async with replicas(3) as all_of_them:
        first = Compare(b"r/", "version", "=", 0, b"r0")
        for attempt in range(10):
            writing = [
                one.store.commit(Txn((first,), (Put(b"r/%d" % at, b"%d" % attempt),)))
                for at, one in enumerate(all_of_them)
            ]
            assert [done.succeeded for done in await asyncio.gather(*writing)].count(True) == 1
            await all_of_them[0].store.commit(Txn(then=(Delete(b"r/", b"r0"),)))
            for one in all_of_them:
                await one.store.barrier()


@virtual_time(seed=14)
async def test_more_keys_than_etcd_takes_at_once_end_with_their_lease_in_one_revision() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(2.0)
        for at in range(300):
            await one.put(b"k/%d" % at, b"", lease)
        revision = one.store.mvcc.revision
        await asyncio.sleep(2.0 + TICK_S)
        await same(one, two)
        assert (one.store.mvcc.revision, len(one.store.mvcc)) == (revision + 1, 0)


@virtual_time(seed=15)
async def test_the_owner_of_a_lease_is_written_beside_it() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(5.0)
        await two.store.barrier()
        kv = two.store.mvcc.get(keys.lease(lease))
        assert kv is not None
        assert wire.decode(LeaseRecord, kv.value) == LeaseRecord(5.0, one.store.ownership.replica)


@pytest.mark.parametrize("seed", range(8))
def test_mirrors_are_equal_after_any_mixture_of_writes_faults_and_deaths(seed: int) -> None:
    async def run() -> None:
        rng = random.Random(seed)
        etcd = ModelEtcd()
        acknowledged: dict[bytes, int] = {}
        async with replicas(3, etcd) as all_of_them:

            async def write(replica: Replica, name: bytes) -> None:
                """Count up a key of its own; no acknowledged step may be missing, no unknown one done twice."""
                for step in range(40):
                    await asyncio.sleep(rng.uniform(0.0, 0.3))
                    kv: KeyValue | None = replica.store.mvcc.get(name)
                    try:
                        compare = Compare(name, "version", "=", kv.version if kv else 0)
                        puts = (Put(name, b"%d" % step), Put(b"shared/%d" % rng.randrange(5), name))
                        if rng.random() < 0.2:
                            puts = (puts[0], Delete(b"shared/", b"shared0"))  # type: ignore[assignment]  # an op, too
                        done = await replica.store.commit(Txn((compare,), puts))
                        if done.succeeded:
                            acknowledged[name] = acknowledged.get(name, 0) + 1
                    except HomeportError:
                        pass

            async def suffer() -> None:
                for _ in range(6):
                    await asyncio.sleep(rng.uniform(0.2, 1.5))
                    victim = rng.choice(all_of_them)
                    match rng.randrange(3):
                        case 0:
                            victim.link.lose_answers = rng.randrange(1, 4)
                        case 1:
                            victim.link.fail(True)
                            await asyncio.sleep(rng.uniform(0.0, 8.0))
                            victim.link.fail(False)
                        case 2:
                            etcd.compact()

            writers = [write(replica, b"own/%d/%d" % (at, n)) for at, replica in enumerate(all_of_them) for n in (1, 2)]
            await asyncio.gather(suffer(), *writers)
            await until(lambda: not any(one.store.read_only for one in all_of_them))
            await asyncio.sleep(QUIET_S)
            for replica in all_of_them:
                await replica.store.barrier()
            assert len({one.store.mvcc.hash() for one in all_of_them}) == 1
            for name, times in acknowledged.items():
                kv = all_of_them[0].store.mvcc.get(name)
                assert kv is not None
                assert kv.version >= times, "an acknowledged write is lost"

    run_virtual(run(), seed=seed)


@virtual_time(seed=22)
async def test_very_many_barriers_at_once_are_few_reads_and_each_sees_what_was_acknowledged_before_it() -> None:
    async with replicas(2) as (one, two):
        reads = 0
        page = two.link.page

        async def counted(*arguments: Any) -> Page:
            nonlocal reads
            reads += 1
            return await page(*arguments)

        two.link.page = counted  # type: ignore[method-assign,assignment]

        async def check(number: int) -> None:
            await asyncio.sleep(number * LATENCY_S / 100)
            revision = await one.put(b"%d" % number)
            await two.store.barrier()
            assert two.store.mvcc.revision >= revision

        await asyncio.gather(*map(check, range(300)))
        assert reads < 60
        two.link.fail(True)
        with pytest.raises(ReadOnly):
            await two.store.barrier()


@virtual_time(seed=23)
async def test_what_another_release_says_beside_a_batch_is_left_alone() -> None:
    etcd = ModelEtcd()
    async with replicas(1, etcd) as (one,):
        etcd.apply([Write(b"/homeport/i/last", b"0123456789abcdef/1 \xc1 of a later release")])
        etcd.apply([Write(b"/homeport/i/let-go", b"\xc1")])
        await one.put(b"a", b"1")
        assert one.get(b"a") == b"1"
        assert one.store.read_only is None
