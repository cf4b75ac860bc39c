"""What each policy promises, by exact invariants and by chi-squared over seeded picks."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.client.core.balancing import Candidates, Latency, LeastRequest, Maglev, PeakEwma, RoundRobin
from homeport.client.core.balancing.maglev import BOUND, TABLE_SIZE
from homeport.client.core.balancing.peak_ewma import SEED_S, TAU_S
from tests.balancing.hosts import SEED, Host, counts, is_fair, named

POLICIES: list[type[Candidates[Host]]] = [LeastRequest, PeakEwma, RoundRobin, Maglev]
LOADS = st.tuples(st.integers(0, 9), st.integers(0, 50), st.booleans())
WEIGHTS = [[1, 1], [1, 1, 1], [1] * 10, [1] * 40, [1, 3], [1, 2, 5], [1, 99], [10, 10, 10, 20]]


@pytest.fixture
def rng() -> random.Random:
    print("seed", SEED)
    return random.Random(SEED)


def of_weights(weights: Iterable[float]) -> list[Host]:
    return [Host(weight, name=f"n/{number}") for number, weight in enumerate(weights)]


# All policies.


@pytest.mark.parametrize("policy", POLICIES)
def test_excluded_hosts_are_never_picked_and_weight_zero_only_alone(
    policy: type[Candidates[Host]], rng: random.Random
) -> None:
    one, two, zero = of_weights([1, 5, 0])
    everyone = policy([one, two, zero])
    assert {everyone.pick(rng) for _ in range(200)} == {one, two}
    assert {everyone.pick(rng, [one]) for _ in range(200)} == {two}
    assert everyone.pick(rng, [one, two]) is None
    assert policy([zero]).pick(rng) is zero
    assert policy([zero]).pick(rng, [zero]) is None
    assert policy([]).pick(rng) is None


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data())
def test_whoever_is_left_is_picked_whatever_load_and_health_say(
    policy: type[Candidates[Host]], data: st.DataObject
) -> None:
    hosts = [
        Host(weight, active, suspect=suspect, name=f"n/{at}")
        for at, (weight, active, suspect) in enumerate(data.draw(st.lists(LOADS, min_size=1, max_size=5)))
    ]
    choice = policy(hosts)
    excluded = data.draw(st.lists(st.sampled_from(hosts), unique_by=id))
    picked = choice.pick(random.Random(SEED), excluded, 0.0, b"key")
    left = [host for host in choice.members if host not in excluded]
    assert picked in left if left else picked is None


@pytest.mark.parametrize("policy", [LeastRequest, PeakEwma, Maglev])
def test_a_host_that_fails_fast_does_not_look_idle(policy: type[Candidates[Host]], rng: random.Random) -> None:
    failing, busy = Host(suspect=True, name="a"), Host(active=50, name="b")
    if policy is Maglev:
        busy.active = 0  # bounded load comes before suspicion
    assert {policy([failing, busy]).pick(rng) for _ in range(100)} == {busy}


# Two-choice least request.


@pytest.mark.parametrize("policy", [LeastRequest, PeakEwma])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_idle_hosts_are_picked_in_proportion_to_their_weights(
    weights: list[int], policy: type[Candidates[Host]], rng: random.Random
) -> None:
    hosts = of_weights(weights)
    choice = policy(hosts)
    assert is_fair(counts(lambda: choice.pick(rng), hosts, 20_000), weights)


@pytest.mark.parametrize("count", [5, 40])
def test_the_two_choices_are_distinct_and_every_pair_is_drawn_equally(count: int, rng: random.Random) -> None:
    # With loads 0, 1, 2, ... a pair is won by its lesser one: host k wins against each of the busier ones.
    hosts = [Host(active=load) for load in range(count)]
    choice = LeastRequest(hosts)
    found = counts(lambda: choice.pick(rng), hosts, 20_000)
    assert found[-1] == 0
    assert is_fair(found[:-1], list(range(count - 1, 0, -1)))


@pytest.mark.parametrize("policy", [LeastRequest, PeakEwma])
def test_busy_hosts_of_unequal_weight_settle_at_equal_load_per_weight(
    policy: type[Candidates[Host]], rng: random.Random
) -> None:
    hosts = of_weights([1, 2, 5])
    for host in hosts:
        host.latency = Latency(0.0)
        host.latency.observe(0.1, 0.0)
    choice = policy(hosts)
    for _ in range(800):
        picked = choice.pick(rng)
        assert picked is not None
        picked.active += 1
    assert [round(host.active / host.weight / 100, 1) for host in hosts] == pytest.approx([1, 1, 1], abs=0.1)


# Peak-EWMA.


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    latency = Latency(0.0)
    latency.observe(0.010, 0.0)
    latency.observe(1.0, 1.0)
    assert latency.cost(0, 1.0) == 1.0
    latency.observe(0.010, 1.0 + TAU_S)
    kept = math.exp(-1)
    assert latency.cost(0, 1.0 + TAU_S) == pytest.approx(kept + 0.010 * (1 - kept))


def test_a_newcomer_is_thought_to_take_thirty_milliseconds() -> None:
    assert Latency(0.0).cost(0, 0.0) == SEED_S == 0.030
    assert Latency(0.0).cost(0, TAU_S) == pytest.approx(SEED_S * math.exp(-1))


def test_reading_observes_zero_first() -> None:
    latency = Latency(0.0)
    latency.observe(1.0, 0.0)
    assert latency.cost(2, TAU_S) == pytest.approx(3 * math.exp(-1))
    assert latency.cost(2, TAU_S) == pytest.approx(3 * math.exp(-1))  # no time has passed: nothing is forgotten
    assert latency.cost(0, 0.0) == pytest.approx(math.exp(-1))  # nor does a clock that stepped back make it worse


def test_who_was_never_measured_is_tried_once_and_then_waited_for(rng: random.Random) -> None:
    known, new = Host(name="known"), Host(name="new")
    known.latency, new.latency = Latency(0.0), Latency(0.0)
    known.latency.observe(SEED_S * 2, 0.0)
    assert PeakEwma([known, new]).pick(rng, (), 0.0) is new
    new.active = 1
    known.active = 500
    assert PeakEwma([known, new]).pick(rng, (), 0.0) is known


def test_the_slow_host_gets_less_and_comes_back_with_time(rng: random.Random) -> None:
    slow, fast = Host(name="slow"), Host(name="fast")
    slow.latency, fast.latency = Latency(0.0), Latency(0.0)
    slow.latency.observe(1.0, 0.0)
    fast.latency.observe(0.01, 0.0)
    choice = PeakEwma([slow, fast])
    assert {choice.pick(rng, (), 0.0) for _ in range(50)} == {fast}
    for second in range(1, 60):
        fast.latency.observe(0.01, float(second))
    assert {choice.pick(rng, (), 60.0) for _ in range(50)} == {slow}


def test_a_newcomer_is_tried_however_fast_the_others_are(rng: random.Random) -> None:
    hosts = named(3)
    for host in hosts:
        host.latency = Latency(0.0)
    choice = PeakEwma(hosts)
    picked: Counter[str] = Counter()
    for at in range(1000):
        tried = choice.pick(rng, (), at / 1000)
        assert tried is not None
        assert tried.latency is not None
        tried.latency.observe(0.001, at / 1000)
        picked[tried.name] += 1
    assert min(picked[host.name] for host in hosts) > 0


# Smooth weighted round robin.


def test_turns_are_exact_and_spread(rng: random.Random) -> None:
    a, b, c = of_weights([5, 1, 1])
    choice = RoundRobin([a, b, c])
    start = random.Random(SEED).random()
    turns = [choice.pick(rng) for _ in range(7 * 20)]
    cycle = [a, a, b, a, c, a, a]
    offset = int(start * 7)
    assert turns == [cycle[(offset + at) % 7] for at in range(len(turns))]


@pytest.mark.parametrize("weights", [*WEIGHTS, [1, 65_535], [0.1, 1, 1], [4096, 4095, 1]])
def test_a_period_gives_everyone_exactly_its_weight(weights: list[float], rng: random.Random) -> None:
    hosts = of_weights(weights)
    choice = RoundRobin(hosts)
    scale = math.gcd(*[round(weight * 100) for weight in weights])
    wanted = [round(weight * 100) // scale for weight in weights]
    choice.pick(rng)
    for _ in range(2):
        assert counts(lambda: choice.pick(rng), hosts, sum(wanted)) == wanted


def test_a_thousand_sidecars_do_not_start_with_the_same_host(rng: random.Random) -> None:
    hosts = named(5)
    assert is_fair(counts(lambda: RoundRobin(hosts).pick(rng), hosts, 2000), [1] * 5)


def test_a_retry_takes_nobodys_turn(rng: random.Random) -> None:
    hosts = named(3)
    choice = RoundRobin(hosts)
    first = choice.pick(rng)
    assert first is not None
    choice.pick(rng, [first])
    assert {first, choice.pick(rng), choice.pick(rng)} == set(hosts)


# Maglev with bounded load.


def keys(count: int) -> list[bytes]:
    return [b"user-%d" % number for number in range(count)]


@pytest.mark.parametrize("weights", [[1] * 3, [1] * 50, [1, 2, 5], [0.1, 1, 1]])
def test_the_table_is_full_and_shares_it_by_weight(weights: list[float]) -> None:
    hosts = of_weights(weights)
    table = Counter(id(host) for host in Maglev(hosts).table)
    assert sum(table.values()) == TABLE_SIZE
    for host in hosts:
        assert table[id(host)] == pytest.approx(TABLE_SIZE * host.weight / sum(weights), rel=0.02)


def test_keys_spread_as_chance_would(rng: random.Random) -> None:
    hosts = named(7)
    choice = Maglev(hosts)
    found = iter(keys(20_000))
    slots = Counter(id(host) for host in choice.table)
    assert is_fair(counts(lambda: choice.pick(rng, (), 0.0, next(found)), hosts, 20_000), [slots[id(h)] for h in hosts])


def test_the_same_key_goes_to_the_same_host_for_everyone_who_knows_the_same_hosts(rng: random.Random) -> None:
    hosts = named(9)
    one, other = Maglev(hosts), Maglev(reversed(hosts))
    for key in keys(500):
        assert one.pick(rng, (), 0.0, key) is other.pick(rng, (), 0.0, key)
    # And in every release and process: this pair is part of the contract between sidecars.
    picked = one.pick(rng, (), 0.0, b"user-1")
    assert picked is not None
    assert picked.name == "n8/orders-8"


@pytest.mark.parametrize("count", [4, 20])
def test_a_host_that_leaves_disturbs_few_keys_of_others(count: int, rng: random.Random) -> None:
    hosts = named(count)
    before, after = Maglev(hosts), Maglev(hosts[1:])
    moved = 0
    for key in keys(4000):
        was, now = before.pick(rng, (), 0.0, key), after.pick(rng, (), 0.0, key)
        if was is not hosts[0] and was is not now:
            moved += 1
    assert moved / 4000 < 0.05  # an ordinary modulo would move (n - 1) / n of them


@given(loads=st.lists(st.integers(0, 200), min_size=2, max_size=6), key=st.binary(max_size=9), more=st.integers(0, 3))
def test_nobody_gets_more_than_its_bounded_share(loads: list[int], key: bytes, more: int) -> None:
    hosts = [Host(1 + at % (more + 1), load, name=f"n/{at}") for at, load in enumerate(loads)]
    picked = Maglev(hosts).pick(random.Random(SEED), (), 0.0, key)
    assert picked is not None
    share = picked.weight / sum(host.weight for host in hosts)
    assert picked.active + 1 <= math.ceil(BOUND * (sum(loads) + 1) * share) or picked.active == 0


def test_one_hot_key_spills_over_in_the_same_order_everywhere(rng: random.Random) -> None:
    hosts = named(4)
    choice = Maglev(hosts)
    for _ in range(400):
        picked = choice.pick(rng, (), 0.0, b"hot")
        assert picked is not None
        picked.active += 1
    assert max(host.active for host in hosts) <= math.ceil(BOUND * 400 / 4)
    assert min(host.active for host in hosts) > 0


def test_a_request_without_a_key_goes_anywhere(rng: random.Random) -> None:
    hosts = named(4)
    choice = Maglev(hosts)
    slots = Counter(id(host) for host in choice.table)
    assert is_fair(counts(lambda: choice.pick(rng), hosts, 8000), [slots[id(host)] for host in hosts])


def test_candidates_are_a_choice_only_with_a_policy(rng: random.Random) -> None:
    plain: Candidates[Any] = Candidates(named(2))
    with pytest.raises(NotImplementedError):
        plain.pick(rng)
