"""Whatever sizes its values have, all that etcd holds is read, in few pages."""

from __future__ import annotations

import random
from bisect import bisect_left
from typing import cast

import pytest

from homeport.registry.store.etcd_batches import Layout
from homeport.registry.store.etcd_cluster import EtcdCluster, Page, Stored, TooLarge
from homeport.registry.store.etcd_reading import read_all

ANSWER_BYTES_MAX = 64 * 1024


class Keys:
    """An etcd of keys whose answers have at most so many bytes; the values are only said to have theirs."""

    def __init__(self, sizes: list[int]) -> None:
        self._all = [Stored(b"p/ki/%08d" % at, bytes(1 + size), 2, 2, 1) for at, size in enumerate(sizes)]
        self._names = [stored.key for stored in self._all]
        self.asked: list[int] = []

    async def page(self, key: bytes, _end: bytes | None, _revision: int, limit: int) -> Page:
        self.asked.append(limit)
        first = bisect_left(self._names, key)
        found = self._all[first : first + limit]
        if sum(len(stored.value) for stored in found) > ANSWER_BYTES_MAX:
            raise TooLarge("larger than max")
        return Page(found, 2, first + limit < len(self._all))


async def found_in(keys: Keys) -> list[bytes]:
    everything = await read_all(cast("EtcdCluster", keys), Layout(b"p/"))
    return [kv.key for kv in everything.entries]


async def test_very_many_small_keys_are_few_pages() -> None:
    keys = Keys([0] * 50_000)
    assert len(await found_in(keys)) == 50_000
    assert len(keys.asked) < 16


@pytest.mark.parametrize("seed", range(5))
async def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice((1, 10)) for _ in range(3_000)] + [rng.choice((1, 10_000, 60_000)) for _ in range(40)]
    rng.shuffle(sizes)
    keys = Keys(sizes)
    assert await found_in(keys) == [b"i/%08d" % at for at in range(len(sizes))]


async def test_a_value_that_is_too_large_by_itself_is_an_error() -> None:
    with pytest.raises(TooLarge):
        await found_in(Keys([1, ANSWER_BYTES_MAX + 1]))
