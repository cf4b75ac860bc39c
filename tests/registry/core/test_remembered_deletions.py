"""The memory of deletions agrees with one that forgets nothing, and never lets an index go back when it forgets."""

from __future__ import annotations

import random

import pytest

from homeport.client.core.model import KeyValue
from homeport.registry.core.indexes import Deletions
from homeport.registry.core.keys import prefix_end
from homeport.registry.core.txn import Change, matches


def change(key: bytes, revision: int, *, delete: bool, existed: bool) -> Change:
    kv = KeyValue(key, b"", revision, revision, 1)
    return Change(key, None if delete else kv, kv if existed else None)


@pytest.mark.parametrize("seed", range(20))
def test_the_newest_deletion_of_a_range_is_found(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    deletions = Deletions(b"k/", 1)
    names = [b"k/" + bytes(rng.choices(b"ab\xff/", k=rng.randrange(1, 5))) for _ in range(40)]
    live: set[bytes] = set()
    gone: dict[bytes, int] = {}
    for revision in range(2, 300):
        key = rng.choice(names)
        delete = key in live and rng.random() < 0.6
        deletions.apply(revision, (change(key, revision, delete=delete, existed=key in live),))
        if delete:
            live.discard(key)
            gone[key] = revision
        else:
            live.add(key)
            gone.pop(key, None)
        prefix = rng.choice(names)[: rng.randrange(2, 5)]
        end = prefix_end(prefix)
        expected = max([1, *(at for name, at in gone.items() if matches(name, prefix, end))])
        assert deletions.newest(prefix, end) == expected
        assert deletions.newest(key, None) == gone.get(key, 1)
        assert len(deletions) == len(gone)


def test_what_is_forgotten_raises_the_floor_and_no_index_goes_back() -> None:
    deletions = Deletions(b"k/", 1, remembered=3)
    seen: dict[bytes, int] = {}
    keys = [b"k/%d" % number for number in range(10)]
    for revision, key in enumerate(keys, 2):
        deletions.apply(revision, (change(key, revision, delete=True, existed=True),))
        for known in keys:
            now = deletions.newest(known, None)
            assert now >= seen.get(known, 1)
            seen[known] = now
        assert deletions.newest(b"k/", b"k0") == revision
    assert len(deletions) == 3
    assert deletions.floor == 8, "the newest of those forgotten"
    assert deletions.newest(b"k/unheard of", None) == 8


def test_other_parts_of_the_store_are_not_remembered() -> None:
    deletions = Deletions(b"k/", 5)
    deletions.apply(6, (change(b"s/web/n/1", 6, delete=True, existed=True),))
    assert len(deletions) == 0
    assert deletions.newest(b"k/a", None) == 5
