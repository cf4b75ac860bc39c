"""The simulation of very many instances: its parts run, small, and what must hold at any size holds."""

from __future__ import annotations

import random

import pytest

from benchmarks.million.mirror import held
from benchmarks.million.probes import shared
from benchmarks.million.renewals import renewed
from benchmarks.million.storm import weathered
from homeport.client.registration import RENEWALS_PER_TTL

TTL_S = 6.0


def test_no_lease_ends_while_its_client_renews_and_renewals_are_as_many_as_they_should_be() -> None:
    figures = renewed(2_000, TTL_S, 5, 20, random.Random(1), 3 * TTL_S)
    assert figures["leases_ended"] == 0
    expected = 2_000 * RENEWALS_PER_TTL / TTL_S
    assert expected < figures["renewals"] < 1.2 * expected, "they renew at a tick before they are due"
    assert figures["renewal_calls"] * 5 < figures["renewals"] / 1.5, "those of a client go together"


def test_checks_are_shared_evenly_and_few_move() -> None:
    figures = shared(5_000, 5)
    assert figures["probe_spread"] < 1.1
    assert figures["probes_moved"] == pytest.approx(20.0, abs=2.0)


def test_a_mirror_is_followed_at_a_cost_for_each_follower() -> None:
    figures = held(300, TTL_S, 10)
    assert all(value >= 0 for value in figures.values())
    assert figures["delivery_cpu"] < figures["revision_cpu"]


def test_a_storm_that_is_served_in_time_asks_everyone_once() -> None:
    figures = weathered(4_000, 20, 4, 60.0, 1e-4, 1e-4, 0.1, random.Random(1))
    assert figures["storm_calls"] == 200
    assert figures["storm_lost"] == 0
    assert figures["storm_over"] < 2.0


def test_a_storm_beyond_what_a_replica_takes_is_asked_again_and_ends_all_the_same() -> None:
    # Eight seconds of calls, three of writes.
    figures = weathered(40_000, 20, 1, 60.0, 1e-5, 2e-4, 0.0, random.Random(1))
    assert figures["storm_calls"] > 2_000, "some gave up and asked again"
    assert 10.0 < figures["storm_owned"] < 30.0
    assert figures["storm_lost"] == 0


def test_what_comes_back_too_late_is_counted_as_lost() -> None:
    figures = weathered(40_000, 20, 1, 1.0, 1e-5, 5e-4, 0.0, random.Random(1))  # twenty seconds of calls alone
    assert figures["storm_lost"] > 10_000, "all after the eleventh second"
