"""How much history a store keeps: a bounded number of revisions, none older than an age."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from homeport.registry.core.limits import HISTORY_AGE_S_MAX, HISTORY_REVISIONS_MAX
from homeport.registry.core.mvcc import Mvcc

AGE_STEP_S: Final = HISTORY_AGE_S_MAX / 10  # how finely the age of revisions is noted
_COMPACT_STRIDE: Final = 1000  # revisions that history may overrun its bound by, so that compaction works in strides


class HistoryBounds:
    """Says what to compact to: after each revision, and each `AGE_STEP_S`; 0 is nothing."""

    def __init__(self, now: Callable[[], float], mvcc: Mvcc) -> None:
        self._now = now
        self._mvcc = mvcc
        self._ages: list[tuple[float, int]] = [(now(), mvcc.revision)]  # when the store stood at which revision

    def by_count(self) -> int:
        if self._mvcc.history_length() < HISTORY_REVISIONS_MAX + _COMPACT_STRIDE:
            return 0
        return self._mvcc.revision_of_age(HISTORY_REVISIONS_MAX)

    def by_age(self) -> int:
        now = self._now()
        self._ages.append((now, self._mvcc.revision))
        old = [revision for when, revision in self._ages if now - when >= HISTORY_AGE_S_MAX]
        self._ages = self._ages[len(old) :]
        return old[-1] if old and old[-1] > self._mvcc.compact_revision else 0
