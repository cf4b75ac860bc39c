"""Intervals against looking at every one of them."""

from __future__ import annotations

import random

import pytest

from homeport.registry.core.intervals import Intervals


@pytest.mark.parametrize("seed", range(5))
def test_the_intervals_that_contain_a_key_are_found_whatever_came_and_went(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)

    def key() -> bytes:
        return bytes(rng.choices(b"abc", k=rng.randrange(4)))

    intervals: Intervals[object] = Intervals()
    standing: list[tuple[bytes, bytes, object]] = []
    for _ in range(2_000):
        if standing and rng.random() < 0.4:
            start, _end, item = standing.pop(rng.randrange(len(standing)))
            intervals.remove(start, item)
        else:
            start, end = key(), rng.choice((key(), b""))
            item = object()
            standing.append((start, end, item))
            intervals.add(start, end, item)
        asked = key()
        expected = {id(item) for start, end, item in standing if start <= asked and (not end or asked < end)}
        found = intervals.containing(asked)
        assert {id(item) for item in found} == expected
        assert len(found) == len(expected)
        assert len(intervals) == len(standing)


def test_looking_for_a_key_visits_few_of_many_intervals() -> None:
    class Counted(tuple[int, bytes]):
        __slots__ = ()
        looks = 0

        def __le__(self, other: object) -> bool:
            Counted.looks += 1
            return super().__le__(other)  # type: ignore[operator]  # tuples compare

    intervals: Intervals[int] = Intervals()
    for number in range(10_000):
        intervals.add(b"%06d" % number, b"%06d" % (number + 2), number)
    assert sorted(intervals.containing(b"005000")) == [4999, 5000]
    intervals._tree = [Counted(end) for end in intervals._tree]
    intervals.containing(b"005000")
    assert Counted.looks < 100
