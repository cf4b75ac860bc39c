"""The rules of sessions and locks, decided by the pure core on a store's head, in any interleaving."""

from __future__ import annotations

import random

import msgspec
import pytest

from homeport.client.core import wire
from homeport.registry.core import keys, sessions, user_keys
from homeport.registry.core.head import Head
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.overlay import PENDING, Overlay
from homeport.registry.core.sessions import Delay, Refused, Session, lock, unlock
from homeport.registry.core.txn import EndLease, Put, Txn
from homeport.registry.core.user_keys import UserKey

KEY = b"k"


class Bench:
    """A store whose revisions are durable when the test says so: what is read may be older than what decides."""

    def __init__(self) -> None:
        self.mvcc = Mvcc()
        self.head = Head(self.mvcc)
        self._decided: list[tuple[int, tuple[object, ...]]] = []
        self._leases = 0

    def commit(self, txn: Txn) -> bool:
        outcome = self.head.decide(txn, 1000)
        if outcome.changes:
            self._decided.append((outcome.result.revision, outcome.changes))
        return outcome.result.succeeded

    def settle(self) -> None:
        for revision, changes in self._decided:
            self.mvcc.apply(revision, changes)  # type: ignore[arg-type]
            self.head.settle(revision, changes)  # type: ignore[arg-type]
        self._decided.clear()

    def grant(self, _ttl_s: float) -> Put:
        self._leases += 1
        return Put(keys.lease(self._leases), b"")

    def session(self, id_: str, behaviour: sessions.Behaviour = "release", delay_s: float = 0.0) -> Session:
        put = self.grant(0)
        lease = keys.lease_number(put.key)
        made = Session(id=id_, node="n", lease=lease, behaviour=behaviour, lock_delay_s=delay_s)
        assert self.commit(Txn(then=(put, Put(keys.session(id_), wire.encode(made), lease))))
        self.settle()
        return made


def test_a_decision_on_an_old_view_is_not_written_when_another_came_first() -> None:
    bench = Bench()
    bench.session("a")
    bench.session("b")
    views = [Overlay(bench.mvcc), Overlay(bench.mvcc)]
    for view, id_ in zip(views, "ab", strict=True):
        taken = lock(view, KEY, id_, b"", 0)
        assert isinstance(taken, UserKey)
        assert taken.details.lock_index == 1
        assert taken.kv.mod_revision == PENDING
    assert bench.commit(views[0].txn())
    assert not bench.commit(views[1].txn())
    bench.settle()
    assert lock(Overlay(bench.mvcc), KEY, "b", b"", 0) == Refused("held", "a")


def test_a_session_that_ended_at_head_locks_nothing() -> None:
    bench = Bench()
    made = bench.session("a")
    view = Overlay(bench.mvcc)
    assert isinstance(lock(view, KEY, "a", b"", 0), UserKey)
    assert bench.commit(Txn(then=(EndLease(made.lease),)))
    assert not bench.commit(view.txn())


@pytest.mark.parametrize("behaviour", ["release", "delete"])
def test_nobody_slips_in_between_an_end_and_what_follows_it(behaviour: sessions.Behaviour) -> None:
    bench = Bench()
    ended, _ = bench.session("a", behaviour, delay_s=5), bench.session("b")
    view = Overlay(bench.mvcc)
    lock(view, KEY, "a", b"v", 0)
    assert bench.commit(view.txn())
    assert bench.commit(Txn(then=(EndLease(ended.lease),)))
    bench.settle()
    assert (bench.mvcc.get(keys.USER + KEY) is None) == (behaviour == "delete")
    assert lock(Overlay(bench.mvcc), KEY, "b", b"", 0) == Refused("abandoned", "a")
    view = Overlay(bench.mvcc)
    if behaviour == "release":
        sessions.release(view, KEY, "a", bench.grant)
    else:
        sessions.settle_delay(view, KEY, "a", True, bench.grant)
    assert bench.commit(view.txn())
    bench.settle()
    assert lock(Overlay(bench.mvcc), KEY, "b", b"", 0) == Refused("delayed")
    running = bench.mvcc.get(keys.DELAYS + KEY)
    assert running is not None
    assert wire.decode(Delay, running.value).delay_s == 5
    assert bench.commit(Txn(then=(EndLease(running.lease),)))
    bench.settle()
    assert isinstance(lock(Overlay(bench.mvcc), KEY, "b", b"", 0), UserKey)


def test_what_follows_an_end_does_not_touch_a_key_that_has_moved_on() -> None:
    bench = Bench()
    ended, _ = bench.session("a"), bench.session("b")
    view = Overlay(bench.mvcc)
    lock(view, KEY, "a", b"", 0)
    assert bench.commit(view.txn())
    bench.settle()
    late = Overlay(bench.mvcc)
    sessions.release(late, KEY, "a", bench.grant)
    assert late.txn().then == (), "a session that stands keeps what it holds"
    assert bench.commit(Txn(then=(EndLease(ended.lease),)))
    bench.settle()
    late, now = Overlay(bench.mvcc), Overlay(bench.mvcc)
    sessions.release(late, KEY, "a", bench.grant)
    sessions.release(now, KEY, "a", bench.grant)
    lock(now, KEY, "b", b"mine", 0)
    assert bench.commit(now.txn())
    assert not bench.commit(late.txn())
    bench.settle()
    again = Overlay(bench.mvcc)
    sessions.release(again, KEY, "a", bench.grant)
    assert again.txn().then == ()
    found = user_keys.find(Overlay(bench.mvcc), KEY)
    assert found is not None
    assert (found.details.session, found.kv.value) == ("b", b"mine")


def test_the_lock_delay_has_a_cap() -> None:
    session = Session(id="a", node="n", lease=1, lock_delay_s=600)
    assert session.delay_s == 60
    assert msgspec.structs.replace(session, lock_delay_s=-3).delay_s == 0


@pytest.mark.parametrize("seed", range(30))
def test_in_any_interleaving_a_key_is_one_holders_and_counts_each_new_one(seed: int) -> None:
    """Views are taken, decided and committed in any order; the history of what was committed obeys the rules."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    bench = Bench()
    for id_ in "abc":
        bench.session(id_, rng.choice(["release", "delete"]))
    views: list[tuple[str, str, Txn, object]] = []
    holder, locks = "", 0
    for _ in range(200):
        if len(views) < 4 and rng.random() < 0.6:
            view, id_ = Overlay(bench.mvcc), rng.choice("abc")
            verb = rng.choice(["lock", "lock", "unlock", "write", "delete"])
            done: object = None
            if verb == "lock":
                done = lock(view, KEY, id_, b"%d" % rng.randrange(9), 0)
            elif verb == "unlock":
                done = unlock(view, KEY, id_, b"", 0)
            elif verb == "write":
                user_keys.write(view, KEY, b"%d" % rng.randrange(9), 0)
            else:
                user_keys.delete(view, KEY)
            views.append((verb, id_, view.txn(), done))
        elif views:
            verb, id_, txn, done = views.pop(rng.randrange(len(views)))
            if txn.then and bench.commit(txn):
                if verb == "lock" and isinstance(done, UserKey):
                    assert holder in ("", id_), f"{id_} took what {holder} holds"
                    locks += holder == ""
                    holder = id_
                elif verb == "unlock" and done is not None:
                    assert holder == id_
                    holder = ""
                elif verb == "delete":
                    holder, locks = "", 0
        if rng.random() < 0.3:
            bench.settle()
            found = user_keys.find(Overlay(bench.mvcc), KEY)
            assert (found.details.session if found else "") == holder
            assert (found.details.lock_index if found else 0) == locks
