"""Promises of the pure half of health checking: verdicts, thresholds, the worst of many, and the times of runs."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeport.client.core.model import OUTPUT_BYTES_MAX, SEVERITY, Check, Status
from homeport.registry.core.health import CUT_MARK, JITTER, CheckState, Verdict, aggregate, first_start, next_start

STATUSES = get_args(Status)
RESULTS = ("passing", "warning", "critical")


def check(
    initial: Status = "critical", passing_after: int = 2, critical_after: int = 2, warning_after: int = 0
) -> Check:
    return Check(
        name="it",
        kind="tcp",
        initial=initial,
        passing_after=passing_after,
        warning_after=warning_after,
        critical_after=critical_after,
    )


# --- verdicts


@given(st.text(max_size=5), st.integers(0, 3000))
@example("é", 2048)
@example("é", 2049)
@example("\ud800", 5000)
@example("a€", 1024)
def test_an_output_is_at_most_4_kib_of_valid_utf8_and_says_when_it_was_cut(piece: str, times: int) -> None:
    whole = piece * times
    output = Verdict("passing", whole).output
    data = output.encode()  # strict: raises for lone surrogates
    readable = whole.encode("utf-8", "replace").decode()
    assert len(data) <= OUTPUT_BYTES_MAX
    if len(readable.encode()) <= OUTPUT_BYTES_MAX:
        assert output == readable
    else:
        assert output.endswith(CUT_MARK)
        assert readable.startswith(output.removesuffix(CUT_MARK))
        assert len(data) > OUTPUT_BYTES_MAX - 4, "no more is cut than one character that did not fit"


# --- thresholds


class Model:
    """The rule in the words of its documentation, over the whole history of results."""

    def __init__(self, status: Status, passing_after: int, critical_after: int, warning_after: int) -> None:
        self.status = status
        self.passing_after = passing_after
        self.critical_after = critical_after
        self.warning_after = warning_after or critical_after
        self.history: list[Status] = []

    def observe(self, result: Status) -> None:
        self.history.append(result)
        for severity in range(3, 0, -1):  # is it at least this bad, or no worse than the level below it?
            at_least = [SEVERITY[past] >= severity for past in self.history]
            enough = self.warning_after if severity == SEVERITY["warning"] else self.critical_after
            if SEVERITY[self.status] < severity and run_of(at_least, True) >= enough:
                self.status = STATUSES[severity]
                return
        for severity in range(3):
            at_most = [SEVERITY[past] <= severity for past in self.history]
            if SEVERITY[self.status] > severity and run_of(at_most, True) >= self.passing_after:
                self.status = STATUSES[severity]
                return


def run_of(values: list[bool], wanted: bool) -> int:
    length = 0
    for value in reversed(values):
        if value != wanted:
            break
        length += 1
    return length


@given(
    st.sampled_from(STATUSES),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 5),
    st.lists(st.sampled_from(RESULTS), max_size=40),
)
def test_a_status_follows_the_rule_for_every_mixture_of_results(
    initial: Status, passing_after: int, critical_after: int, warning_after: int, results: list[Status]
) -> None:
    warning_after = min(warning_after, critical_after)
    state = CheckState(check(initial, passing_after, critical_after, warning_after))
    model = Model(initial, passing_after, critical_after, warning_after)
    for result in results:
        before = state.status
        changed = state.observe(result)
        model.observe(result)
        assert state.status == model.status
        assert changed == (None if state.status == before else state.status)


@pytest.mark.parametrize("after", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("initial", "result"),
    [(a, b) for a in RESULTS for b in RESULTS if a != b],
)
def test_a_status_changes_with_exactly_the_last_result_of_its_threshold_also_the_first_time(
    initial: Status, result: Status, after: int
) -> None:
    worse = SEVERITY[result] > SEVERITY[initial]
    state = CheckState(check(initial, passing_after=7 if worse else after, critical_after=after if worse else 7))
    assert [state.observe(result) for _ in range(after)] == [None] * (after - 1) + [result]
    assert state.observe(result) is None


@pytest.mark.parametrize("initial", ["passing", "critical"])
def test_a_flapping_target_changes_nothing(initial: Status) -> None:
    state = CheckState(check(initial))
    assert {state.observe(("passing", "critical")[i % 2]) for i in range(100)} == {None}


def test_warning_and_critical_by_turns_are_at_least_a_warning() -> None:
    state = CheckState(check("passing"))
    assert [state.observe(result) for result in ("warning", "critical", "warning")] == [None, "warning", None]
    assert [state.observe(result) for result in ("critical", "critical")] == [None, "critical"]
    assert [state.observe(result) for result in ("warning", "passing")] == [None, "warning"]
    assert [state.observe(result) for result in ("passing",)] == ["passing"]


def test_a_warning_may_come_sooner_than_critical() -> None:
    state = CheckState(check("passing", critical_after=3, warning_after=1))
    assert [state.observe("critical") for _ in range(4)] == ["warning", None, "critical", None]
    assert state.recent == ("critical",) * 3
    assert [state.observe("passing"), state.observe("passing")] == [None, "passing"]
    assert state.recent == ("critical", "passing", "passing")


def test_a_forced_status_counts_at_once_and_what_was_seen_before_it_no_longer() -> None:
    state = CheckState(check("passing"))
    assert state.observe("passing") is None
    assert state.force("critical") == "critical"
    assert state.force("critical") is None
    assert [state.observe("passing"), state.observe("passing")] == [None, "passing"]


def test_a_state_may_begin_where_it_was_left() -> None:
    assert CheckState(check("critical"), "passing").status == "passing"
    assert CheckState(check("warning")).status == "warning"


@given(st.lists(st.sampled_from(STATUSES)))
def test_an_instance_is_as_bad_as_its_worst_check(statuses: list[Status]) -> None:
    worst = aggregate(statuses)
    assert worst in (statuses or ["passing"])
    assert all(SEVERITY[status] <= SEVERITY[worst] for status in statuses)


# --- times

INTERVALS = st.floats(0.05, 86_400)
SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.floats(0, 1e6), INTERVALS)
def test_a_first_run_lies_within_the_interval(seed: int, now: float, interval_s: float) -> None:
    assert now <= first_start(now, interval_s, random.Random(seed)) <= now + interval_s


@given(SEEDS, INTERVALS)
def test_runs_that_start_on_time_follow_each_other_by_an_interval_within_the_jitter(
    seed: int, interval_s: float
) -> None:
    rng = random.Random(seed)
    dues = [0.0]
    for _ in range(20):
        dues.append(next_start(dues[-1], dues[-1], interval_s, rng))
    for due, following in pairwise(dues):
        assert (1 - JITTER) * interval_s <= (following - due) * (1 + 1e-9)
        assert following - due <= (1 + JITTER) * interval_s * (1 + 1e-9)


@given(SEEDS, INTERVALS, st.floats(-2, 1000))
def test_a_run_early_or_late_by_any_time_causes_no_burst_and_no_gap(
    seed: int, interval_s: float, late_intervals: float
) -> None:
    started = 1000.0 + late_intervals * interval_s
    following = next_start(1000.0, started, interval_s, random.Random(seed))
    slack = 1e-9 * (abs(started) + interval_s)
    assert following >= started + interval_s / 2 - slack
    if late_intervals >= 0:
        assert following <= started + 1.5 * interval_s + slack
    else:
        assert following <= max(1000.0, started + (1.5 + JITTER) * interval_s) + slack


def test_checks_made_late_together_do_not_stay_together() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    dues = [first_start(0.0, 10.0, rng) for _ in range(1000)]
    after_a_stall = [next_start(due, 60.0, 10.0, rng) for due in dues]
    tenths = [sum(i <= due - 65 < i + 1 for due in after_a_stall) for i in range(10)]
    assert min(tenths) > 40, tenths  # 100 expected in each
