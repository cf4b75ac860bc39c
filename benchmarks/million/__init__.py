"""A million instances without a million programs: the registry's cores in virtual time, the CPU of each step measured.

What is not run is the network, the disk and etcd; where a figure needs one of those it is a constant here, with the
place of its measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ETCD_WRITES_PER_S: Final = 14_600.0  # in batches of 100, of one replica: ARCHITECTURE.md, "Replicas over etcd"
RENEWAL_CALL_US: Final = (
    3.66  # CPU of a registry for a call with one renewal, very many under way: benchmark "renewals"
)
RENEWAL_ALL_US: Final = 66.0  # of three replicas for a renewal, two a call, with all that they do when idle: "cluster"
PROBE_US: Final = 239.0  # CPU of one HTTP check on a connection of its own: benchmark "checks"


class CpuTimer:
    """CPU seconds of this thread within `running` blocks."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.longest_s = 0.0
        self._now: Callable[[], float] = time.thread_time

    @contextmanager
    def running(self) -> Iterator[None]:
        begun = self._now()
        try:
            yield
        finally:
            took_s = self._now() - begun
            self.total_s += took_s
            self.longest_s = max(self.longest_s, took_s)
