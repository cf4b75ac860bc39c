"""How soon does a change reach those who watch, by their number? Each of up to a thousand has its own connection."""

from __future__ import annotations

from typing import Final

from benchmarks.case import Case, Scale
from benchmarks.suite import fanout

_WATCHERS: Final = (10, 100, 1_000)  # 10,000 of them, on fewer connections, are the suite `fanout`
_PUTS_PER_DELIVERY: Final = 10
_HEARD_MAX: Final = 100_000  # deliveries a turn, of 100 puts at least: a put's come together, and more take long


def cases(scale: Scale) -> tuple[Case, ...]:
    """A case for each number of watchers."""
    return tuple(
        fanout.case(
            f"propagation/{watchers}",
            watchers,
            watchers,
            min(scale.deliveries * _PUTS_PER_DELIVERY, _HEARD_MAX // watchers),
        )
        for watchers in _WATCHERS
    )
