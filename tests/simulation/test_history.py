"""What the simulator puts together from what stores show: a start may leap, and nothing older than that may differ."""

from __future__ import annotations

from homeport.client.core.model import KeyValue
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.history import Histories, Teller
from homeport.mesh.simulation.trace import Trace
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change

STORE = "one"


def entry(key: bytes, value: bytes, revision: int) -> KeyValue:
    return KeyValue(key, value, revision, revision, 1, 0)


def holding(revision: int, *entries: KeyValue) -> Mvcc:
    """As a replica over etcd starts: with all there is, and nothing of how it came to be."""
    mvcc = Mvcc()
    mvcc.load(list(entries), revision, revision)
    return mvcc


class Told:
    """A history whose newest revision that anybody has shown is 5, with a key of 4 and one of 5."""

    def __init__(self) -> None:
        self.trace = Trace(lambda: 0.0)
        self.histories = Histories(self.trace)
        self.start(4, entry(b"a", b"1", 4))
        self.show("r", 5, entry(b"b", b"1", 5))

    def start(self, revision: int, *entries: KeyValue, party: str = "r") -> None:
        self.tellers = {**getattr(self, "tellers", {}), party: Teller(party)}
        promised = self.histories.promised()
        self.histories.started(self.tellers[party], STORE, holding(revision, *entries), promised, 0.0)

    def show(self, party: str, revision: int, kv: KeyValue) -> None:
        self.histories.told(self.tellers[party], revision, [Change(kv.key, kv, None)], 0, 0.0)

    def broken(self) -> list[str]:
        return [one.guarantee for one in self.trace.violations]


def test_what_nobody_has_shown_before_a_start_is_part_of_the_history() -> None:
    told = Told()
    told.start(8, entry(b"a", b"2", 7), entry(b"c", b"1", 8))  # b is gone
    told.show("r", 9, entry(b"d", b"1", 9))
    told.start(9, entry(b"a", b"2", 7), entry(b"c", b"1", 8), entry(b"d", b"1", 9), party="other")
    assert told.broken() == []


def test_a_replica_that_was_behind_may_show_what_a_start_has_leapt_over() -> None:
    told = Told()
    told.start(8, entry(b"a", b"2", 7), entry(b"b", b"1", 5), entry(b"c", b"1", 8), party="other")
    told.show("other", 9, entry(b"d", b"1", 9))
    told.show("r", 7, entry(b"a", b"2", 7))
    told.show("r", 8, entry(b"c", b"1", 8))
    assert told.broken() == []


def test_a_start_that_leaps_may_change_nothing_that_is_older() -> None:
    told = Told()
    told.start(8, entry(b"a", b"lost", 4), entry(b"b", b"1", 5))
    assert told.broken() == [guarantees.KEPT]
