"""Who may take traffic: health, panic, subsets, zones, slow start; and what settings are allowed."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.client.core.balancing import Balancing, HashOn, Subset, Zoned, choose, eligible, grown
from homeport.client.core.balancing.selection import PANIC_FROM, SPARE
from homeport.client.core.errors import InvalidArgument
from tests.balancing.hosts import SEED, Host, counts, is_fair


def hosts(*each: dict[str, Any]) -> list[Host]:
    return [Host(name=f"n/{at}", **fields) for at, fields in enumerate(each)]


WELL: dict[str, Any] = {}
CRITICAL = {"status": "critical"}
NEVER: list[dict[str, Any]] = [
    {"state": "draining"},
    {"state": "maintenance"},
    {"status": "maintenance"},
    {"state": "draining", "status": "critical"},
]


def test_under_half_healthy_all_that_are_meant_to_serve_are_candidates() -> None:
    five = hosts(WELL, WELL, CRITICAL, CRITICAL, CRITICAL)
    assert eligible(Balancing(), five) == five
    assert eligible(Balancing(panic=0.4), five) == five[:2]
    assert eligible(Balancing(panic=0.0), five) == five[:2]


def test_exactly_half_is_no_panic_and_neither_is_anything_among_four() -> None:
    six = hosts(WELL, WELL, WELL, CRITICAL, CRITICAL, CRITICAL)
    assert eligible(Balancing(), six) == six[:3]
    four = hosts(WELL, CRITICAL, CRITICAL, CRITICAL)
    assert eligible(Balancing(), four) == four[:1]
    assert eligible(Balancing(), hosts(*[CRITICAL] * 4)) == []
    assert len(eligible(Balancing(), hosts(*[CRITICAL] * PANIC_FROM))) == PANIC_FROM


@given(st.lists(st.sampled_from([WELL, CRITICAL, *NEVER]), max_size=12), st.floats(0, 1), st.data())
def test_who_says_that_it_will_not_serve_never_is_a_candidate(
    each: list[dict[str, Any]], panic: float, data: st.DataObject
) -> None:
    everyone = hosts(*each)
    for host in everyone:
        host.ejected = data.draw(st.booleans())
    found = eligible(Balancing(panic=panic), everyone)
    assert all(host.instance.state == "up" and host.instance.status != "maintenance" for host in found)
    if any(host.available for host in everyone):
        assert found  # an ejection never leaves nobody
    if any(host.available and not host.ejected for host in everyone) and panic == 0:
        assert not any(host.ejected for host in found)


def test_draining_hosts_do_not_count_towards_panic() -> None:
    each = hosts(WELL, WELL, WELL, CRITICAL, CRITICAL, *NEVER)
    assert eligible(Balancing(), each) == each[:3]


def test_a_subset_is_everything_that_it_names() -> None:
    each = hosts(
        {"tags": ("blue",), "version": "2", "zone": "a", "meta": {"k": "v"}},
        {"tags": ("blue",), "version": "1"},
        {"tags": ("green",), "zone": "a", "meta": {"k": "w"}},
    )
    for subset, wanted in (
        (Subset(tag="blue"), each[:2]),
        (Subset(version="2"), each[:1]),
        (Subset(zone="a"), [each[0], each[2]]),
        (Subset(meta={"k": "v"}), each[:1]),
        (Subset(tag="blue", version="1"), each[1:2]),
        (Subset(tag="red"), each),
        (Subset(tag="red", fallback="none"), []),
    ):
        assert eligible(Balancing(subset=subset), each) == wanted


def test_a_subset_falls_back_when_none_of_it_is_available() -> None:
    each = hosts({"tags": ("blue",), "status": "critical"}, WELL)
    assert eligible(Balancing(subset=Subset(tag="blue")), each) == each[1:]
    assert eligible(Balancing(subset=Subset(tag="blue", fallback="none")), each) == []


def test_a_zone_with_capacity_to_spare_takes_everything() -> None:
    near, far = hosts({"zone": "a"}, {"zone": "b"})
    rng = random.Random(SEED)
    choice = choose(Balancing(zone="a"), [near, far])
    assert {choice.pick(rng) for _ in range(100)} == {near}
    assert choice.pick(rng, [near]) is far  # a retry spills over
    assert choice.pick(rng, [near, far]) is None


def test_a_zone_that_loses_capacity_spills_over_in_proportion() -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    each = hosts({"zone": "a"}, {"zone": "a", "status": "critical"}, {"zone": "b"}, {"zone": "b"})
    choice = choose(Balancing(zone="a"), each)
    assert isinstance(choice, Zoned)
    share = SPARE / 2
    assert choice.share == pytest.approx(share)
    found = counts(lambda: choice.pick(rng), [each[0], each[2], each[3]], 10_000)
    assert is_fair(found, [share, (1 - share) / 2, (1 - share) / 2])


def test_in_a_panic_traffic_is_spread_over_all_zones() -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    each = hosts(*[{"zone": "a", "status": "critical"}] * 4, *[{"zone": "b"}] * 2)
    choice = choose(Balancing(zone="a"), each)
    assert is_fair(counts(lambda: choice.pick(rng), each, 12_000), [1] * 6), "a zone that is down must not get it all"
    unpanicked = choose(Balancing(zone="a", panic=0.0), each)
    assert {unpanicked.pick(rng) for _ in range(100)} == set(each[4:])


def test_a_panic_within_a_subset_stays_within_it() -> None:
    each = hosts({"version": "2"}, *[{"version": "2", "status": "critical"}] * 4, *[{"version": "1"}] * 5)
    assert eligible(Balancing(subset=Subset(version="2")), each) == each[:5]


def test_an_empty_zone_leaves_the_others() -> None:
    each = hosts({"zone": "a", "status": "critical"}, {"zone": "b"})
    assert choose(Balancing(zone="a"), each).pick(random.Random(SEED)) is each[1]
    assert choose(Balancing(zone="c"), each).pick(random.Random(SEED)) is each[1]


def test_weight_grows_from_a_tenth_to_all_of_it() -> None:
    assert [grown(age_s, 10.0) for age_s in (0.0, 0.5, 1.0, 5.0, 9.0, 10.0, 99.0)] == [
        0.1,
        0.1,
        0.1,
        0.5,
        0.9,
        1.0,
        1.0,
    ]
    assert grown(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"panic": 1.5}, "allowed: 0 to 1"),
        ({"panic": float("nan")}, "allowed: 0 to 1"),
        ({"slow_start_s": -1.0}, "allowed: 0 to 900"),
        ({"policy": "maglev"}, "hash_on belongs to the policy maglev"),
        ({"hash_on": HashOn(source=True)}, "hash_on belongs to the policy maglev"),
        ({"policy": "maglev", "hash_on": HashOn(source=True), "slow_start_s": 5.0}, "slow_start_s must be 0"),
    ],
)
def test_settings_say_what_is_allowed(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Balancing(**fields)


def test_settings_can_be_read_from_a_file() -> None:
    text = b'{"policy": "maglev", "hash_on": {"cookie": "session"}, "subset": {"tag": "blue", "fallback": "none"}}'
    read = msgspec.json.decode(text, type=Balancing)
    assert read == Balancing(
        policy="maglev", hash_on=HashOn(cookie="session"), subset=Subset(tag="blue", fallback="none")
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"polcy": "maglev"}', type=Balancing)
    with pytest.raises(InvalidArgument, match="a subset must name"):
        Subset()
    wrongs: tuple[dict[str, Any], ...] = ({}, {"source": True, "header": "x"}, {"header": "x", "cookie": "y"})
    for wrong in wrongs:
        with pytest.raises(InvalidArgument, match="must name one of"):
            HashOn(**wrong)
