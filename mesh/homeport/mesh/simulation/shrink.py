"""A failing scenario made as short as it stays failing: Zeller's delta debugging ("Simplifying and Isolating
Failure-Inducing Input", 2002) over its steps, then parties that nothing needs.

A shorter scenario counts if it breaks the same guarantee. Leaving a step out changes latencies drawn after it, so it
may hide what it does not cause; the search takes what it can get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from homeport.mesh.simulation.scenario import Scenario, Step

RUNS_MAX: Final = 400  # a minute or two

Fails = Callable[[Scenario], bool]


def shrink(scenario: Scenario, fails: Fails, told: Callable[[Scenario], None] = lambda _: None) -> Scenario:
    """The shortest scenario that was found and still fails.

    Args:
        fails: whether a scenario breaks the guarantee in question.
        told: hears of each shorter one.
    """
    budget = [RUNS_MAX]

    def still(candidate: Scenario) -> bool:
        if not budget[0]:
            return False
        budget[0] -= 1
        return fails(candidate)

    best, size = scenario, max(1, len(scenario.steps) // 2)
    while size and best.steps:
        shorter = next((one for one in _without(best, size) if still(one)), None)
        if shorter is not None:
            best = shorter
            told(best)
        elif size == 1:
            break
        else:
            size = min(size // 2, len(best.steps) // 2) or 1
    for fewer in _fewer(best):
        candidate = msgspec.structs.replace(best, **fewer)
        if still(candidate):
            best = candidate
            told(best)
    return best


def _without(scenario: Scenario, size: int) -> Iterator[Scenario]:
    """The scenario without each run of so many steps, the last first: what comes late is rarely the cause."""
    steps = scenario.steps
    for end in range(len(steps), 0, -size):
        yield _with(scenario, steps[: max(0, end - size)] + steps[end:])


def _with(scenario: Scenario, steps: tuple[Step, ...]) -> Scenario:
    return msgspec.structs.replace(scenario, steps=steps)


def _fewer(scenario: Scenario) -> Iterator[dict[str, object]]:
    """Changes that leave parties out, as far as no step names them."""
    named = {name for step in scenario.steps for name in (step.who, step.whom)}
    for field, kind in (("callers", "caller"), ("writers", "writer"), ("watchers", "watcher"), ("lockers", "locker")):
        if not any(name.startswith(kind) for name in named):
            yield {field: 0}
    if "fleet" not in named:
        yield {"fleet": 0}
    if not any("#" in name for name in named) and not named & set(scenario.instances):
        yield {"instances": {}}
