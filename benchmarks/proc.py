"""What Linux says about processes under /proc: their children, their CPU seconds, their memory.

Parsing is separate from reading, so that it can be tested on text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED: Final = 2  # of the kernel's clocks of a process: the scheduler's count, in nanoseconds


@dataclass(frozen=True)
class Stat:
    """One process, as far as a measurement cares."""

    pid: int
    parent: int
    cpu_ticks: int  # user and system, its own
    reaped_cpu_ticks: int  # and that of its children that have ended
    rss_pages: int


def parse_stat(text: str) -> Stat:
    """Read a line of /proc/PID/stat. The name, in parentheses, may hold anything, also spaces and parentheses.

    Raises:
        ValueError: it is something else.
    """
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    if len(fields) < 22:
        raise ValueError(f"not a line of /proc/PID/stat: {text[:80]!r}")
    user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
    return Stat(int(pid), int(fields[1]), user + system, reaped_user + reaped_system, int(fields[21]))


def tree(stats: Iterable[Stat], root: int) -> list[Stat]:
    """The process `root` and all its descendants; empty if it is not among `stats`."""
    children: dict[int, list[Stat]] = {}
    found = []
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == root:
            found.append(stat)
    for stat in found:  # grows while it is walked
        found += children.get(stat.pid, ())
    return found


def read_all() -> list[Stat]:
    """Every process of this machine; those that end meanwhile are left out."""
    stats = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stats.append(parse_stat(Path("/proc", name, "stat").read_text(errors="replace")))
            except OSError:
                continue
    return stats


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far by these processes, their descendants, and the children that they have reaped."""
    stats = read_all()
    found = {stat.pid: stat for pid in pids for stat in tree(stats, pid)}
    return sum(_clock_s(stat) + stat.reaped_cpu_ticks / TICKS_PER_S for stat in found.values())


def _clock_s(stat: Stat) -> float:
    """What a process has used, all of its threads: exactly once they sleep, else up to a tick of the scheduler ago."""
    try:
        return time.clock_gettime(~stat.pid << 3 | _CPUCLOCK_SCHED)  # clock_getcpuclockid(3), which Python lacks
    except OSError:  # it ended meanwhile
        return stat.cpu_ticks / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants."""
    return sum(stat.rss_pages for stat in tree(read_all(), pid)) * PAGE_BYTES
