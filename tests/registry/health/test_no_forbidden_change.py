"""A machine of registrations, results and pauses in virtual time: no status changes against its thresholds.

The rule is checked at every write to the catalogue, from the results that were given since the registration: not by a
second state machine, but by what the documentation promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from homeport.client.core.messages import Register
from homeport.client.core.model import SEVERITY, Check, Instance, Status
from homeport.mesh.testing import VirtualLoop, virtual_now
from homeport.registry import Registry
from homeport.registry.core.limits import STATUS_TICK_S
from homeport.registry.peers import NoOutlet, Peer

T = TypeVar("T")
INTERVAL_S = 2.0  # half of it, the least between two looks, is longer than the moment in which writes are gathered
RESULTS: tuple[Status, ...] = ("passing", "warning", "critical")
KEY = ("home", "it")

statuses = st.sampled_from(RESULTS)


@st.composite
def checks(draw: st.DrawFn) -> Check:
    critical_after = draw(st.integers(1, 4))
    return Check(
        name="call",
        kind="call",
        call="it",
        interval_s=INTERVAL_S,
        passing_after=draw(st.integers(1, 4)),
        warning_after=draw(st.integers(0, critical_after)),
        critical_after=critical_after,
        initial=draw(statuses),
    )


class Flapping(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop(1)
        self.registry = Registry(node="home")
        self.registry.provide("it", self.look)
        self.answer: Status = "passing"
        self.results: list[Status] = []
        self.check: Check | None = None
        self.status: Status = "critical"
        self.forbidden: list[str] = []
        self.run(self.registry.start())
        self.registry.store.listen(self.written)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def look(self) -> Status:
        self.results.append(self.answer)
        return self.answer

    def written(self, _revision: int, _changes: object) -> None:
        record = self.registry.catalogue.checks.one(KEY, "call")
        if record is not None and self.check is not None and record.status != self.status:
            if not allowed(self.check, self.status, record.status, self.results):
                self.forbidden.append(f"{self.status} -> {record.status} after {self.results} by {self.check}")
            self.status = record.status

    async def until(self, looks: int) -> None:
        wanted, begun = len(self.results) + looks, virtual_now()
        while len(self.results) < wanted:
            await asyncio.sleep(0.2)
            assert virtual_now() - begun < (looks + 1) * 1.2 * INTERVAL_S, "a look is missing"
        await asyncio.sleep(2 * STATUS_TICK_S)

    async def register(self, check: Check, tag: str) -> None:
        if self.check is None:
            self.check, self.status = check, check.initial
        one = Instance(service="web", id="it", port=1, tags=(tag,), checks=(check,))
        await self.registry.operations.registrations.register(Register(instance=one), Peer(NoOutlet()))
        await asyncio.sleep(0.0)

    @initialize(check=checks())
    def first(self, check: Check) -> None:
        self.run(self.register(check, "0"))

    @rule(results=st.lists(statuses, min_size=1, max_size=8))
    def give(self, results: list[Status]) -> None:
        for self.answer in results:
            self.run(self.until(1))

    @rule(answer=statuses, looks=st.integers(1, 12))
    def repeat(self, answer: Status, looks: int) -> None:
        self.answer = answer
        self.run(self.until(looks))
        assert self.check is not None
        if looks >= max(self.check.passing_after, self.check.critical_after):
            assert self.status == answer, f"{looks} times {answer} in a row did not make it {answer}"

    @rule(tag=st.sampled_from(["1", "2"]))
    def register_again(self, tag: str) -> None:
        assert self.check is not None
        self.run(self.register(self.check, tag))

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def nothing_forbidden_happened(self) -> None:
        assert not self.forbidden, self.forbidden

    def teardown(self) -> None:
        self.run(self.registry.close())
        self.loop.close()


def allowed(check: Check, old: Status, new: Status, results: list[Status]) -> bool:
    """Whether the last results permit this change."""

    def all_of(count: int, fits: Callable[[int], bool]) -> bool:
        return len(results) >= count and all(fits(SEVERITY[result]) for result in results[-count:])

    level = SEVERITY[new]
    if level < SEVERITY[old]:
        return all_of(check.passing_after, lambda severity: severity <= level)
    enough = (check.warning_after or check.critical_after) if new == "warning" else check.critical_after
    return all_of(enough, lambda severity: severity >= level)


TestFlapping = Flapping.TestCase
TestFlapping.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
