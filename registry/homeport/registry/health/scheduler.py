"""Runs the checks of all instances, each in its time, and tells what changed.

One heap holds every check that waits, ordered by when it is due, and one timer fires for the first of them; a task
exists only while a probe is under way. When as many are under way as may be, due checks stay in the heap, and a probe
that ends starts the next. A check is either in the heap or under way, never both, so no check runs twice at a time.

Whatever a probe found for a check that was dropped meanwhile (its instance removed, registered anew, or changed) is
ignored; the caller still compares the create revision it is given, since its own write comes later.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.client.core.model import Check, Instance, InstanceKey, Status
from homeport.registry.core.explaining import Looked
from homeport.registry.core.health import OUTPUT_INTERVAL_S, CheckState, Verdict, first_start, next_start
from homeport.registry.core.limits import PROBES_AT_ONCE

CONNECT: Final = "connect"  # the check made up for an instance without any, when its registrant's connection broke
TIMER_S_MIN: Final = 0.001  # timers of some loops step by this much, and fire up to as much too early
HEAP_REBUILD_MIN: Final = 256  # below this, entries of dropped checks cost less than a rebuild of the heap

_NOTHING_KNOWN: Final[Mapping[str, Status]] = {}

log = logging.getLogger("homeport.registry.health")
log.addHandler(logging.NullHandler())

Probe = Callable[[Check], Awaitable[Verdict]]
Report = Callable[[InstanceKey, int, str, Verdict], None]


class _Run:
    """One check of one incarnation of an instance: its state and its place in the schedule."""

    __slots__ = (
        "again",
        "asked",
        "check",
        "create_revision",
        "due",
        "key",
        "live",
        "output",
        "output_due",
        "stamp",
        "started",
        "state",
        "task",
        "urgent",
        "written",
    )

    def __init__(self, key: InstanceKey, create_revision: int, check: Check, status: Status | None) -> None:
        self.key = key
        self.create_revision = create_revision
        self.check = check
        self.state = CheckState(check, status)
        self.live = True
        self.stamp = 0  # of its one valid entry in the heap; 0 while it is not there
        self.due = 0.0
        self.started = 0.0
        self.task: asyncio.Task[Verdict] | None = None
        self.urgent = False  # the registrant's connection broke: a refusal now is proof
        self.again = False  # it broke while a probe was under way, which may have looked before that
        self.asked = 0.0  # when that was
        self.written = status  # what the store holds of it, or will once the last report is written
        self.output = ""  # as last reported
        self.output_due = -inf  # when output alone may be reported again

    def learn(self, written: Status | None) -> None:
        """Take over what the store has come to hold of it, if that is not what was last reported."""
        if written == self.written:
            return
        self.written = written
        if (status := written or self.check.initial) != self.state.status:
            self.state.force(status)


class _Target:
    """One incarnation of an instance, and its checks by name."""

    __slots__ = ("connect", "instance", "runs")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.runs: dict[str, _Run] = {}
        self.connect: _Run | None = None  # only from a broken connection until the instance takes connections


class Scheduler:
    """Keeps the checks of instances running that the registry itself looks with.

    Use it from one event loop; it never awaits its caller.

    Args:
        probe: looks once; one that raises counts as critical.
        report: called synchronously with `(instance key, create_revision, check name, verdict)` when a check's status
            changed, and at most every 5 minutes when only its output did. The verdict's status is the check's, after
            thresholds. It may call back into the scheduler.
        now: seconds of a monotonic clock that runs like the loop's.
        rng: where first starts and jitter are drawn from.
        at_once: how many probes may be under way.

    `runs`, `failures` and `lag_s_max` count since the beginning; `in_flight` and `queued` are as of now.
    """

    def __init__(
        self,
        probe: Probe,
        report: Report,
        *,
        now: Callable[[], float],
        rng: Rng,
        at_once: int = PROBES_AT_ONCE,
    ) -> None:
        self._probe = probe
        self._report = report
        self._now = now
        self._rng = rng
        self._at_once = at_once
        self._targets: dict[InstanceKey, _Target] = {}
        self._heap: list[tuple[float, int, _Run]] = []  # (due, or -inf if urgent; stamp; run)
        self._stamp = 0
        self._outdated = 0  # entries of the heap whose run was dropped or moved
        self._tasks: dict[asyncio.Task[Verdict], _Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf
        # Probes are the scheduler's own: no tracing context of the request that registered may leak into them.
        self._context = contextvars.copy_context()
        self._closed = False
        self.runs = 0
        self.failures = 0
        self.lag_s_max = 0.0

    @property
    def in_flight(self) -> int:
        """Probes under way."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Checks that are due and wait for others to end. Looks at every check: for a scrape, not for a loop."""
        now = self._now()
        return sum(due <= now and run.stamp == stamp for due, stamp, run in self._heap)

    def looked(self, key: InstanceKey) -> dict[str, Looked]:
        """How the looks at each check of an instance stand; empty for an unknown key."""
        target = self._targets.get(key)
        if target is None:
            return {}
        runs = [*target.runs.values(), *([target.connect] if target.connect is not None else [])]
        now = self._now()
        return {
            run.check.name: Looked(run.state.recent, 0.0 if run.task is not None else max(run.due - now, 0.001))
            for run in runs
        }

    def put(self, instance: Instance, known: Mapping[str, Status] = _NOTHING_KNOWN) -> None:
        """Follow an instance that appeared or changed; a no-op once closed.

        A check that is equal to before keeps its place in the schedule, and its state unless `known` (what the store
        holds, by check name) has come to hold another than was reported: that is its state then. Any other check, and
        every one of a new incarnation (another `create_revision`), starts afresh: from its status in `known`, else
        from its `initial`. An instance that `known` says refused connections is asked at once whether it still does.
        """
        if self._closed:
            return
        key = instance.key
        previous = self._targets.get(key)
        if previous is not None and previous.instance.create_revision != instance.create_revision:
            self.remove(key)
            previous = None
        target = self._targets[key] = _Target(instance)
        before = {} if previous is None else previous.runs
        for check in instance.checks:
            if check.kind in ("ttl", "alias"):
                continue  # told, not run
            run = before.get(check.name)
            if run is not None and run.check == check:
                del before[check.name]
                run.learn(known.get(check.name))
            else:
                run = _Run(key, instance.create_revision, check, known.get(check.name))
                self._push(run, first_start(self._now(), check.interval_s, self._rng))
            target.runs[check.name] = run
        if known or (previous is not None and previous.connect is not None):
            self._go_on(target, previous.connect if previous is not None else None, known)
        for run in before.values():
            self._drop(run)
        self._arm()

    def _go_on(self, target: _Target, run: _Run | None, known: Mapping[str, Status]) -> None:
        """Go on looking whether an instance that refused connections still does, at its newest address."""
        one, check = target.instance, _connect_check(target.instance)
        written = known.get(check.name) if check is not None else None
        if run is not None:
            target.connect = run
            if check is not None and check != run.check:
                run.check = check
                if run.task is not None:
                    run.task.cancel()
            run.learn(written)
        elif check is not None and written == "critical":  # as a predecessor of this scheduler found, or another one
            target.connect = _Run(one.key, one.create_revision, check, written)
            self._push(target.connect, self._now())

    def remove(self, key: InstanceKey) -> None:
        """Forget an instance; what its probes under way find is ignored. Unknown keys are fine."""
        target = self._targets.pop(key, None)
        if target is None:
            return
        for run in target.runs.values():
            self._drop(run)
        if target.connect is not None:
            self._drop(target.connect)

    def probe_now(self, key: InstanceKey) -> None:
        """Look at an instance at once, because the connection that registered it broke. Unknown keys are fine.

        Its checks run ahead of all others; one that is under way runs once more. A refused connect makes a check
        critical whatever its thresholds; any other result counts like a regular one. An instance that has
        none gets a TCP connect to its address under the name "connect": if that is refused it is reported
        critical and repeated until it can be reported passing, else nothing is said of it.
        """
        target = self._targets.get(key)
        if target is None or self._closed:
            return
        check = _connect_check(target.instance) if not target.runs and target.connect is None else None
        if check is not None:
            target.connect = _Run(key, target.instance.create_revision, check, None)
            target.connect.output_due = inf  # while it is passing, nobody has heard of it
            target.connect.due = first_start(self._now(), check.interval_s, self._rng)
        runs = [*target.runs.values()]
        if target.connect is not None:
            runs.append(target.connect)
        for run in runs:
            if run.task is not None:
                run.again = True
            elif not run.urgent:
                self._push(run, run.due, ahead=True)
            if not run.urgent:
                run.asked = self._now()
            run.urgent = True
        self._pump()

    async def close(self) -> None:
        """Stop for good: cancel the probes under way and wait until they ended. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key in list(self._targets):
            self.remove(key)  # and so cancel; what was dropped before is cancelled already
        self._heap.clear()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # --- the schedule: synchronous, so that no step is ever seen half done -------------------------------------------

    def _push(self, run: _Run, due: float, *, ahead: bool = False) -> None:
        if run.stamp:
            self._outdated += 1
        self._stamp += 1
        run.stamp = self._stamp
        run.due = due
        heapq.heappush(self._heap, (-inf if ahead else due, run.stamp, run))

    def _drop(self, run: _Run) -> None:
        run.live = False
        if run.task is not None:
            run.task.cancel()
        if run.stamp:
            run.stamp = 0
            self._outdated += 1
            if self._outdated > len(self._heap) // 2 and len(self._heap) > HEAP_REBUILD_MIN:
                self._heap = [entry for entry in self._heap if entry[2].stamp == entry[1]]
                heapq.heapify(self._heap)
                self._outdated = 0

    def _pump(self) -> None:
        """Start what is due, as far as there is room, and set the timer for what comes next."""
        now = self._now()
        while self._heap and len(self._tasks) < self._at_once:
            due, stamp, run = self._heap[0]
            if due > now and run.stamp == stamp:
                break
            heapq.heappop(self._heap)
            if run.stamp == stamp:
                run.stamp = 0
                self._start(run, now)
            else:
                self._outdated -= 1
        self._arm()

    def _arm(self) -> None:
        if self._closed or not self._heap or len(self._tasks) >= self._at_once:
            return  # a probe that ends calls `_pump`
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        delay_s = max(due - self._now(), TIMER_S_MIN)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake, context=self._context)

    def _wake(self) -> None:
        self._timer = None
        self._pump()

    def _start(self, run: _Run, now: float) -> None:
        self.lag_s_max = max(self.lag_s_max, now - (run.asked if run.urgent else run.due))
        run.started = now
        run.task = asyncio.get_running_loop().create_task(
            self._look(run.check), name=f"probe {run.check.name}", context=self._context.copy()
        )
        self._tasks[run.task] = run
        # Not a `finally` in the task: one that is cancelled before its first step would never get there.
        run.task.add_done_callback(self._ended, context=self._context)

    async def _look(self, check: Check) -> Verdict:
        try:
            return await self._probe(check)
        except Exception as error:
            log.exception("the probe of check %r raised", check.name)
            return Verdict("critical", f"the probe itself failed: {type(error).__name__}: {error}")

    def _ended(self, task: asyncio.Task[Verdict]) -> None:
        run = self._tasks.pop(task)
        run.task = None
        if self._closed:
            return
        if run.live:
            if task.cancelled():
                self._push_next(run)
            else:
                self._take(run, task.result())
        self._pump()

    def _take(self, run: _Run, verdict: Verdict) -> None:
        self.runs += 1
        self.failures += verdict.status == "critical"
        if run.urgent and verdict.refused:
            run.state.force("critical")
            run.again = False
            told = True  # even if it was critical before: a registration meanwhile may have wiped that out
        else:
            told = run.state.observe(verdict.status) is not None
        now = self._now()
        status = run.state.status
        # Output that speaks of another status than the check's, which a threshold still holds back, would mislead.
        told = told or (verdict.status == status and verdict.output != run.output and now >= run.output_due)
        target = self._targets[run.key]
        if run is target.connect and status == "passing" and not run.again:
            target.connect = None
            run.live = False
        else:
            self._push_next(run)
        if not told:
            return
        run.written = status
        run.output = verdict.output
        run.output_due = now + OUTPUT_INTERVAL_S
        # Last, with everything in its place, since it may call `put`, `remove` or `probe_now`.
        try:
            self._report(run.key, run.create_revision, run.check.name, Verdict(status, verdict.output, verdict.refused))
        except Exception:
            log.exception("the report on check %r of %s raised", run.check.name, run.key)

    def _push_next(self, run: _Run) -> None:
        run.urgent = run.again
        run.again = False
        if run.urgent:
            self._push(run, run.due, ahead=True)
        else:
            due = next_start(run.due, run.started, run.check.interval_s, self._rng)
            self._push(run, max(due, self._now()))


def _connect_check(instance: Instance) -> Check | None:
    if not instance.address or not instance.port:
        return None
    host = f"[{instance.address}]" if ":" in instance.address else instance.address
    name = CONNECT
    while any(check.name == name for check in instance.checks):  # a ttl check may be called anything
        name = f"registry {name}"
    return Check(name=name, kind="tcp", address=f"{host}:{instance.port}", initial="passing", passing_after=1)
