"""The lease promise, word for word, on a clock that is a plain number.

A lease never ends before its TTL after the last renewal received; it ends no later than TTL + TICK_S of a live process
that calls `advance` every BUCKET_S; a stall extends every lease by its length. A process knows of a stall only by the
silence that it ends, so the live part of that silence, a bucket at the most, counts as stalled too.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest

from homeport.registry.core.leases import BUCKET_S, TICK_S, LeaseTable

CLOCKS_S = (0.0, 1_000_003.0, 1e9)  # a fresh process, a machine up for days, and one whose clock says the date
ROUNDING_S = 1e-5  # of a sum of a hundred numbers near 1e9, whose own steps are 1.2e-7
LATENESS_S = 0.04  # ordinary: of a loop with other things to do


@dataclass
class Model:
    """One lease as the promise sees it."""

    ttl_s: float
    renewed_at: float
    told: bool = False  # that it is due, since that renewal


class Process:
    """A process that calls `advance` as it should, stalls now and then, and keeps account of all that it promised."""

    def __init__(self, start: float, rng: random.Random) -> None:
        self.now = start
        self.rng = rng
        self.table = LeaseTable(start)
        self.leases: dict[int, Model] = {}
        self.stalls: list[tuple[float, float, float]] = []  # when it ended, its length, and that of the silence

    def live_s_at_most(self, since: float) -> float:
        """Time since a renewal, less every stall that came after it: what has to reach the TTL."""
        return self.now - since - sum(length for end, length, _ in self.stalls if end > since)

    def live_s_at_least(self, since: float) -> float:
        """The same, less the whole silences: what must not pass the TTL and a tick."""
        return self.now - since - sum(silence for end, _, silence in self.stalls if end > since)

    def expect_may_end(self, lease: int) -> None:
        model = self.leases[lease]
        assert self.now - model.renewed_at >= model.ttl_s - ROUNDING_S, "ended before its TTL"
        assert self.live_s_at_most(model.renewed_at) >= model.ttl_s - ROUNDING_S, "not extended by a stall"

    def advance(self) -> None:
        due = self.table.advance(self.now)
        assert len(set(due)) == len(due)
        for lease in due:
            self.expect_may_end(lease)
            assert self.table.is_due(self.now, lease)
            if self.rng.random() < 0.8:
                assert self.table.end(lease)
                del self.leases[lease]
            else:  # it stays, as when its end could not be written, and is told again
                self.leases[lease].told = True
        for model in self.leases.values():
            if not model.told:
                assert self.live_s_at_least(model.renewed_at) <= model.ttl_s + TICK_S + ROUNDING_S, "ended too late"
        assert len(self.table) == len(self.leases)

    def act(self) -> None:
        """One call of somebody else."""
        lease = self.rng.randrange(30)
        match self.rng.choice(("grant", "renew", "renew", "renew", "end", "look")):
            case "grant":
                ttl_s = self.rng.choice((0.5, 1.0, 3.3, self.rng.uniform(0.5, 20.0)))
                self.table.grant(self.now, lease, ttl_s)
                self.leases[lease] = Model(ttl_s, self.now)
            case "renew":
                model = self.leases.get(lease)
                assert self.table.renew(self.now, lease) == (model.ttl_s if model else 0.0)
                if model:
                    model.renewed_at, model.told = self.now, False
            case "end":
                assert self.table.end(lease) == (self.leases.pop(lease, None) is not None)
            case "look":
                remaining_s = self.table.remaining_s(self.now, lease)
                assert (remaining_s is not None) == (lease in self.table) == (lease in self.leases)
                assert not self.table.is_due(self.now, lease) or remaining_s == 0.0
                if remaining_s == 0.0:
                    self.expect_may_end(lease)
                elif remaining_s is not None:
                    model = self.leases[lease]
                    left_s = model.ttl_s - self.live_s_at_least(model.renewed_at)
                    assert 0.0 < remaining_s <= left_s + ROUNDING_S

    def run(self, seconds: float, stall_share: float) -> None:
        """Live for so long; the given share of the ticks is preceded by a stall."""
        end = self.now + seconds
        last_advance = self.now
        while self.now < end:
            tick_at = last_advance + BUCKET_S + self.rng.uniform(0.0, LATENESS_S)
            for at in sorted(self.rng.uniform(self.now, tick_at) for _ in range(self.rng.randrange(4))):
                self.now = at
                self.act()
            if self.rng.random() < stall_share:
                length = self.rng.choice((0.3, 1.0, self.rng.uniform(0.25, 60.0), 3_600.0))
                self.now = max(self.now, self.rng.uniform(self.now, tick_at))
                self.now += length
                end += length
                waiting = self.rng.randrange(3)  # renewals in the sockets, heard before the timer
                self.stalls.append((self.now, length, self.now + waiting * 0.001 - last_advance))
                for _ in range(waiting):
                    self.act()
                    self.now += 0.001
            else:
                self.now = tick_at
            self.advance()
            last_advance = self.now


@pytest.mark.parametrize("clock", CLOCKS_S)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stall_share", [0.0, 0.02, 0.3])
def test_the_promise_holds_in_any_life_of_a_process(clock: float, seed: int, stall_share: float) -> None:
    process = Process(clock, random.Random(seed))
    process.run(seconds=60.0, stall_share=stall_share)


def test_a_lease_ends_within_a_tick_of_its_ttl() -> None:
    table = LeaseTable(100.0)
    table.grant(100.0, 7, 1.0)
    ticks = [100.0 + BUCKET_S * count for count in range(1, 20)]
    ended = next(now for now in ticks if table.advance(now))
    assert 101.0 <= ended <= 101.0 + TICK_S


def test_a_stall_extends_every_lease_by_its_length() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 10.0)
    assert table.advance(3_600.0) == []
    assert table.remaining_s(3_600.0, 7) == pytest.approx(10.0)


def test_a_lease_read_right_after_a_stall_is_extended_already() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 10.0)
    assert table.remaining_s(3_600.0, 7) == pytest.approx(10.0)
    assert not table.is_due(3_600.0, 7)


def test_a_renewal_heard_right_after_a_stall_is_not_extended_by_it() -> None:
    """Or an instance that dies after its machine was suspended for a night would stay for another night."""
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 10.0)
    now = 3_600.0
    assert table.renew(now, 7) == 10.0
    ended = 0.0
    while not ended and now < 3_700.0:
        now += BUCKET_S
        ended = now if table.advance(now) else 0.0
    assert 3_610.0 <= ended <= 3_610.0 + TICK_S


def test_a_lease_whose_deadline_is_one_rounding_step_away_is_looked_at_again() -> None:
    """Both moments may fall into the same bucket after division; the lease must not be left in one already passed."""
    rng = random.Random(1)
    ttl_s = 0.125  # exact in binary, and below STALL_S: the clock goes there in one step
    found = 0
    for _ in range(20_000):
        deadline = math.nextafter(rng.randrange(10_000_000, 10_000_000_000) * BUCKET_S, rng.choice((0.0, 1e12)))
        before = math.nextafter(deadline, 0.0)
        start = deadline - ttl_s
        if math.ceil(deadline / BUCKET_S) > math.floor(before / BUCKET_S) or start + ttl_s != deadline:
            continue
        found += 1
        table = LeaseTable(start)
        table.grant(start, 7, ttl_s)
        assert table.advance(before) == []
        assert table.advance(before + 1.5 * BUCKET_S) == [7], f"lost: granted at {start!r} for {ttl_s!r} s"
    assert found > 100


def test_a_lease_that_is_not_ended_is_told_at_every_tick() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 0.15)
    assert table.advance(0.1) == []
    assert [table.advance(0.2 + 0.1 * tick) for tick in range(5)] == [[7]] * 5
    assert table.renew(0.7, 7) == 0.15
    assert table.advance(0.7) == table.advance(0.8) == []
    assert table.advance(0.9) == [7]


def test_a_lease_granted_anew_forgets_its_first_ttl() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 0.5)
    table.grant(0.0, 7, 60.0)
    assert [table.advance(0.1 * tick) for tick in range(1, 20)] == [[]] * 19
    table.grant(1.9, 7, 0.5)
    assert table.ttl_s(7) == 0.5
    assert [table.advance(0.1 * tick) for tick in range(20, 24)] == [[]] * 4
    assert table.advance(2.45) == [7]


def test_a_lease_that_is_gone_has_no_answers() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 7, 1.0)
    assert table.end(7)
    assert not table.end(7)
    assert table.renew(0.0, 7) == 0.0
    assert table.remaining_s(0.0, 7) is None
    assert table.ttl_s(7) is None
    assert not table.is_due(99.0, 7)
    assert table.ids() == []


def test_renewing_touches_no_bucket_however_many_leases_there_are() -> None:
    count = 200_000
    rng = random.Random(5)
    table = LeaseTable(0.0)
    for lease in range(count):
        table.grant(0.0, lease, rng.uniform(10.0, 20.0))
    placed = {number: list(bucket) for number, bucket in table._buckets.items()}
    now = 0.0
    for lease in range(count):
        if lease % 2_000 == 0:
            now += 0.06
            assert table.advance(now) == []  # nothing is due, so no bucket is opened
        table.renew(now, lease)
    assert {number: list(bucket) for number, bucket in table._buckets.items()} == placed
    ended: list[int] = []
    while len(table) and now < 60.0:
        now += BUCKET_S
        for lease in table.advance(now):
            table.end(lease)
            ended.append(lease)
    assert sorted(ended) == list(range(count))
    assert not table._buckets


def test_leases_that_begin_all_at_once_are_not_looked_at_in_one_turn() -> None:
    count, ttl_s = 20_000, 60.0
    table = LeaseTable(0.0)
    for lease in range(count):
        table.grant(0.0, lease, ttl_s)
    most = max(map(len, table._buckets.values()))
    assert most <= 1 + count / (ttl_s / 3 / BUCKET_S), "spread over a third of their TTL"
    now, ended = 0.0, 0
    while now < ttl_s - 2 * BUCKET_S:
        now += BUCKET_S
        assert table.advance(now) == [], "looked at early, and not ended early"
    while now < ttl_s + TICK_S:
        now += BUCKET_S
        ended += len(table.advance(now))
    assert ended >= count, "and not late"


def test_leases_that_come_and_go_leave_nothing_behind() -> None:
    """Not until their TTL of a day is over, and not for each time that one was granted anew."""
    table = LeaseTable(0.0)
    for lease in range(1_000):
        table.grant(0.0, lease, 86_400.0)
        table.grant(0.0, lease, 43_200.0)
        if lease != 7:
            table.end(lease)
    assert [list(bucket) for bucket in table._buckets.values()] == [[7]]


def test_a_loop_that_is_always_late_ends_leases_all_the_same() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 1, 10.0)
    table.grant(0.0, 2, 10.0)
    now = 0.0
    while not table.advance(now):
        table.renew(now, 2)
        now += 2.01 * BUCKET_S
        assert now < 60.0, "one slow client must not keep the dead alive"
    assert now >= 10.0
    assert table.is_due(now, 1)
    assert not table.is_due(now, 2)


def test_a_lease_whose_end_is_decided_is_neither_renewed_nor_ended_again() -> None:
    table = LeaseTable(0.0)
    table.grant(0.0, 1, 1.0)
    now = 0.0
    while not table.advance(now):
        now += BUCKET_S
    table.begin_end(1)
    assert table.renew(now, 1) == 0.0
    for _ in range(10):
        now += BUCKET_S
        assert table.advance(now) == []
    table.resume_all()
    now += BUCKET_S
    assert table.advance(now) == [1]
