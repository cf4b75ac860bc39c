"""Watchers that fall far behind: past their buffers, into history, and beyond what history remembers.

The steps of the model machine, drawn by a seeded generator that prefers floods of revisions and readers that sleep.
"""

from __future__ import annotations

import random

import pytest

from homeport.registry.core import keys
from homeport.registry.core.limits import WATCH_BUFFER_BATCHES, WATCH_PAGE_REVISIONS
from homeport.registry.core.watches import Filter
from tests.registry.core.test_store_against_model import StoreMachine

RANGES: tuple[tuple[bytes, bytes | None], ...] = (
    (b"a", None),
    (b"a", b"b"),
    (b"a/", b"a0"),
    (b"", b""),
    (b"a", b"a/2"),
    (b"\xff", b""),
)
KEYS = (b"a", b"a/1", b"b", b"\xff")


def check(machine: StoreMachine) -> None:
    machine.heads_agree()
    machine.history_is_bounded()
    machine.readers_are_served()


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_reader_gets_everything_or_is_told_what_it_lost(seed: int) -> None:
    rng = random.Random(seed)
    machine = StoreMachine()
    for _ in range(60):
        match rng.choice(("flood", "trickle", "watch", "take", "take", "compact", "close")):
            case "flood" if machine.model.head < 6_000:
                for _ in range(rng.choice((WATCH_BUFFER_BATCHES, WATCH_BUFFER_BATCHES + 3, WATCH_PAGE_REVISIONS))):
                    machine.put(b"a" if rng.random() < 0.9 else rng.choice(KEYS), b"", 0)
                    machine.settle(1)
            case "trickle":
                for _ in range(rng.randrange(1, 20)):
                    machine.put(rng.choice(KEYS), b"", 0)
                machine.settle(20)
            case "watch":
                key, end = rng.choice(RANGES)
                omit: Filter = rng.choice(("", "", "delete"))
                machine.watch(key, end, rng.choice((None, None, 0, 300, 900)), omit, eager=rng.random() < 0.2)
            case "take" if machine.readers:
                machine.take(rng.randrange(12), rng.choice((1, 5, WATCH_BUFFER_BATCHES, 2_000)))
            case "compact":
                machine.compact(rng.choice((0, 10, 250, 600)), rng.choice((None, 100)))
            case "close" if len(machine.readers) > 8:
                machine.close(rng.randrange(12))
        check(machine)
    for reader in machine.readers:
        reader.drain()
    check(machine)
    assert machine.readers, f"seed {seed} watches nothing"


def test_every_kind_of_range_finds_its_keys_and_no_others() -> None:
    names = (b"a", b"a/", b"a/1", b"a0", b"ab", b"b", b"\xfe", b"\xff", b"\xff\xff", keys.lease(1))
    for start in names:
        for end in (None, b"", *names):
            machine = StoreMachine()
            machine.watch(start, end, None, "", eager=True)
            for key in names:
                machine.put(key, b"", 0)
                machine.settle(1)
            machine.readers_are_served()
