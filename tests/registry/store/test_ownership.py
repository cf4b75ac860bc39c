"""Whose promise a lease is, when replicas, and their ways to etcd, come and go: in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from homeport.client.core.errors import HomeportError, ReadOnly
from homeport.mesh.simulation.etcd import ModelEtcd
from homeport.mesh.testing import run_virtual, running_loop, virtual_time
from homeport.registry.core import keys
from homeport.registry.store import etcd_ownership
from homeport.registry.store.etcd_ownership import MEMBER_TTL_S, PROMISE_S
from tests.registry.store.test_replicas import LATENCY_S, QUIET_S, Replica, replicas, until

TTL_S = 3.0


def stands(replica: Replica, lease: int) -> bool:
    return replica.store.mvcc.get(keys.lease(lease)) is not None


async def gone(replica: Replica, lease: int) -> None:
    await until(lambda: not stands(replica, lease))


@virtual_time(seed=1)
async def test_a_renewal_that_moves_a_lease_is_answered_when_that_is_written() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(TTL_S)
        await two.store.barrier()
        moving = two.store.lease_renew(lease)
        again = two.store.lease_renew(lease)
        assert isinstance(moving, asyncio.Future)
        assert isinstance(again, asyncio.Future), "the one is not written, so neither is the other's promise"
        assert await moving == await again == TTL_S
        assert two.store.numbers()["leases_owned"] == 1
        assert two.store.lease_renew(lease) == TTL_S, "its own by now"


@virtual_time(seed=2)
async def test_a_renewal_elsewhere_at_the_last_moment_keeps_the_lease_or_says_that_it_is_gone() -> None:
    loop = running_loop()
    outcomes: set[bool] = set()
    for step in range(60):
        async with replicas(2, ModelEtcd()) as (one, two):
            lease = await one.grant(TTL_S)
            granted = loop.time()
            await two.store.barrier()
            await asyncio.sleep(granted + TTL_S + step * 0.005 - loop.time())
            heard = loop.time()
            ttl_s = await two.renew(lease)
            outcomes.add(ttl_s > 0.0)
            if ttl_s:
                await asyncio.sleep(heard + ttl_s - 0.01 - loop.time())
            assert stands(one, lease) == stands(two, lease) == (ttl_s > 0.0)
    assert outcomes == {True, False}, "both sides of that moment were met"


@virtual_time(seed=3)
async def test_the_answers_of_a_replica_that_is_being_cut_off_are_promises_all_the_same() -> None:
    loop = running_loop()
    for step in range(12):
        async with replicas(2, ModelEtcd()) as (one, two):
            lease = await one.grant(TTL_S)
            await asyncio.sleep(step * 0.2)
            one.link.fail(True)
            cut = last = loop.time()
            refused = 0
            while loop.time() - cut < 2 * MEMBER_TTL_S and stands(two, lease):
                heard = loop.time()
                try:
                    await one.renew(lease)
                    last = heard
                except ReadOnly:
                    refused += 1
                await asyncio.sleep(0.05)
            assert refused > 50, "it went on to ask"
            assert last - cut <= PROMISE_S
            await gone(two, lease)
            assert loop.time() >= last + TTL_S


@virtual_time(seed=4)
async def test_a_replica_that_comes_back_owns_nothing_of_what_it_had() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(60.0)
        before = one.store.ownership.replica
        one.link.fail(True)
        await asyncio.sleep(QUIET_S)
        with pytest.raises(ReadOnly):
            await one.renew(lease)
        one.link.fail(False)
        await until(lambda: not one.store.read_only)
        assert one.store.ownership.replica != before
        moving = one.store.lease_renew(lease)
        assert isinstance(moving, asyncio.Future), "it is not its own any more"
        assert await moving == 60.0
        await two.store.barrier()
        assert two.store.numbers()["leases_owned"] == 0
        assert one.store.numbers()["replicas"] == two.store.numbers()["replicas"] == 2


@virtual_time(seed=5)
async def test_a_replica_that_stood_still_promises_nothing_when_it_wakes() -> None:
    loop = running_loop()
    etcd = ModelEtcd()
    asleep_s = 0.0
    one = Replica(etcd, 1, now=lambda: loop.time() + asleep_s)
    await one.store.start()
    lease = await one.grant(60.0)
    assert one.store.lease_renew(lease) == 60.0
    asleep_s = PROMISE_S  # it stood still: no timer has fired
    with pytest.raises(ReadOnly):
        await one.renew(lease)
    await until(lambda: one.store.ownership.promising)
    assert one.store.lease_renew(lease) == 60.0, "etcd has not let go of it"
    await one.store.close()


class Said:
    """What a lease listener hears."""

    def __init__(self) -> None:
        self.silent: set[int] = set()

    def ending(self, leases: Sequence[int], more: int, at: float, since: float, /) -> None: ...

    def overdue(self, leases: Sequence[int], /) -> None:
        self.silent |= set(leases)

    def let_go(self, node: str, id: str, /) -> None:  # noqa: A002 - the field's name everywhere else
        raise AssertionError("nothing is kept")

    def renewed(self, lease: int, /) -> None:
        self.silent.discard(lease)


@pytest.mark.parametrize("away_s", [8.5, 40.0])
def test_what_was_silent_to_one_that_was_cut_off_is_not_when_it_lives_on_elsewhere(away_s: float) -> None:
    async def run() -> None:
        async with replicas(2) as (one, two):
            said = Said()
            one.store.listen_leases(said)
            lease = await one.grant(TTL_S)
            await two.store.barrier()
            one.link.fail(True)
            for _ in range(int(away_s / (TTL_S / 6))):
                assert await two.renew(lease) == TTL_S
                await asyncio.sleep(TTL_S / 6)
            assert said.silent == {lease}
            one.link.fail(False)
            await until(lambda: not one.store.read_only)
            assert await two.renew(lease) == TTL_S
            await one.store.barrier()
            assert said.silent == set()
            await until(lambda: not stands(one, lease))

    run_virtual(run(), seed=6)


@pytest.mark.parametrize("seed", range(6))
def test_no_lease_ends_before_its_ttl_whoever_hears_its_renewals_and_whatever_is_cut(seed: int) -> None:
    async def run() -> None:
        rng = random.Random(seed)
        loop = running_loop()
        until_s = loop.time() + 60.0
        etcd = ModelEtcd()
        ended: dict[int, float] = {}
        heard: dict[int, float] = {}
        async with replicas(3, etcd) as all_of_them:

            async def live(at: int) -> None:
                """A client: renews at one replica, and moves on when that refuses or it feels like it."""
                replica = all_of_them[at % 3]
                lease = replica.store.new_lease()
                while True:
                    try:
                        await replica.store.lease_grant(TTL_S, lease)
                        break
                    except HomeportError:
                        await asyncio.sleep(0.5)
                seen = replica.store.mvcc.revision
                heard[lease] = loop.time()
                while loop.time() < until_s:
                    await asyncio.sleep(rng.uniform(0.3, 1.2))
                    asked = loop.time()
                    try:
                        ttl_s = await replica.renew(lease)
                    except HomeportError:
                        ttl_s = -1.0
                    if ttl_s == 0.0:
                        return  # it is gone, and that was said
                    if ttl_s > 0.0:
                        heard[lease] = max(asked, heard[lease])
                        seen = max(seen, replica.store.mvcc.revision)
                    if ttl_s < 0.0 or rng.random() < 0.1:
                        others = [one for one in all_of_them if one.store.mvcc.revision >= seen]
                        replica = rng.choice(others)  # as a client does, which waits for one that has seen as much

            async def cut() -> None:
                while loop.time() < until_s:
                    replica = rng.choice(all_of_them)
                    replica.link.fail(True)
                    await asyncio.sleep(rng.choice((1.0, 4.0, 9.0, 15.0)))
                    replica.link.fail(False)
                    await asyncio.sleep(rng.uniform(0.0, 6.0))

            async def look() -> None:
                while loop.time() < until_s + 30.0:
                    await asyncio.sleep(LATENCY_S)
                    for lease in heard.keys() - ended.keys():
                        if etcd.keys.get(b"/homeport/k" + keys.lease(lease)) is None:
                            ended[lease] = loop.time()

            async with asyncio.TaskGroup() as tasks:
                for at in range(12):
                    tasks.create_task(live(at))
                tasks.create_task(cut())
                tasks.create_task(look())
        print(f"seed {seed}: {len(ended)} of {len(heard)} ended")
        assert len(heard) == len(ended) == 12, "all end, since nobody renews any more"
        for lease, when in ended.items():
            assert when >= heard[lease] + TTL_S - 0.001, f"{lease:x} ended {when - heard[lease]:.3f} s after a renewal"

    run_virtual(run(), seed=seed)


@virtual_time(seed=7)
async def test_very_many_leases_are_adopted_some_at_a_time_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_ownership, "_ADOPTIONS_MAX", 20)
    async with replicas(2) as (one, two):
        await asyncio.gather(*(one.grant(60.0) for _ in range(300)))
        await two.store.barrier()
        await one.store.close()
        most = 0
        while two.store.numbers()["leases_owned"] < 300:
            most = max(most, len(two.store.ownership._adopting))
            await asyncio.sleep(LATENCY_S / 2)
        assert most == 20


@virtual_time(seed=30)
async def test_a_replica_that_is_cut_off_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="homeport.registry.store")
    async with replicas(1) as (one,):
        one.link.fail(True)
        await asyncio.sleep(60.0)
        one.link.fail(False)
        await until(lambda: one.store.read_only is None)
        await one.put(b"a")
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    beginnings = {"the mirror waits", "etcd is not told that this replica lives", "nothing can be written"}
    assert [said.count(one) for one in beginnings] == [1, 1, 1]
    assert len(said) <= 2 * len(beginnings)


@virtual_time(seed=31)
async def test_who_has_given_up_leaves_no_error_behind_when_a_lease_could_not_be_moved() -> None:
    async with replicas(2) as (one, two):
        lease = await one.grant(TTL_S)
        await two.store.barrier()
        moving = two.store.lease_renew(lease)
        assert isinstance(moving, asyncio.Future)
        await asyncio.sleep(0.0)
        two.link.fail(True)
        moving.cancel()
        await until(lambda: two.store.read_only)
        await asyncio.sleep(1.0)
