"""`Mvcc`, `Head` and `WatchHub` together, against a model that keeps every revision as a whole dictionary.

Hypothesis draws the steps: transactions decided at head, made durable in order or rolled back, reads at any revision,
compactions, and watchers that read eagerly, lazily or not at all. Whatever the steps, answers are the model's, and each
watcher gets exactly the model's changes or is told exactly which revisions it lost.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from homeport.client.core.errors import Compacted, FutureRevision, HomeportError
from homeport.client.core.model import Lost
from homeport.registry.core import keys
from homeport.registry.core.head import Head
from homeport.registry.core.limits import WATCH_BUFFER_BATCHES
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import (
    Change,
    Compare,
    Delete,
    DeleteResult,
    EndLease,
    Op,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from homeport.registry.core.watches import Batch, Filter, WatchHub
from tests.registry.core.store_model import StoreModel, in_range

LEASES: Final = (1, 2)
NAMES: Final = (b"a", b"a/1", b"a/2", b"a\xff", b"b", b"k", b"\xff", b"\xff\xff")
RECORDS: Final = tuple(keys.lease(lease) for lease in LEASES)
BOUNDS: Final = (None, b"", b"a0", b"b", b"c", b"l0", b"\xff\xff")

names = st.sampled_from(NAMES + RECORDS)
starts = st.sampled_from((*NAMES, *RECORDS, b"", b"a/", b"l/"))
ends = st.sampled_from(BOUNDS)
values = st.sampled_from((b"", b"1", b"2", b"\xff"))
leases = st.sampled_from((0, 0, 0, *LEASES))
revisions = st.integers(0, 30)
filters: st.SearchStrategy[Filter] = st.sampled_from(("", "", "put", "delete"))

compares: st.SearchStrategy[Compare] = st.one_of(
    st.builds(
        Compare,
        starts,
        st.sampled_from(("version", "create", "mod", "lease")),
        st.sampled_from(("=", "!=", "<", ">")),
        st.integers(0, 6),
        ends,
    ),
    st.builds(Compare, starts, st.just("value"), st.sampled_from(("=", "!=", "<", ">")), values, ends),
)
ranges = st.builds(
    Range,
    key=starts,
    end=ends,
    revision=st.one_of(st.just(0), revisions),
    limit=st.integers(0, 3),
    sort_by=st.sampled_from(("key", "version", "create", "mod", "value")),
    descending=st.booleans(),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    min_mod_revision=st.one_of(st.just(0), revisions),
    max_mod_revision=st.one_of(st.just(0), revisions),
    min_create_revision=st.one_of(st.just(0), revisions),
    max_create_revision=st.one_of(st.just(0), revisions),
)
plain_ops: st.SearchStrategy[Op] = st.one_of(
    st.builds(Put, names, values, leases),
    st.builds(Put, st.sampled_from(RECORDS), st.just(b""), leases),
    st.builds(Delete, starts, ends),
    st.builds(EndLease, st.sampled_from(LEASES)),
    st.builds(Range, starts, ends, st.one_of(st.just(0), revisions)),
)


def txns_of(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Txn]:
    return st.builds(
        Txn,
        st.lists(compares, max_size=2).map(tuple),
        st.lists(ops, min_size=1, max_size=3).map(tuple),
        st.lists(ops, max_size=2).map(tuple),
    )


txns = txns_of(st.one_of(plain_ops, plain_ops, txns_of(st.one_of(plain_ops, txns_of(plain_ops)))))


class Reader:
    """One watcher with the test's own account of what it has been given."""

    def __init__(self, machine: StoreMachine, key: bytes, end: bytes | None, start: int, omit: Filter, eager: bool):
        self.machine = machine
        self.key, self.end, self.omit, self.eager = key, end, omit, eager
        self.position = start or machine.model.durable + 1  # the first revision it has not been told about
        self.woken = False
        self.knows = False  # it saw more pending when it last took
        self.watcher: Any = None
        self.watcher = machine.hub.watch(key, end, start, self.wake, omit)
        if eager:
            self.drain()

    def wake(self) -> None:
        assert not self.woken, "woken twice without a take in between"
        self.woken = True
        if self.eager and self.watcher is not None:
            self.drain()

    def drain(self) -> None:
        self.take()
        while self.watcher.pending:
            self.take()

    def expected(self, start: int, stop: int) -> list[tuple[int, dict[bytes, Change]]]:
        """The model's changes for this reader in the revisions `[start, stop)`."""
        model = self.machine.model
        found = []
        for revision in range(max(start, 2), stop):
            mine = {
                key: change
                for key, change in model.changes(revision).items()
                if in_range(key, self.key, self.end) and self.omit != ("delete" if change.kv is None else "put")
            }
            if mine:
                found.append((revision, mine))
        return found

    def take(self) -> None:
        self.woken = False
        durable = self.machine.model.durable
        item = self.watcher.take()
        self.knows = self.watcher.pending
        match item:
            case Batch():
                assert self.expected(self.position, item.revision) == [], "revisions were skipped without a word"
                mine = {change.key: change for change in item.changes}
                assert len(mine) == len(item.changes)
                assert self.expected(item.revision, item.revision + 1) == [(item.revision, mine)]
                self.position = item.revision + 1
            case Lost(from_revision=first, to_revision=last):
                assert self.expected(self.position, first) == [], "more was lost than was said"
                assert self.position <= first <= last == self.machine.model.compacted, "this was not lost"
                self.position = last + 1
            case None:
                if not self.knows:
                    assert self.expected(self.position, durable + 1) == [], "something was due and nothing came"
                    self.position = durable + 1

    def check(self) -> None:
        """What holds at rest, whatever has happened."""
        watcher, durable = self.watcher, self.machine.model.durable
        assert len(watcher._buffer) <= WATCH_BUFFER_BATCHES
        if watcher.pending:
            assert self.woken or self.knows, "something waits and nobody was woken"
            assert watcher.progress() is None
        else:
            assert self.expected(self.position, durable + 1) == []
            assert watcher.progress() == durable
            self.position = durable + 1


