"""How soon does a change reach those who watch, by their number? Each of up to a thousand has its own connection."""

from __future__ import annotations

from typing import Final

from benchmarks.case import Case, Scale
from benchmarks.suite import fanout

_WATCHERS: Final = (10, 100, 1_000)  # 10,000 of them, on fewer connections, are the suite `fanout`
_PUTS_PER_DELIVERY: Final = 10


def cases(scale: Scale) -> tuple[Case, ...]:
    """A case for each number of watchers."""
    return tuple(
        fanout.case(f"propagation/{watchers}", watchers, watchers, scale.deliveries * _PUTS_PER_DELIVERY)
        for watchers in _WATCHERS
    )
