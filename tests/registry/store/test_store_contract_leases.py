"""The store's contract about leases, run on every backend, in virtual time: when they end, and what goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from homeport.client.core import wire
from homeport.client.core.errors import (
    InvalidArgument,
    LeaseGone,
)
from homeport.client.core.model import TTL_S_MAX, TTL_S_MIN
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry.core import keys
from homeport.registry.core.leases import TICK_S
from homeport.registry.core.txn import Delete, EndLease, Put, Range, Txn
from homeport.registry.store.contract import LeaseRecord, lease_put
from homeport.registry.store.etcd import EtcdStore
from tests.registry.store.steps import Reading, gone_after_s, grant, passed, put, value_of

if TYPE_CHECKING:  # the fixture's type; at run time pytest alone knows conftest
    from tests.registry.store.conftest import MakeStore


@virtual_time()
async def test_a_lease_exists_exactly_as_long_as_its_key(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        assert store.leases() == [lease]
        assert wire.decode(LeaseRecord, value_of(store, keys.lease(lease)) or b"").ttl_s == 10.0
        await store.commit(Txn(then=(Delete(keys.lease(lease)),)))
        assert store.leases() == []
        assert store.lease_renew(lease) == 0.0


@virtual_time()
async def test_a_granted_id_is_drawn_unless_given(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.lease_grant(10.0, 77)
        await store.lease_grant(10.0)
        await store.lease_grant(10.0)
        leases = store.leases()
        assert leases[0] == 77
        assert len(set(leases)) == 3
        drawn = [store.new_lease() for _ in range(100)]
        assert all(0 < lease < 1 << 63 for lease in drawn)
        assert not set(drawn) & set(leases)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, TTL_S_MIN / 2, TTL_S_MAX * 2, float("nan"), float("inf")])
async def test_a_ttl_out_of_range_is_refused(make_store: MakeStore, ttl_s: float) -> None:
    async with make_store() as store:
        with pytest.raises(InvalidArgument):
            store.lease_grant(ttl_s)
        assert store.leases() == []


@virtual_time()
async def test_a_transaction_may_grant_a_lease_and_use_it(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = store.new_lease()
        await store.commit(Txn(then=(lease_put(lease, 5.0), Put(b"a", b"", lease))))
        assert 5.0 <= await gone_after_s(store, b"a") <= 5.0 + TICK_S


@virtual_time()
async def test_a_lease_ends_no_earlier_than_its_ttl_and_no_later_than_a_tick_after(make_store: MakeStore) -> None:
    async with make_store() as store:
        for ttl_s in (0.5, 1.0, 3.21, 60.0):
            lease = await grant(store, ttl_s)
            await put(store, b"a", b"", lease)
            assert ttl_s <= await gone_after_s(store, b"a") <= ttl_s + TICK_S
            assert store.lease_renew(lease) == 0.0
            assert store.lease_remaining_s(lease) is None


@virtual_time()
async def test_the_ttl_counts_from_the_last_renewal_received(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 2.0)
        await put(store, b"a", b"", lease)
        for _ in range(50):
            await passed(1.9)
            assert store.lease_renew(lease) == 2.0
        assert value_of(store, b"a") == b""
        assert 2.0 <= await gone_after_s(store, b"a") <= 2.0 + TICK_S


@virtual_time()
async def test_renewing_writes_nothing(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 2.0)
        revision = store.mvcc.revision
        for _ in range(100):
            assert store.lease_renew(lease) == 2.0
        await store.commit(Txn())
        assert store.mvcc.revision == revision


@virtual_time()
async def test_the_remaining_time_is_what_remains(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        await passed(4.0)
        assert store.lease_remaining_s(lease) == pytest.approx(6.0, abs=0.01)
        store.lease_renew(lease)
        assert store.lease_remaining_s(lease) == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("renewed", [False, True])
def test_a_stall_extends_all_leases_by_its_length(make_store: MakeStore, renewed: bool) -> None:
    @virtual_time()
    async def run() -> None:
        async with make_store() as store:
            lease = await grant(store, 5.0)
            await put(store, b"a", b"", lease)
            await passed(3.0)
            # Of one that says nothing for longer, other replicas would take the leases over, each with its full TTL.
            running_loop().stall(3.0 if isinstance(store, EtcdStore) else 3_600.0)
            left_s = 2.0
            if renewed:  # heard before anything else after the stall, and good for a TTL like any other
                assert store.lease_renew(lease) == 5.0
                left_s = 5.0
            assert left_s - 0.01 <= await gone_after_s(store, b"a") <= left_s + TICK_S + 0.1

    run()


@virtual_time()
async def test_revoking_deletes_the_lease_and_its_keys_in_one_revision(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease, other = await grant(store, 10.0), await grant(store, 10.0)
        for key in (b"a", b"b", b"detached", b"moved"):
            await put(store, key, b"", lease)
        await put(store, b"detached")
        await put(store, b"moved", b"", other)
        reading = Reading(store, b"", b"")
        result = await store.lease_revoke(lease)
        batch = await reading.batch()
        assert batch.revision == result.revision
        assert {change.key for change in batch.changes} == {b"a", b"b", keys.lease(lease)}
        assert all(change.kv is None for change in batch.changes)
        assert reading.watcher.take() is None
        assert (await store.lease_revoke(lease)).revision == result.revision
        assert store.leases() == [other]


@virtual_time()
async def test_an_expiry_deletes_the_keys_in_one_revision(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 1.0)
        for number in range(50):
            await put(store, b"%d" % number, b"", lease)
        reading = Reading(store, b"", b"")
        assert len((await reading.batch()).changes) == 51
        assert len(store.mvcc) == 0


@virtual_time()
async def test_a_lease_granted_anew_has_its_new_ttl(make_store: MakeStore) -> None:
    async with make_store() as store:
        await store.lease_grant(1.0, 7)
        await put(store, b"a", b"", 7)
        await passed(0.5)
        await store.lease_grant(20.0, 7)
        assert 20.0 <= await gone_after_s(store, b"a") <= 20.0 + TICK_S


@virtual_time()
async def test_a_lease_and_a_key_of_it_put_in_one_transaction_are_not_ended_half(make_store: MakeStore) -> None:
    async with make_store() as store:
        lease = await grant(store, 10.0)
        await put(store, b"a", b"", lease)
        with pytest.raises(InvalidArgument):
            store.commit(Txn(then=(Put(b"b", b"", lease), EndLease(lease))))
        with pytest.raises(LeaseGone):
            store.commit(Txn(then=(EndLease(lease), Put(b"b", b"", lease))))
        await store.commit(Txn(then=(Put(b"a", b"kept"), EndLease(lease))))
        assert [kv.key for kv in store.mvcc.range(Range(b"", b"")).entries] == [b"a"]