class StoreMachine(RuleBasedStateMachine):
    """The steps; `settle` does what a store does when its journal reports a revision durable."""

    def __init__(self) -> None:
        super().__init__()
        self.model = StoreModel()
        self.mvcc = Mvcc()
        self.head = Head(self.mvcc)
        self.hub = WatchHub(self.mvcc)
        self.pending: list[tuple[int, tuple[Change, ...]]] = []
        self.readers: list[Reader] = []

    # --- writing ------------------------------------------------------------------------------------------------

    @rule(txn=txns)
    def decide(self, txn: Txn) -> None:
        before = self.model.head
        expected = self.model.decide(txn)
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.head.decide(txn)
            return
        outcome = self.head.decide(txn)
        assert normal(outcome.result) == normal(expected)
        assert self.head.revision == self.model.head
        if self.model.head == before:
            assert outcome.changes == ()
        else:
            assert {change.key: change for change in outcome.changes} == self.model.changes(self.model.head)
            self.pending.append((self.head.revision, outcome.changes))

    @rule(key=names, value=values, lease=leases)
    def put(self, key: bytes, value: bytes, lease: int) -> None:
        self.decide(Txn(then=(Put(key, value, lease),)))

    @rule(lease=st.sampled_from(LEASES), key=st.sampled_from(NAMES))
    def grant_and_use(self, lease: int, key: bytes) -> None:
        self.decide(Txn(then=(Put(keys.lease(lease), b""), Put(key, b"held", lease))))

    @rule(count=st.integers(1, 8))
    @precondition(lambda self: self.pending)
    def settle(self, count: int) -> None:
        for revision, changes in self.pending[:count]:
            self.model.durable = revision
            self.mvcc.apply(revision, changes)
            self.head.settle(revision, changes)
            self.hub.publish(revision, changes)
        del self.pending[:count]

    @rule()
    @precondition(lambda self: self.pending)
    def rollback(self) -> None:
        self.pending.clear()
        self.head.rollback()
        self.model.rollback()

    @rule(key=st.sampled_from(NAMES), count=st.sampled_from((20, WATCH_BUFFER_BATCHES + 5, 600)))
    def burst(self, key: bytes, count: int) -> None:
        """So many revisions that a reader who sleeps falls behind its buffer, or has pages of history to go through."""
        self.settle(len(self.pending))
        if self.model.head < 1_500:
            for _ in range(count):
                self.put(key, b"burst", 0)
            self.settle(count)

    @rule(back=st.one_of(st.integers(-1, 4), st.integers(0, 700)), changes_max=st.sampled_from((None, None, 1, 2, 50)))
    def compact(self, back: int, changes_max: int | None) -> None:
        revision = self.model.durable - back
        try:
            whole = self.mvcc.compact(revision, changes_max)
        except Compacted:
            assert revision <= self.model.compacted
            return
        except FutureRevision:
            assert revision > self.model.durable
            return
        assert self.model.compacted < self.mvcc.compact_revision <= revision
        assert whole == (self.mvcc.compact_revision == revision)
        assert whole or changes_max is not None
        self.model.compacted = self.mvcc.compact_revision

    # --- reading ------------------------------------------------------------------------------------------------

    @rule(query=ranges, back=st.one_of(st.none(), st.integers(-1, 40)))
    def read(self, query: Range, back: int | None) -> None:
        if back is not None:
            query = Range(
                **{name: getattr(query, name) for name in query.__struct_fields__}
                | {"revision": max(0, self.model.durable - back)}
            )
        expected = self.model.range(query)
        try:
            found: RangeResult | type[HomeportError] = self.mvcc.range(query)
        except HomeportError as error:
            found = type(error)
        assert found == expected

    @rule(back=st.integers(0, 40))
    def hash_is_of_the_state_alone(self, back: int) -> None:
        revision = max(self.model.durable - back, self.model.compacted, 1)
        fresh = Mvcc()
        fresh.load(self.model.states[revision].values(), max(revision, 2), 0)
        assert self.mvcc.hash(revision) == fresh.hash()

    @rule(start=starts, end=ends)
    def count_and_keys(self, start: bytes, end: bytes | None) -> None:
        state = self.model.states[self.model.durable]
        expected = sorted(key for key in state if in_range(key, start, end))
        assert list(self.mvcc.keys(start, end)) == expected
        assert self.mvcc.count(start, end) == len(expected)
        head = self.model.states[-1]
        assert list(self.head.range(start, end)) == [head[key] for key in sorted(head) if in_range(key, start, end)]

    # --- watching -----------------------------------------------------------------------------------------------

    @rule(key=starts, end=ends, back=st.one_of(st.none(), st.integers(-2, 40)), omit=filters, eager=st.booleans())
    def watch(self, key: bytes, end: bytes | None, back: int | None, omit: Filter, eager: bool) -> None:
        start = 0 if back is None else max(1, self.model.durable - back)
        if start > self.model.durable + 1:
            with pytest.raises(FutureRevision):
                self.hub.watch(key, end, start, lambda: None, omit)
        elif len(self.readers) < 12:
            self.readers.append(Reader(self, key, end, start, omit, eager))

    @rule(at=st.integers(0, 11), count=st.sampled_from((1, 2, 300)))
    @precondition(lambda self: self.readers)
    def take(self, at: int, count: int) -> None:
        reader = self.readers[at % len(self.readers)]
        for _ in range(count):
            reader.take()

    @rule(at=st.integers(0, 11))
    @precondition(lambda self: self.readers)
    def close(self, at: int) -> None:
        reader = self.readers.pop(at % len(self.readers))
        reader.watcher.close()
        reader.watcher.close()
        assert not reader.watcher.pending
        assert reader.watcher.take() is None

    # --- always -------------------------------------------------------------------------------------------------

    @invariant()
    def heads_agree(self) -> None:
        assert self.head.revision == self.model.head
        assert self.mvcc.revision == self.hub.revision == self.model.durable
        assert self.mvcc.compact_revision == self.model.compacted
        assert len(self.mvcc) == len(self.model.states[self.model.durable])
        for key in NAMES + RECORDS:
            assert self.mvcc.get(key) == self.model.states[self.model.durable].get(key)
            assert self.head.get(key) == self.model.states[-1].get(key)

    @invariant()
    def leases_hold_their_keys(self) -> None:
        for lease in LEASES:
            for found, state in (
                (self.mvcc.keys_on(lease), self.model.states[self.model.durable]),
                (self.head.keys_on(lease), self.model.states[-1]),
            ):
                assert len(set(found)) == len(found)
                assert set(found) == {key for key, kv in state.items() if kv.lease == lease}

    @invariant()
    def history_is_bounded(self) -> None:
        first = max(self.model.compacted + 1, 2)
        assert self.mvcc.history_length() == self.model.durable + 1 - first
        if self.model.durable - first > 200:
            return  # counting them again at every step would take longer than the steps
        kept = [self.model.changes(revision).values() for revision in range(first, self.model.durable + 1)]
        superseded = sum(change.prev is not None for changes in kept for change in changes)
        assert sum(len(versions) for versions in self.mvcc._old.values()) == superseded
        assert set(self.mvcc._ghosts) == set(self.mvcc._old) - set(self.mvcc._keys)

    @invariant()
    def readers_are_served(self) -> None:
        assert self.hub.watchers == len(self.readers)
        for reader in self.readers:
            reader.check()


def normal(result: Any) -> Any:
    """A result without the order in which a lease's keys were deleted, which nobody promised."""
    match result:
        case TxnResult():
            return (result.revision, result.succeeded, [normal(one) for one in result.responses])
        case DeleteResult():
            return sorted((kv.key, kv) for kv in result.prevs)
    return result


SHORT: Final = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,  # the same steps every time; the long search draws new ones
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_store_and_watches_agree_with_the_model() -> None:
    run_state_machine_as_test(StoreMachine, settings=SHORT)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_store_and_watches_agree_with_the_model_on_new_steps() -> None:
    in_ci = os.environ.get("LONG") == "slice"  # there the same steps every time, and fewer: it must not find news
    search = settings(SHORT, max_examples=60 if in_ci else 400, stateful_step_count=60, derandomize=in_ci)
    run_state_machine_as_test(StoreMachine, settings=search)
