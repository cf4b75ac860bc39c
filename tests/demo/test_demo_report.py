"""What is counted, and what may be called unsafe."""

from __future__ import annotations

import random

import pytest

from homeport.mesh.demo.report import Failure, Tally, percentile, split_failures


def failure(request_id: str, *, began: bool) -> Failure:
    return Failure(request_id, "feed", "broke", began)


def test_only_an_answer_that_had_begun_and_a_delivery_in_a_log_make_a_failure_unsafe() -> None:
    failures = [failure("r1", began=True), failure("r2", began=True), failure("r3", began=False)]
    failed, unsafe = split_failures(failures, delivered={"r1", "r3"})
    assert [each.request_id for each in unsafe] == ["r1"]
    assert [each.request_id for each in failed] == ["r2", "r3"]


def test_failed_requests_count_as_requests_too() -> None:
    tally = Tally()
    tally.done("feed", 1.0, "feed-1")
    tally.failed(failure("r2", began=False), 2.0)
    assert (tally.requests, len(tally.failures), tally.actions["feed"]) == (2, 1, 2)
    assert tally.served_by == {"feed-1": 1}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([7.0], 0.99, 7.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([1.0, 2.0], 0.0, 1.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    values = [rng.random() for _ in range(rng.randrange(1, 200))]
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        chosen = percentile(values, share)
        assert sum(value <= chosen for value in values) >= share * len(values)
        assert sum(value < chosen for value in values) < share * len(values)
