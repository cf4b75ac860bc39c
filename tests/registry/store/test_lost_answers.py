"""Writes whose answer was lost, and an etcd that is no longer the one it was: nothing is done twice, or denied."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeport.client.core.errors import OutcomeUnknown, ReadOnly
from homeport.mesh.simulation.etcd import ModelEtcd
from homeport.mesh.testing import run_virtual, virtual_time
from homeport.registry.core.txn import Compare, Delete, DeleteResult, Put, Txn
from homeport.registry.store.etcd_cluster import Refused, TxnAnswer, Write
from tests.registry.store.test_replicas import LATENCY_S, QUIET_S, replicas, same, until


@virtual_time(seed=6)
async def test_a_lost_answer_is_no_second_write() -> None:
    async with replicas(2) as (one, two):
        kv = one.store.mvcc.get(b"n")
        for at in range(20):
            one.link.lose_answers = 1 + at % 2
            await one.put(b"n", b"%d" % at)
            await two.put(b"other", b"")
        kv = one.store.mvcc.get(b"n")
        assert kv is not None
        assert (kv.value, kv.version) == (b"19", 20)
        await same(one, two)


@virtual_time(seed=26)
async def test_what_was_made_and_is_deleted_before_its_lost_answer_is_asked_for_is_not_made_again() -> None:
    async with replicas(2) as (one, two):
        for at in range(20):
            one.link.lose_answers = 1 + at % 2
            make = Txn((Compare(b"n", "version", "=", 0),), (Put(b"n", b"%d" % at),))
            making = asyncio.ensure_future(one.store.commit(make))
            await until(lambda: two.get(b"n") is not None)
            (gone,) = (await two.store.commit(Txn((), (Delete(b"n"),)))).responses
            assert isinstance(gone, DeleteResult)
            assert len(gone.prevs) == 1
            made = await making
            assert made.succeeded
            await same(one, two)
            assert two.get(b"n") is None, "made once, deleted once"


@virtual_time(seed=24)
async def test_a_lost_answer_is_found_where_the_mirror_leaps_over_history_that_is_gone() -> None:
    etcd = ModelEtcd()
    async with replicas(1, etcd) as (one,):
        first = await one.put(b"n", b"1")
        one.link.lose_answers = 1
        writing = one.store.commit(Txn((Compare(b"n", "mod", "=", first),), (Put(b"n", b"2"),)))
        await asyncio.sleep(1.5 * LATENCY_S)
        assert etcd.keys[b"/homeport/kn"].value == b"\x002", "etcd has it, and the answer is on its way"
        one.link.fail(True)  # the member dies with the answer, and the watch breaks
        etcd.compact()
        one.link.fail(False)
        assert (await writing).succeeded
        assert one.store.numbers()["etcd_resyncs"] == 1
        kv = one.store.mvcc.get(b"n")
        assert kv is not None
        assert (kv.value, kv.version) == (b"2", 2)


@virtual_time(seed=25)
async def test_nobody_knows_of_a_lost_answer_whose_trace_is_gone_as_well() -> None:
    etcd = ModelEtcd()
    async with replicas(2, etcd) as (one, two):
        first = await one.put(b"n", b"1")
        await two.store.barrier()
        one.link.lose_answers = 1
        writing = one.store.commit(Txn((Compare(b"n", "mod", "=", first),), (Put(b"n", b"2"),)))
        await asyncio.sleep(1.5 * LATENCY_S)
        assert etcd.keys[b"/homeport/kn"].value == b"\x002", "etcd has it, and the answer is on its way"
        one.link.fail(True)
        await two.put(b"other")  # in whose batch the name of the first is overwritten
        etcd.compact()
        one.link.fail(False)
        with pytest.raises(OutcomeUnknown):
            await writing


@virtual_time(seed=26)
async def test_that_etcd_refuses_another_attempt_says_nothing_of_one_whose_answer_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with replicas(1) as (one,):
        txn, refusals = one.link.txn, 2

        async def overloaded(*arguments: Any) -> TxnAnswer:
            nonlocal refusals
            if one.link.txns > sent and refusals:
                refusals -= 1
                raise Refused("too many requests")
            return await txn(*arguments)

        await one.put(b"n", b"1")
        sent = one.link.txns
        monkeypatch.setattr(one.link, "txn", overloaded)
        one.link.lose_answers = 1
        await one.put(b"n", b"2")
        assert refusals == 0
        kv = one.store.mvcc.get(b"n")
        assert kv is not None
        assert (kv.value, kv.version) == (b"2", 2)


@pytest.mark.parametrize("what", ["emptied", "put back"])
def test_an_etcd_that_holds_another_history_is_mirrored_no_more(what: str) -> None:
    async def run() -> None:
        etcd = ModelEtcd()
        async with replicas(1, etcd) as (one,):
            before = (etcd.revision, dict(etcd.keys), list(etcd.log))
            for at in range(10):
                await one.put(b"n", b"%d" % at)
            etcd.revision, etcd.keys, etcd.log = before if what == "put back" else (1, {}, [])
            for lease in tuple(etcd.leases):
                etcd.leases.pop(lease)[1].cancel()
            one.link.fail(True)
            one.link.fail(False)
            await until(lambda: one.store.read_only)
            await asyncio.sleep(QUIET_S)
            assert "another history" in (one.store.read_only or "")
            with pytest.raises(ReadOnly, match="another history"):
                await one.put(b"n", b"none")
            for _ in range(20):  # it comes as far again
                etcd.apply([Write(b"/homeport/kn", b"\0another")])
            await asyncio.sleep(QUIET_S)
            assert one.get(b"n") == b"9", "nothing of the one is mixed into the other"
            assert one.store.read_only

    run_virtual(run(), seed=27)
