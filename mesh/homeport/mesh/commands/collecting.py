"""Full collections of garbage that stay short, in a process that comes to hold very many objects for long.

The collector walks over everything that is alive, again and again, while nothing else happens: over 300,000 instances
for a second. So what a long full collection has left is frozen: no later one looks at it, and it is still freed with
its last reference. What is lost is only what was alive then and dies in a cycle later, each time that so much has come.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import thread_time
from typing import Any, Final

SLOW_S: Final = 0.05  # of CPU: a collection that took more is the last to walk over what it left
_OLDEST: Final = 2  # the generation of a full collection


class Freezer:
    """A callback of the collector.

    Args:
        now: the CPU seconds of this thread; by a wall clock every collection is long on a machine that is busy enough.
    """

    def __init__(self, now: Callable[[], float] = thread_time, freeze: Callable[[], object] = gc.freeze) -> None:
        self._now = now
        self._freeze = freeze
        self._begun = 0.0

    def __call__(self, phase: str, info: Mapping[str, Any]) -> None:
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            self._begun = self._now()
        elif self._now() - self._begun > SLOW_S:
            self._freeze()


@contextmanager
def short_collections(freezer: Freezer | None = None) -> Iterator[None]:
    """Have a `Freezer` at work."""
    freezer = freezer or Freezer()
    gc.callbacks.append(freezer)
    try:
        yield
    finally:
        gc.callbacks.remove(freezer)
