"""What is on its way is read like what is there: ranges and leases at head, against looking at everything."""

from __future__ import annotations

import random

import pytest

from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.head import Head
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Delete, EndLease, Op, Put, Txn, matches

SEEDS = range(30)
_KEYS = [b"%c/%d" % (letter, number) for letter in b"abc" for number in range(6)]
_LEASES = (1, 2, 3)


class _World:
    """A head, its history, and what is written and not yet durable."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.mvcc = Mvcc()
        self.head = Head(self.mvcc)
        self.on_its_way: list[tuple[int, tuple[Change, ...]]] = []
        self.truth: dict[bytes, KeyValue] = {}

    def write(self, *ops: Op) -> None:
        changes = self.head.decide(Txn(then=ops)).changes
        if changes:
            self.on_its_way.append((self.head.revision, changes))
        for change in changes:
            if change.kv is None:
                self.truth.pop(change.key, None)
            else:
                self.truth[change.key] = change.kv

    def settle_one(self) -> None:
        revision, changes = self.on_its_way.pop(0)
        self.mvcc.apply(revision, changes)
        self.head.settle(revision, changes)

    def roll_back(self) -> None:
        self.on_its_way.clear()
        self.head.rollback()
        self.truth = {key: kv for key in self.mvcc.keys(b"", b"") if (kv := self.mvcc.get(key)) is not None}

    def step(self) -> None:
        rng = self.rng
        match rng.randrange(10):
            case 0 | 1 | 2:
                standing = [lease for lease in _LEASES if keys.lease(lease) in self.truth]
                self.write(Put(rng.choice(_KEYS), b"v", rng.choice([0, *standing])))
            case 3:
                self.write(Put(keys.lease(rng.choice(_LEASES)), b"lease"))
            case 4:
                self.write(EndLease(rng.choice(_LEASES)))
            case 5:
                self.write(Delete(rng.choice(_KEYS)))
            case 6:
                self.write(Delete(b"a/", b"a0"))
            case 7 | 8 if self.on_its_way:
                self.settle_one()
            case 9 if rng.random() < 0.1:
                self.roll_back()

    def check(self) -> None:
        for start, end in ((b"a/", b"a0"), (b"b/2", b"c/3"), (b"", b""), (b"c/", b"")):
            found = [kv.key for kv in self.head.range(start, end)]
            assert found == sorted(key for key in self.truth if matches(key, start, end))
        for lease in _LEASES:
            attached = sorted(key for key, kv in self.truth.items() if kv.lease == lease)
            assert sorted(self.head.keys_on(lease)) == attached


@pytest.mark.parametrize("seed", SEEDS)
def test_ranges_and_leases_at_head_are_those_of_all_that_was_decided(seed: int) -> None:
    world = _World(random.Random(seed))
    for _ in range(300):
        world.step()
        world.check()
    while world.on_its_way:
        world.settle_one()
        world.check()
    assert not world.head._pending
    assert world.head._sorted is None
    assert not world.head._leased
