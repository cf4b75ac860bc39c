"""Who looks at what: the checks of all instances shared out among the replicas, and again when one is gone."""

from __future__ import annotations

from collections import Counter
from typing import Final

from benchmarks.million import PROBE_US, CpuTimer
from homeport.registry.core import keys
from homeport.registry.core.optimistic import rendezvous

_INTERVAL_S: Final = 10.0
_AT_ONCE: Final = 500  # as a registry shares them out


def shared(instances: int, replicas: int) -> dict[str, float]:
    """Share out a check of each instance among replicas, then among all but one."""
    members = [f"{at * 0x9E3779B97F4A7C15 % (1 << 64):016x}.1" for at in range(1, replicas + 1)]
    names = [keys.checks_of(f"node-{at % 50}", f"service-{at // 3:05}-{at % 3}") for at in range(instances)]
    before = [rendezvous(name, members) for name in names]
    sharing, after = CpuTimer(), []
    for first in range(0, instances, _AT_ONCE):
        with sharing.running():
            after += [rendezvous(name, members[1:]) for name in names[first : first + _AT_ONCE]]
    most = max(Counter(before).values())
    return {
        "probe_spread": most / (instances / replicas),
        "probes_moved": sum(was != now for was, now in zip(before, after, strict=True)) / instances * 100,
        "share_out_cpu": sharing.total_s,
        "share_out_turn_max": sharing.longest_s * 1e3,
        "probe_cores": most / _INTERVAL_S * PROBE_US / 1e6,
    }
