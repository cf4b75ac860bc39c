"""The arithmetic of the benchmarks, on figures small enough to check by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.spread import Spread, ahead, exponent, histogram, merged, percentile, spread


def test_quartiles_interpolate_between_figures() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25)
    assert spread([5.0, 1.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_a_single_round_is_its_own_median_and_quartiles() -> None:
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_no_rounds_have_no_median() -> None:
    with pytest.raises(ValueError, match="nothing to summarise"):
        spread([])


def test_above_one_always_means_that_the_reference_is_ahead() -> None:
    assert ahead([200.0, 300.0], [100.0, 100.0], "higher") == [2.0, 3.0]
    assert ahead([2.0, 5.0], [4.0, 5.0], "lower") == [2.0, 1.0]


def test_ratios_are_taken_within_a_round() -> None:
    """In a bad round both are slow: the ratio of medians would be thrown off, the median of ratios is not."""
    ours, theirs = [100.0, 10.0, 100.0], [50.0, 5.0, 50.0]
    assert spread(ahead(ours, theirs, "higher")) == Spread(2.0, 2.0, 2.0)


def test_contenders_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        ahead([1.0, 2.0], [1.0], "higher")


def test_a_round_that_measured_nothing_has_no_ratio() -> None:
    assert ahead([0.0, 1.0], [4.0, 4.0], "lower") == [4.0]


def test_percentiles_of_a_histogram_are_within_a_bucket_of_the_truth() -> None:
    counts = histogram(float(value) for value in range(1, 1001))
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        truth = math.ceil(share * 1000)
        assert truth <= percentile(counts, share) <= truth * 2 ** (1 / 32)


def test_histograms_of_several_processes_add_up() -> None:
    low, high = histogram([1.0] * 10), histogram([1000.0] * 10)
    both = merged([low, high])
    assert sum(both.values()) == 20
    assert percentile(both, 0.5) == 1.0
    assert percentile(both, 0.51) >= 1000.0


def test_an_empty_histogram_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile({}, 0.5)


def test_the_exponent_of_a_power_law_is_found_and_needs_two_sizes() -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert exponent(sizes, [5.0, 5.0, 5.0]) == pytest.approx(0.0)
    assert exponent(sizes, [2 * size**0.5 for size in sizes]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two different sizes"):
        exponent([10.0, 10.0], [1.0, 2.0])
