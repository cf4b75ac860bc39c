"""Full collections of garbage that stay short."""

from __future__ import annotations

import gc

from homeport.mesh.commands.collecting import SLOW_S, Freezer, short_collections


class Collections:
    """What a collector tells its callbacks, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.frozen_at: list[float] = []
        self._freezer = Freezer(lambda: self.now, lambda: self.frozen_at.append(self.now))

    def one(self, generation: int, seconds: float) -> None:
        self._freezer("start", {"generation": generation})
        self.now += seconds
        self._freezer("stop", {"generation": generation, "collected": 0, "uncollectable": 0})


def test_only_what_a_long_full_collection_has_left_is_frozen() -> None:
    collections = Collections()
    collections.one(2, SLOW_S / 2)
    collections.one(1, 2 * SLOW_S)
    assert collections.frozen_at == []
    collections.one(2, 2 * SLOW_S)
    assert collections.frozen_at == [collections.now]


def test_a_full_collection_within_the_block_is_heard_of_and_none_after_it() -> None:
    seconds = iter(range(0, 1000, 10))
    frozen: list[bool] = []
    with short_collections(Freezer(lambda: next(seconds), lambda: frozen.append(True))):
        gc.collect()
        assert frozen
        heard = len(frozen)
    gc.collect()
    assert len(frozen) == heard
