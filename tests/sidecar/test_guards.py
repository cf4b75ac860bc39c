"""The rules of retry budgets, outlier ejection, circuit limits and slow start, in pure time."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.client.core.balancing import Balancing, HashOn, LeastRequest, Maglev, Outliers
from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core import limits
from homeport.sidecar.core.adaptive import AdaptiveLimit
from homeport.sidecar.core.affinity import Affinity
from homeport.sidecar.core.budget import RetryBudget
from homeport.sidecar.core.circuit import CircuitBreaker
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.endpoint import Endpoint
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.settings import (
    PLAIN,
    Adaptive,
    Budget,
    Circuit,
    Retries,
    ServiceSettings,
)
from tests.sidecar.endpoints import Pooled, cluster_of, instance

SEED = 20_260_101


@pytest.fixture
def rng() -> random.Random:
    print("seed", SEED)
    return random.Random(SEED)


# Retry budget.


def spend(budget: RetryBudget, now: float) -> int:
    """Retry as often as the budget lets us."""
    retries = 0
    while budget.affords(now):
        budget.withdraw(now)
        retries += 1
    return retries


def test_five_requests_pay_for_one_retry() -> None:
    budget = RetryBudget(Budget(reserve_per_s=0.0))
    budget.deposits = 4
    assert spend(budget, 1.0) == 0
    budget.deposits = 1
    assert spend(budget, 1.0) == 1
    budget.deposits = 1000
    assert spend(budget, 1.5) == 200


def test_a_quiet_service_has_ten_retries_a_second_over_ten_seconds() -> None:
    budget = RetryBudget(Budget())
    assert spend(budget, 100.0) == 100
    assert spend(budget, 109.9) == 0
    assert spend(budget, 110.0) == 100  # what was withdrawn then is forgotten now


def test_savings_are_forgotten_after_the_window() -> None:
    budget = RetryBudget(Budget(reserve_per_s=0.0))
    budget.sweep(50.0)
    budget.deposits = 1000
    budget.sweep(50.5)
    assert budget.balance(59.9) == pytest.approx(200)
    assert budget.balance(60.0) == 0


def test_the_balance_says_what_could_not_be_paid() -> None:
    budget = RetryBudget(Budget(reserve_per_s=0.0))
    assert not budget.affords(1.0)
    assert budget.exhausted == 1


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 50)), max_size=40),
    st.sampled_from([0.1, 0.2, 1.0]),
    st.sampled_from([0.0, 1.0, 10.0]),
)
def test_in_no_window_are_there_more_retries_than_it_pays_for(
    steps: list[tuple[float, int, int]], ratio: float, reserve_per_s: float
) -> None:
    settings = Budget(ratio=ratio, reserve_per_s=reserve_per_s)
    budget, now = RetryBudget(settings), 0.0
    requests: list[tuple[float, int]] = []
    retries: list[float] = []
    for wait_s, arrivals, wanted in steps:
        now += wait_s
        budget.sweep(now)
        budget.deposits += arrivals
        requests.append((now, arrivals))
        for _ in range(wanted):
            if budget.affords(now):
                budget.withdraw(now)
                retries.append(now)
    # A retry is forgotten a window after it, and what paid for it may be a window older still.
    for end in retries:
        made = sum(end - settings.window_s + 1 < at <= end for at in retries)
        paid = sum(count for at, count in requests if end - 2 * settings.window_s < at <= end) * ratio
        assert made <= paid + reserve_per_s * settings.window_s + 1e-6


def test_only_what_may_mean_an_overload_is_charged() -> None:
    assert {failure for failure in Failure if failure.charged} == {Failure.RESET, Failure.STATUS, Failure.TIMEOUT}
    cluster = cluster_of(2, ServiceSettings(retries=Retries(budget=Budget(reserve_per_s=0.0))))
    assert not cluster.may_afford(Failure.STATUS, 1.0)
    assert cluster.may_afford(Failure.REFUSED, 1.0)
    assert cluster.may_afford(Failure.STALE, 1.0)


# Outlier ejection.


def endpoints(cluster: Cluster[Pooled]) -> list[Endpoint[Pooled]]:
    return list(cluster.endpoints.values())


def is_out(endpoint: Endpoint[Pooled]) -> bool:
    return endpoint.ejected


def fail(cluster: Cluster[Pooled], endpoint: Endpoint[Pooled], times: int, now: float = 0.0, status: int = 500) -> None:
    failure = Failure.STATUS if status else Failure.REFUSED
    for _ in range(times):
        endpoint.answers += bool(status)
        cluster.failed(endpoint, failure, status, now, random.Random(SEED))


@pytest.mark.parametrize("status", [500, 503, 0])
def test_five_failures_in_a_row_eject_and_four_do_not(status: int) -> None:
    cluster = cluster_of(3)
    first = endpoints(cluster)[0]
    fail(cluster, first, 4, status=status)
    assert not is_out(first)
    first.succeeded()
    fail(cluster, first, 4, status=status)
    assert not is_out(first)
    fail(cluster, first, 1, status=status)
    assert is_out(first)
    assert first not in cluster.candidates.members
    assert len(cluster.candidates.members) == 2


@pytest.mark.parametrize(
    ("field", "counted", "interrupted"),
    [("consecutive_gateway", (502, 503, 504, 0), (500, 501, 505)), ("consecutive_connect", (0,), (500, 503))],
)
def test_each_kind_of_row_counts_its_own(field: str, counted: tuple[int, ...], interrupted: tuple[int, ...]) -> None:
    fields: dict[str, Any] = dict.fromkeys(("consecutive_5xx", "consecutive_gateway", "consecutive_connect"), 0)
    settings = ServiceSettings(outliers=Outliers(**(fields | {field: 2})))
    for status in counted:
        cluster = cluster_of(2, settings)
        fail(cluster, endpoints(cluster)[0], 2, status=status)
        assert endpoints(cluster)[0].ejected
    for status in interrupted:
        cluster = cluster_of(2, settings)
        for each in (counted[0], status, counted[0], status):
            fail(cluster, endpoints(cluster)[0], 1, status=each)
        assert not endpoints(cluster)[0].ejected


@pytest.mark.parametrize("failure", [Failure.STALE, Failure.GONE])
def test_what_is_not_the_hosts_fault_never_ejects(failure: Failure) -> None:
    cluster = cluster_of(2)
    for _ in range(50):
        cluster.failed(endpoints(cluster)[0], failure, 0, 0.0, random.Random(SEED))
    assert not endpoints(cluster)[0].ejected


def test_ejections_last_longer_each_time_up_to_the_most_and_jitter(rng: random.Random) -> None:
    cluster = cluster_of(2, ServiceSettings(outliers=Outliers(interval_s=3600.0)))
    cluster.sweep(0.0, rng)
    first, now = endpoints(cluster)[0], 1.0
    for number in range(1, 13):
        fail(cluster, first, 5, now)
        assert is_out(first)
        wanted_s = min(30.0 * number, 300.0)
        assert wanted_s <= first.ejected_until_s - now <= wanted_s + 3.0
        cluster.sweep(first.ejected_until_s - 0.001, rng)
        assert is_out(first)
        now = first.ejected_until_s
        cluster.sweep(now, rng)
        assert not is_out(first)
        assert first in cluster.candidates.members


def test_a_sweep_in_health_takes_one_off_the_count(rng: random.Random) -> None:
    cluster = cluster_of(2)
    first = endpoints(cluster)[0]
    cluster.sweep(0.0, rng)
    fail(cluster, first, 5, 0.0)
    cluster.sweep(10.0, rng)
    assert first.ejections == 1  # not while ejected
    cluster.sweep(first.ejected_until_s, rng)
    assert not is_out(first)
    cluster.sweep(first.ejected_until_s + 10.0, rng)
    assert first.ejections == 0
    cluster.sweep(first.ejected_until_s + 20.0, rng)
    assert first.ejections == 0


@pytest.mark.parametrize(
    ("count", "share", "most"),
    [(2, 0.1, 1), (3, 0.1, 1), (10, 0.1, 1), (20, 0.1, 2), (29, 0.1, 2), (100, 0.29, 29), (3, 0.0, 1), (4, 1.0, 3)],
)
def test_never_more_than_the_share_and_at_least_one(count: int, share: float, most: int) -> None:
    settings = ServiceSettings(outliers=Outliers(share_max=share), balancing=Balancing(panic=0.0))
    cluster = cluster_of(count, settings)
    for endpoint in endpoints(cluster):
        fail(cluster, endpoint, 7)
    assert sum(endpoint.ejected for endpoint in endpoints(cluster)) == most
    assert len(cluster.candidates.members) == count - most


def test_who_is_out_is_not_let_in_for_another_to_be_ejected() -> None:
    cluster = cluster_of(3)
    first, second, _ = endpoints(cluster)
    fail(cluster, first, 5)
    fail(cluster, second, 50)
    assert [first.ejected, second.ejected] == [True, False]
    assert cluster.outliers is not None
    assert cluster.outliers.spared == 46


@given(
    count=st.integers(1, 8),
    share=st.floats(0, 1),
    steps=st.lists(st.tuples(st.sampled_from(["fail", "critical", "well", "sweep"]), st.integers(0, 7)), max_size=60),
)
def test_the_last_that_could_serve_is_never_excluded(count: int, share: float, steps: list[tuple[str, int]]) -> None:
    rng, now = random.Random(SEED), 0.0
    cluster = cluster_of(count, ServiceSettings(outliers=Outliers(share_max=share)))
    known = {instance(number).key: instance(number) for number in range(1, count + 1)}
    for what, which in steps:
        number = which % count + 1
        key = instance(number).key
        now += 1.0
        if what == "fail":
            before = sum(endpoint.available and not endpoint.ejected for endpoint in endpoints(cluster))
            fail(cluster, cluster.endpoints[key], 5, now)
            left = [endpoint for endpoint in endpoints(cluster) if endpoint.available and not endpoint.ejected]
            assert left or not before
        elif what == "sweep":
            cluster.sweep(now, rng)
        else:
            known[key] = instance(number, status="passing" if what == "well" else "critical")
            cluster.update(known, now)
        if any(endpoint.available for endpoint in endpoints(cluster)):
            assert cluster.pick(rng) is not None


def test_a_probe_that_passes_readmits_and_forgives() -> None:
    cluster = cluster_of(2)
    first = endpoints(cluster)[0]
    fail(cluster, first, 5)
    known = {instance(number).key: instance(number) for number in (1, 2)}
    cluster.update(known | {instance(1).key: instance(1, weight=2)})
    assert is_out(first)  # changed, but not newly found well
    cluster.update(known | {instance(1).key: instance(1, status="critical")})
    cluster.update(known | {instance(1).key: instance(1)})
    assert not is_out(first)
    assert (first.row_5xx, first.row_gateway, first.ejections) == (0, 0, 1)
    assert first in cluster.candidates.members


def test_another_process_at_the_same_place_is_not_blamed_for_the_old_one() -> None:
    cluster = cluster_of(2)
    first = endpoints(cluster)[0]
    fail(cluster, first, 5)
    known = {instance(number).key: instance(number) for number in (1, 2)}
    cluster.update(known | {instance(1).key: instance(1, create_revision=9)})
    assert not is_out(first)


def rate(cluster: Cluster[Pooled], successes: list[int], total: int, now: float) -> list[bool]:
    """Give each endpoint its answers, none five failures in a row, and compare; who is out?"""
    for endpoint, good in zip(endpoints(cluster), successes, strict=True):
        endpoint.answers = total
        endpoint.errors = total - good
    cluster.sweep(now, random.Random(SEED))
    return [endpoint.ejected for endpoint in endpoints(cluster)]


def test_a_success_rate_far_below_the_others_is_an_outliers() -> None:
    cluster = cluster_of(6)
    cluster.sweep(0.0, random.Random(SEED))
    assert rate(cluster, [99, 100, 98, 100, 99, 60], 100, 5.0) == [False] * 6  # the interval is not over
    assert rate(cluster, [99, 100, 98, 100, 99, 60], 100, 10.0) == [False] * 5 + [True]
    assert [endpoint.answers for endpoint in endpoints(cluster)] == [0] * 6


def test_success_rates_mean_nothing_with_little_traffic_or_few_hosts_or_all_alike() -> None:
    for count, good, total in ((6, 60, 99), (4, 60, 100)):
        cluster = cluster_of(count)
        assert not any(rate(cluster, [total] * (count - 1) + [good], total, 10.0))
    assert not any(rate(cluster_of(6), [50] * 6, 100, 10.0))
    # Two of six are the majority's other side, not outliers: 1.9 deviations below the mean is lower than they are.
    assert not any(rate(cluster_of(6), [100, 100, 100, 100, 60, 60], 100, 10.0))


def test_the_worst_of_several_outliers_is_ejected_first() -> None:
    cluster = cluster_of(20, ServiceSettings(outliers=Outliers(share_max=0.0, stdev_factor=1.0)))
    assert [at for at, out in enumerate(rate(cluster, [100] * 18 + [70, 60], 100, 10.0)) if out] == [19]


def test_an_ejected_host_is_a_better_second_try_than_none(rng: random.Random) -> None:
    cluster = cluster_of(2)
    first, second = endpoints(cluster)
    fail(cluster, first, 5)
    assert {cluster.pick(rng) for _ in range(50)} == {second}
    assert cluster.pick(rng, [second]) is first
    assert cluster.pick(rng, [second, first]) is second


# Circuit limits.


def test_a_circuit_has_room_for_connections_until_either_limit() -> None:
    for pending, connections, room in ((0, 0, True), (1, 1, True), (2, 0, False), (1, 2, False), (0, 3, False)):
        circuit = CircuitBreaker(Circuit(pending_max=2, connections_max=3))
        circuit.pending, circuit.connections = pending, connections
        assert circuit.may_connect == room


def test_retries_at_their_limit_are_not_made() -> None:
    cluster = cluster_of(2, ServiceSettings(circuit=Circuit(retries_max=1)))
    assert cluster.circuit is not None
    assert cluster.may_afford(Failure.REFUSED, 0.0)
    cluster.circuit.retries = 1
    assert not cluster.may_afford(Failure.REFUSED, 0.0)


def test_what_is_off_is_none() -> None:
    cluster = cluster_of(2, PLAIN)
    assert (cluster.budget, cluster.outliers, cluster.circuit, cluster.affinity) == (None, None, None, None)
    first = endpoints(cluster)[0]
    fail(cluster, first, 100)
    assert first in cluster.candidates.members


# The adaptive limit.


def windows(limit: AdaptiveLimit, count: int, took_s: float, active: int, start_s: float = 0.0) -> int:
    """That many windows of answers that took so long."""
    found = 0
    for number in range(1, count + 1):
        limit.answers += 100
        limit.sum_s += 100 * took_s
        found = limit.sweep(start_s + number, active)
    return found


def test_the_limit_grows_while_answers_take_what_they_always_took() -> None:
    limit = AdaptiveLimit(Adaptive(requests_max=150))
    assert limit.sweep(0.0, 0) == 100
    assert windows(limit, 20, 0.010, active=100) == pytest.approx(116, abs=1)
    assert windows(limit, 100, 0.010, active=116, start_s=20.0) == 150


def test_the_limit_does_not_grow_when_it_is_not_needed() -> None:
    assert windows(AdaptiveLimit(Adaptive()), 100, 0.010, active=49) == 100


def test_the_limit_shrinks_when_answers_take_longer_and_never_below_the_least() -> None:
    limit = AdaptiveLimit(Adaptive())
    windows(limit, 100, 0.010, active=100)
    before = limit.sweep(100.0, 0)
    assert windows(limit, 5, 0.100, active=before, start_s=100.0) < 0.7 * before
    # A step that lasts becomes the usual; answers that get slower and slower do not.
    for number in range(60):
        windows(limit, 1, 0.2 * 1.5**number, active=100, start_s=105.0 + number)
    assert limit.sweep(165.0, 0) == 20


def test_a_few_answers_change_nothing() -> None:
    limit = AdaptiveLimit(Adaptive())
    windows(limit, 10, 0.010, active=10)
    limit.answers, limit.sum_s = 9, 900.0
    assert limit.sweep(11.0, 100) == 100


def test_the_limit_is_the_circuits(rng: random.Random) -> None:
    cluster = cluster_of(2, ServiceSettings(adaptive=Adaptive(initial=30)))
    assert cluster.circuit is not None
    assert cluster.adaptive is not None
    limits_seen = [cluster.circuit.requests_max]
    cluster.circuit.requests = 30
    for now in (5.0, 6.0, 7.0):
        cluster.adaptive.answers, cluster.adaptive.sum_s = 100, 1.0
        cluster.sweep(now, rng)
        limits_seen.append(cluster.circuit.requests_max)
    assert limits_seen == [30, 30, 31, 32]


# Slow start, and the choice of policies.


def shares(cluster: Cluster[Pooled]) -> list[float]:
    return [round(endpoint.weight, 3) for endpoint in endpoints(cluster)]


def test_newcomers_grow_but_the_first_set_is_there_at_once(rng: random.Random) -> None:
    cluster: Cluster[Pooled] = Cluster("a", ServiceSettings(balancing=Balancing(slow_start_s=10.0)))
    one, two = instance(1), instance(2, weight=2)
    cluster.update({one.key: one}, 100.0)
    assert shares(cluster) == [1.0]
    cluster.update({one.key: one, two.key: two}, 100.0)
    assert shares(cluster) == [1.0, 0.2]
    for now, wanted in ((100.0 + limits.GROWTH_STEP_S / 2, 0.2), (105.0, 1.0), (109.0, 1.8), (110.0, 2.0)):
        cluster.sweep(now, rng)
        assert shares(cluster) == [1.0, wanted]
    before = cluster.candidates
    cluster.sweep(200.0, rng)
    assert cluster.candidates is before  # nobody grows: nothing is prepared anew


def test_who_recovers_grows_again(rng: random.Random) -> None:
    cluster = cluster_of(2, ServiceSettings(balancing=Balancing(slow_start_s=10.0)))
    both = {instance(number).key: instance(number) for number in (1, 2)}
    cluster.update(both | {instance(1).key: instance(1, status="critical")}, 50.0)
    cluster.update(both | {instance(1).key: instance(1)}, 60.0)
    assert shares(cluster) == [0.1, 1.0]
    cluster.sweep(70.0, rng)
    fail(cluster, endpoints(cluster)[0], 5, 70.0)
    until_s = endpoints(cluster)[0].ejected_until_s
    cluster.sweep(until_s, rng)
    assert shares(cluster) == [0.1, 1.0]
    cluster.sweep(until_s + 10.0, rng)
    assert shares(cluster) == [1.0, 1.0]


def test_a_cluster_balances_as_it_is_told() -> None:
    assert isinstance(cluster_of(2).candidates, LeastRequest)
    hashed = ServiceSettings(balancing=Balancing(policy="maglev", hash_on=HashOn(source=True)))
    assert isinstance(cluster_of(2, hashed).candidates, Maglev)
    timed = cluster_of(2, ServiceSettings(balancing=Balancing(policy="peak-ewma")))
    assert all(endpoint.latency is not None for endpoint in endpoints(timed))
    assert all(endpoint.latency is None for endpoint in endpoints(cluster_of(2)))


@pytest.mark.parametrize(
    ("hash_on", "lines", "key"),
    [
        (HashOn(source=True), [b"X-User: u1"], b"10.1.1.1"),
        (HashOn(header="x-user"), [b"Accept: x", b"X-User: u1"], b"u1"),
        (HashOn(header="X-User"), [b"x-user-2: u1"], None),
        (HashOn(cookie="sid"), [b"Cookie: a=b; sid=12=3; c=d"], b"12=3"),
        (HashOn(cookie="sid"), [b"Cookie: sid2=x", b"cookie: sid=y"], b"y"),
        (HashOn(cookie="sid"), [b"Cookie: a=sid"], None),
    ],
)
def test_keys_are_read_where_they_are_said_to_be(hash_on: HashOn, lines: list[bytes], key: bytes | None) -> None:
    assert Affinity(hash_on).key(lines, b"10.1.1.1") == key


# Settings.


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Retries(retries_max=11), "retries_max is 11; allowed: 1 to 10"),
        (lambda: Retries(statuses=(404,)), "statuses has 404; allowed: 429, and 500 to 599"),
        (lambda: Budget(ratio=0.0), "budget.ratio is 0.0"),
        (lambda: ServiceSettings(per_try_s=-1.0), "per_try_s is -1.0"),
        (lambda: Outliers(ejection_s=400.0), "ejection_s_max is 300.0; allowed: 400 to 86400"),
        (lambda: Adaptive(initial=10), "adaptive.initial is 10; allowed: 20 to 1024"),
        (lambda: ServiceSettings(adaptive=Adaptive(), circuit=None), "must not be off"),
        (lambda: Circuit(requests_max=0), "requests_max is 0; allowed: 1 to 1e"),
        (
            lambda: ServiceSettings(balancing=Balancing(policy="maglev", hash_on=HashOn(header="Host"))),
            "hash_on cannot be 'Host'",
        ),
    ],
)
def test_settings_say_what_is_allowed(make: Any, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert says in str(caught.value)


def test_settings_can_be_read_from_a_file() -> None:
    text = b'{"retries": {"retries_max": 1, "budget": null}, "outliers": null, "circuit": {"requests_max": 9}}'
    assert msgspec.json.decode(text, type=ServiceSettings) == ServiceSettings(
        retries=Retries(retries_max=1, budget=None), outliers=None, circuit=Circuit(requests_max=9)
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"retires": {}}', type=ServiceSettings)
