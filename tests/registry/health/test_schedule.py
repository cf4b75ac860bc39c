"""Promises of the scheduler, in virtual time: when checks run, what is reported, and what is dropped."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise

import msgspec
import pytest

from homeport.client.core.model import Check, Instance, InstanceKey, Status
from homeport.mesh.testing import run_virtual, running_loop, virtual_time
from homeport.registry.core.health import Verdict
from homeport.registry.core.limits import PROBES_AT_ONCE
from homeport.registry.health import Prober, Scheduler

PASSING = Verdict("passing", "fine")
CRITICAL = Verdict("critical", "not fine")
REFUSED = Verdict("critical", "connection refused", refused=True)


def tcp(name: str = "tcp", **fields: object) -> Check:
    return msgspec.structs.replace(Check(name=name, kind="tcp", address="127.0.0.1:1", interval_s=10.0), **fields)


def instance(*checks: Check, id_: str = "a", create_revision: int = 5, port: int = 80) -> Instance:
    return Instance(
        service="orders",
        id=id_,
        node="n",
        address="10.0.0.2",
        port=port,
        checks=checks,
        create_revision=create_revision,
    )


class World:
    """A scheduler on the running virtual loop, what its probes answer, and all that it reported, with times."""

    def __init__(
        self, probe: Callable[[Check], Awaitable[Verdict]] | None = None, at_once: int = PROBES_AT_ONCE
    ) -> None:
        loop = running_loop()
        self.begun = loop.time()
        self.verdict = PASSING  # what the default probe answers
        self.probes: list[tuple[float, Check]] = []
        self.reports: list[tuple[float, InstanceKey, int, str, Verdict]] = []
        self._probe = probe
        self.scheduler = Scheduler(self.probe, self.report, now=loop.time, rng=loop.rng, at_once=at_once)

    def elapsed(self) -> float:
        return running_loop().time() - self.begun

    async def probe(self, check: Check) -> Verdict:
        self.probes.append((self.elapsed(), check))
        return self.verdict if self._probe is None else await self._probe(check)

    def report(self, key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        self.reports.append((self.elapsed(), key, create_revision, check, verdict))

    def statuses(self) -> list[Status]:
        return [report[4].status for report in self.reports]


@virtual_time(seed=1)
async def test_a_check_runs_first_within_its_interval_and_then_every_interval() -> None:
    world = World()
    world.scheduler.put(instance(tcp()))
    await asyncio.sleep(1000)
    times = [when for when, _ in world.probes]
    assert 0 <= times[0] <= 10
    gaps = [b - a for a, b in pairwise(times)]
    assert all(9 <= gap <= 11.01 for gap in gaps), gaps
    assert len({round(gap, 3) for gap in gaps}) > 10, "there is jitter"
    assert world.scheduler.runs == len(times)
    assert world.scheduler.lag_s_max < 0.01
    await world.scheduler.close()


@virtual_time(seed=2)
async def test_only_changes_of_status_are_reported_and_a_flapping_check_is_silent() -> None:
    world = World()
    world.scheduler.put(instance(tcp(initial="critical")))
    await asyncio.sleep(60)
    assert world.statuses() == ["passing"]
    _, key, create_revision, name, verdict = world.reports[0]
    assert (key, create_revision, name, verdict) == (("n", "a"), 5, "tcp", PASSING)

    async def flap(check: Check) -> Verdict:
        return (PASSING, CRITICAL)[len(world.probes) % 2]

    world._probe = flap
    await asyncio.sleep(250)
    assert world.statuses() == ["passing"]

    world._probe = None
    world.verdict = CRITICAL
    down = world.elapsed()
    await asyncio.sleep(100)
    assert world.statuses() == ["passing", "critical"]
    assert world.reports[-1][0] - down <= 2 * 11
    await world.scheduler.close()


@virtual_time(seed=3)
async def test_output_alone_is_reported_at_most_every_five_minutes_and_only_if_it_explains_the_status() -> None:
    async def chatter(check: Check) -> Verdict:
        number = len(world.probes)
        return Verdict("critical" if number % 5 == 0 else "passing", f"answer {number}")

    world = World(chatter)
    world.scheduler.put(instance(tcp(initial="passing")))
    await asyncio.sleep(3600)
    assert set(world.statuses()) == {"passing"}
    times = [report[0] for report in world.reports]
    assert all(b - a >= 300 for a, b in pairwise(times))
    assert 10 <= len(times) <= 13
    await world.scheduler.close()


@virtual_time(seed=4)
async def test_a_check_that_fails_from_the_start_says_why_at_once() -> None:
    world = World()
    world.verdict = CRITICAL
    world.scheduler.put(instance(tcp(initial="critical")))
    await asyncio.sleep(10.1)
    assert [report[4] for report in world.reports] == [CRITICAL]
    await world.scheduler.close()


@virtual_time(seed=5)
async def test_an_equal_check_keeps_its_state_and_place_and_a_changed_one_starts_afresh() -> None:
    world = World()
    kept, changed = tcp("kept"), tcp("changed")
    world.scheduler.put(instance(kept, changed))
    await asyncio.sleep(30)
    assert world.statuses() == ["passing", "passing"]
    world.reports.clear()
    known: dict[str, Status] = {"kept": "passing", "changed": "passing"}
    for _ in range(100):  # re-registering more often than the interval must not keep a check from running
        world.scheduler.put(instance(kept, msgspec.structs.replace(changed, interval_s=11.0), port=81), known)
        await asyncio.sleep(1)
    assert {report[3] for report in world.reports} == {"changed"}, "and only for its output"
    assert world.statuses() == ["passing"]
    kept_times = [when for when, check in world.probes if check.name == "kept"]
    assert all(9 <= b - a <= 11.01 for a, b in pairwise(kept_times))
    world.scheduler.put(instance(changed))
    world.probes.clear()
    await asyncio.sleep(30)
    assert {check.name for _, check in world.probes} == {"changed"}
    await world.scheduler.close()


@virtual_time(seed=6)
async def test_what_others_have_written_of_a_check_is_its_status_from_then_on() -> None:
    world = World()
    one = instance(tcp(passing_after=2))
    world.scheduler.put(one, {"tcp": "passing"})
    await asyncio.sleep(50)
    assert world.statuses() == ["passing"], "its output was not known"
    world.reports.clear()
    world.scheduler.put(one, {"tcp": "critical"})  # as another replica found, whose connection to it broke
    await asyncio.sleep(25)
    assert world.statuses() == ["passing"], "it is looked at here, and it is well"
    world.scheduler.put(one, {"tcp": "passing"})  # what was reported is written now
    await asyncio.sleep(100)
    assert world.statuses() == ["passing"]
    world.scheduler.put(one)  # a registration has taken it back, and begins as critical
    await asyncio.sleep(25)
    assert world.statuses() == ["passing", "passing"]
    await world.scheduler.close()


@virtual_time(seed=6)
async def test_thresholds_hold_from_a_known_status_on() -> None:
    world = World()
    world.verdict = CRITICAL
    world.scheduler.put(instance(tcp(initial="critical")), {"tcp": "passing"})
    await asyncio.sleep(10.1)
    assert len(world.probes) == 1
    assert world.statuses() == []
    await asyncio.sleep(11)
    assert world.statuses() == ["critical"]
    await world.scheduler.close()


@virtual_time(seed=7)
async def test_a_new_incarnation_starts_afresh_and_a_late_result_of_the_old_one_is_dropped() -> None:
    answers: dict[float, asyncio.Future[Verdict]] = {}

    async def slow(check: Check) -> Verdict:
        # Answers even when cancelled: a probe that has its result cannot be stopped any more.
        future = answers[world.elapsed()] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            return REFUSED

    world = World(slow)
    once = tcp(passing_after=1, critical_after=1)
    world.scheduler.put(instance(once, create_revision=5))
    await asyncio.sleep(10.1)
    assert world.scheduler.in_flight == 1
    world.scheduler.put(instance(once, create_revision=9))
    await asyncio.sleep(10.1)
    assert world.scheduler.in_flight == 1
    assert world.reports == []
    world.scheduler.remove(("n", "a"))
    await asyncio.sleep(100)
    assert world.scheduler.in_flight == 0
    assert len(answers) == 2
    assert world.reports == []
    world.scheduler.remove(("n", "a"))
    world.scheduler.probe_now(("n", "a"))
    await world.scheduler.close()


@virtual_time(seed=8)
async def test_a_check_never_runs_twice_at_a_time_and_a_slow_one_causes_no_burst() -> None:
    running: Counter[str] = Counter()

    async def slow(check: Check) -> Verdict:
        running[check.name] += 1
        assert running[check.name] == 1
        world.scheduler.probe_now(("n", "a"))  # asked for again all the time
        await asyncio.sleep(25)
        running[check.name] -= 1
        return PASSING

    world = World(slow)
    world.scheduler.put(instance(tcp("a"), tcp("b")))
    await asyncio.sleep(1000)
    assert 70 <= world.scheduler.runs <= 82
    assert world.scheduler.failures == 0
    await world.scheduler.close()


@virtual_time(seed=9)
async def test_a_stall_delays_checks_and_then_they_go_back_to_their_places() -> None:
    world = World(at_once=20)
    for number in range(1000):
        world.scheduler.put(instance(tcp(), id_=f"i{number}"))
    await asyncio.sleep(30)
    world.probes.clear()
    running_loop().stall(100)
    await asyncio.sleep(0.5)
    assert len(world.probes) <= 1050, "a run that is late is made up for once"
    world.probes.clear()
    await asyncio.sleep(15)
    world.probes.clear()
    await asyncio.sleep(100)
    seconds = Counter(int(when) for when, _ in world.probes)
    assert max(seconds.values()) < 160, seconds  # 100 expected
    assert 99 < world.scheduler.lag_s_max < 101
    await world.scheduler.close()


@virtual_time(seed=10)
async def test_no_more_probes_run_than_allowed_and_the_others_wait_in_due_order() -> None:
    async def slow(check: Check) -> Verdict:
        most[0] = max(most[0], world.scheduler.in_flight)
        queues.append(world.scheduler.queued)
        await asyncio.sleep(1)
        return PASSING

    most, queues = [0], list[int]()
    world = World(slow, at_once=4)
    for number in range(100):  # 10/s are due, 4/s can run
        world.scheduler.put(instance(tcp(f"check {number}"), id_=f"i{number}"))
    await asyncio.sleep(500)
    assert most == [4]
    assert max(queues) > 40
    counts = Counter(check.name for _, check in world.probes)
    assert len(counts) == 100
    assert max(counts.values()) - min(counts.values()) <= 3, "nobody starves"
    await world.scheduler.close()


# --- fast death


@virtual_time(seed=11)
async def test_a_refusal_after_a_broken_connection_is_critical_at_once_whatever_the_thresholds() -> None:
    world = World()
    world.scheduler.put(instance(tcp("a", critical_after=100), tcp("b", critical_after=100), tcp("c", kind="ttl")))
    await asyncio.sleep(60)
    world.reports.clear()
    world.probes.clear()
    world.verdict = REFUSED
    world.scheduler.probe_now(("n", "a"))
    asked = world.elapsed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [(report[0], report[3], report[4]) for report in world.reports] == [
        (asked, "a", REFUSED),
        (asked, "b", REFUSED),
    ]
    world.verdict = PASSING
    await asyncio.sleep(40)
    assert world.statuses()[2:] == ["passing", "passing"]
    world.verdict = REFUSED  # without a broken connection it counts like any other failure
    await asyncio.sleep(100)
    assert world.statuses()[4:] == []
    await world.scheduler.close()


@virtual_time(seed=12)
async def test_any_other_result_after_a_broken_connection_counts_like_a_regular_one() -> None:
    world = World()
    world.scheduler.put(instance(tcp(critical_after=3)))
    await asyncio.sleep(40)
    world.reports.clear()
    world.verdict = CRITICAL
    for _ in range(2):
        world.scheduler.probe_now(("n", "a"))
        await asyncio.sleep(0.01)
    assert world.reports == []
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(0.01)
    assert world.statuses() == ["critical"]
    await world.scheduler.close()


@virtual_time(seed=13)
async def test_a_probe_that_may_have_looked_before_the_connection_broke_is_repeated() -> None:
    async def slow(check: Check) -> Verdict:
        verdict = world.verdict
        looking.set()
        await asyncio.sleep(1)
        return verdict

    looking = asyncio.Event()
    world = World(slow)
    world.scheduler.put(instance(tcp(initial="passing")))
    await looking.wait()
    world.verdict = REFUSED
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(2.5)
    assert world.statuses() == ["passing", "critical"]
    assert len(world.probes) == 2
    await world.scheduler.close()


@virtual_time(seed=14)
async def test_an_urgent_look_overtakes_what_is_queued() -> None:
    async def slow(check: Check) -> Verdict:
        await asyncio.sleep(1)
        return PASSING

    world = World(slow, at_once=1)
    for number in range(100):
        world.scheduler.put(instance(tcp(f"check {number}"), id_=f"i{number}"))
    await asyncio.sleep(50)
    world.probes.clear()
    world.scheduler.probe_now(("n", "i77"))
    await asyncio.sleep(1.5)
    assert world.probes[0][1].name == "check 77"
    await world.scheduler.close()


@virtual_time(seed=15)
async def test_an_instance_without_checks_is_connected_to_and_reported_only_if_that_is_refused() -> None:
    world = World()
    world.scheduler.put(instance(tcp("connect", kind="ttl", ttl_s=5.0)))
    await asyncio.sleep(100)
    assert world.probes == []
    for verdict in (PASSING, CRITICAL):
        world.verdict = verdict
        world.scheduler.probe_now(("n", "a"))
        await asyncio.sleep(100)
    assert [(check.kind, check.address) for _, check in world.probes] == [("tcp", "10.0.0.2:80")] * 2
    assert world.reports == []

    world.verdict = REFUSED
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(0.01)
    assert world.statuses() == ["critical"]
    assert world.reports[0][3] == "registry connect", "a check of the instance's own is not touched"
    await asyncio.sleep(100)
    world.scheduler.probe_now(("n", "a"))  # registered again, and dead again: told again
    await asyncio.sleep(0.01)
    assert world.statuses() == ["critical", "critical"]
    world.scheduler.put(instance(tcp("connect", kind="ttl", ttl_s=5.0), port=81), {"registry connect": "critical"})
    world.verdict = PASSING
    await asyncio.sleep(20)
    assert world.statuses() == ["critical", "critical", "passing"], "it recovers when it takes connections again"
    assert world.probes[-1][1].address == "10.0.0.2:81"
    world.probes.clear()
    await asyncio.sleep(100)
    assert world.probes == []

    world.verdict = CRITICAL
    world.scheduler.put(instance(id_="b"), {"connect": "critical"})  # as a predecessor found
    await asyncio.sleep(0.01)
    assert len(world.probes) == 1, "at once"
    await asyncio.sleep(100)
    assert len(world.probes) > 10, "and until it is well again"
    world.verdict = PASSING
    await asyncio.sleep(20)
    world.probes.clear()
    await asyncio.sleep(100)
    assert world.probes == []
    assert [(report[3], report[4].status) for report in world.reports[-1:]] == [("connect", "passing")]
    await world.scheduler.close()


@virtual_time(seed=16)
async def test_fast_death_works_over_a_network() -> None:
    network = running_loop().network
    prober = Prober()
    world = World(prober.probe)
    with network.host("10.0.0.2"):
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "10.0.0.2", 80)
    world.scheduler.put(instance())
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(1)
    assert world.reports == []
    server.close()
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(0.1)
    assert [(report[3], report[4].status, report[4].refused) for report in world.reports] == [
        ("connect", "critical", True)
    ]
    await world.scheduler.close()
    await prober.close()


# --- ends and errors


@virtual_time(seed=17)
async def test_closing_ends_every_probe_and_nothing_is_reported_afterwards() -> None:
    ended: list[str] = []

    async def forever(check: Check) -> Verdict:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.5)  # a close that takes its time is waited for
            ended.append(check.name)
        return REFUSED

    world = World(forever, at_once=5)
    for number in range(10):
        world.scheduler.put(instance(tcp(f"check {number}"), id_=f"i{number}"))
    await asyncio.sleep(10.1)
    world.scheduler.probe_now(("n", "i0"))
    await world.scheduler.close()
    assert len(ended) == 5
    assert world.scheduler.in_flight == 0
    await world.scheduler.close()
    world.scheduler.put(instance(tcp()))
    world.scheduler.probe_now(("n", "a"))
    await asyncio.sleep(100)
    assert len(ended) == 5
    assert world.reports == []


@virtual_time(seed=18)
async def test_a_probe_cancelled_before_its_first_step_frees_its_place() -> None:
    world = World(at_once=1)
    world.scheduler.put(instance(tcp(), id_="x"))
    world.scheduler.probe_now(("n", "x"))
    world.scheduler.remove(("n", "x"))
    world.scheduler.put(instance(tcp(initial="critical")))
    await asyncio.sleep(30)
    assert world.statuses() == ["passing"]
    assert world.scheduler.in_flight == 0
    await world.scheduler.close()


@virtual_time(seed=19)
async def test_a_probe_or_report_that_raises_stops_nothing() -> None:
    async def broken(check: Check) -> Verdict:
        if check.name == "cancels":
            raise asyncio.CancelledError
        raise LookupError("a defect")

    world = World(broken)

    def report(key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        world.report(key, create_revision, check, verdict)
        raise LookupError("another defect")

    world.scheduler._report = report
    world.scheduler.put(instance(tcp("raises", initial="passing"), tcp("cancels")))
    await asyncio.sleep(60)
    assert world.statuses() == ["critical"]
    assert "a defect" in world.reports[0][4].output
    counts = Counter(check.name for _, check in world.probes)
    assert min(counts.values()) >= 5
    assert set(counts) == {"raises", "cancels"}
    await world.scheduler.close()


@virtual_time(seed=20)
async def test_a_report_may_call_back_into_the_scheduler() -> None:
    world = World()

    def report(key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> None:
        world.report(key, create_revision, check, verdict)
        if verdict.status == "passing":
            world.verdict = REFUSED
            world.scheduler.probe_now(key)
        else:
            world.scheduler.remove(key)

    world.scheduler._report = report
    world.scheduler.put(instance(tcp()))
    await asyncio.sleep(100)
    assert world.statuses() == ["passing", "critical"]
    assert world.scheduler.queued == 0
    assert len(world.probes) == 3
    await world.scheduler.close()


# --- many


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_first_runs_are_spread_evenly_over_the_interval(seed: int) -> None:
    print(f"seed {seed}")

    async def main() -> list[float]:
        world = World()
        for number in range(2000):
            world.scheduler.put(instance(tcp(f"check {number}"), id_=f"i{number}"))
        await asyncio.sleep(12)
        await world.scheduler.close()
        first = {check.name: when for when, check in reversed(world.probes)}
        return list(first.values())

    times = run_virtual(main(), seed=seed)
    assert len(times) == 2000
    assert max(times) <= 10
    bins = Counter(int(when * 2) for when in times)
    chi_squared = sum((bins[i] - 100) ** 2 / 100 for i in range(20))
    assert chi_squared < 43.8, bins  # 19 degrees of freedom: 1 in 1000 of the seeds would be above
    assert max(b - a for a, b in pairwise(sorted(times))) < 0.1


@pytest.mark.parametrize("minutes", [1, pytest.param(4, marks=pytest.mark.long)])
def test_ten_thousand_checks_run_on_time_without_a_task_each(minutes: int) -> None:
    async def quick(check: Check) -> Verdict:
        await asyncio.sleep(0.02)
        return PASSING

    async def main() -> None:
        world = World(quick)
        for number in range(10_000):
            world.scheduler.put(instance(tcp(), id_=f"i{number}"))
        most_tasks = 0
        for _ in range(minutes * 60):
            await asyncio.sleep(1)
            most_tasks = max(most_tasks, len(asyncio.all_tasks()))
        seconds = Counter(int(when) for when, _ in world.probes)
        assert abs(world.scheduler.runs - minutes * 60_000) < 2_000
        assert most_tasks < 100
        assert world.scheduler.lag_s_max < 0.05
        # 1000 a second; 1250 and 750 around the first interval's end, where the first round overlaps the second.
        assert all(600 < seconds[second] < 1400 for second in range(minutes * 60)), seconds
        assert len(world.reports) == 10_000, "one each, when it was seen to pass"
        await world.scheduler.close()

    run_virtual(main(), seed=24)


@virtual_time(seed=25)
async def test_churn_leaves_nothing_behind() -> None:
    world = World()
    for number in range(20_000):
        world.scheduler.put(instance(tcp(interval_s=86_400.0), id_=f"i{number % 10}", create_revision=number + 1))
    assert len(world.scheduler._heap) < 1000
    for number in range(10):
        world.scheduler.remove(("n", f"i{number}"))
    assert world.scheduler.queued == 0
    by_id: defaultdict[str, int] = defaultdict(int)
    for _, key, *_ in world.reports:
        by_id[key[1]] += 1
    assert not by_id
    await world.scheduler.close()
