"""What would a million instances ask of a cluster of five replicas? The cores run in virtual time, CPU measured.

Nothing is served: see `benchmarks/million`. Every run is decided by its seed but for the CPU that it measures.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec.structs import replace

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders.homeport import example_instances
from benchmarks.million import RENEWAL_CALL_US
from benchmarks.million.mirror import held
from benchmarks.million.probes import shared
from benchmarks.million.renewals import renewed
from benchmarks.million.storm import weathered
from benchmarks.stage import Stage
from homeport.client.core.messages import Register, Renew
from homeport.registry import Registry

_REPLICAS: Final = 5
_TTL_S: Final = 60.0
_PER_CLIENT: Final = 20
_FOLLOWERS: Final = 1_000  # of a service
_SAMPLE: Final = 5_000  # leases whose CPU is measured
_SEED: Final = 20_260_401
_METRICS: Final = (
    Metric("mirror_memory", "GiB", "lower"),
    Metric("instance_memory", "B", "lower"),
    Metric("load_cpu", "s", "lower"),
    Metric("revision_cpu", "us", "lower"),
    Metric("delivery_cpu", "us", "lower"),
    Metric("renewals", "/s", "higher"),
    Metric("renewal_calls", "/s and replica", "lower"),
    Metric("renewal_core_least", "% of a core", "lower"),
    Metric("renewal_core_most", "% of a core", "lower"),
    Metric("lease_cpu", "us", "lower"),
    Metric("clock_cpu", "% of a core", "lower"),
    Metric("clock_turn_max", "ms", "lower"),
    Metric("leases_ended", "leases", "lower"),
    Metric("probe_spread", "x mean", "lower"),
    Metric("probes_moved", "%", "lower"),
    Metric("share_out_cpu", "s", "lower"),
    Metric("share_out_turn_max", "ms", "lower"),
    Metric("probe_cores", "cores", "lower"),
    Metric("moved_cpu", "us", "lower"),
    Metric("storm_calls", "calls", "lower"),
    Metric("storm_waiting_max", "calls", "lower"),
    Metric("storm_owned", "s", "lower"),
    Metric("storm_over", "s", "lower"),
    Metric("storm_lost", "instances", "lower"),
    Metric("crowded_owned", "s", "lower"),
    Metric("crowded_over", "s", "lower"),
    Metric("crowded_lost", "instances", "lower"),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """One case: one site."""

    @contextmanager
    def ours(_stage: Stage) -> Iterator[Measure]:
        yield lambda: Turn(simulate(scale.simulated, _SEED))

    return (
        Case(
            "million",
            f"what would {scale.simulated:,} instances ask of five replicas?",
            f"TTLs of {_TTL_S:g} s, {_PER_CLIENT} instances a client, {_FOLLOWERS:,} followers a service; a replica "
            "dies, and its clients go to all others (storm) or all to the next (crowded)",
            "homeport",
            (Contender("homeport", "the cores in virtual time; nothing is served", ours),),
            metrics=_METRICS,
            rounds_max=1,
            warm_ups=0,
            notes=("a simulation: network, disk and etcd are constants in benchmarks/million, each with its source",),
        ),
    )


def simulate(instances: int, seed: int) -> dict[str, float]:
    """All figures by name."""
    rng = random.Random(seed)
    figures = held(instances, _TTL_S, _FOLLOWERS)
    figures |= renewed(instances, _TTL_S, _REPLICAS, _PER_CLIENT, rng, 2 * _TTL_S)
    figures |= shared(instances, _REPLICAS)
    lease_s = asyncio.run(_moved_s(min(_SAMPLE, instances)))
    figures["moved_cpu"] = lease_s * 1e6
    busy = (figures["renewal_core_least"] + figures["clock_cpu"]) / 100
    call_s = RENEWAL_CALL_US / 1e6  # with very many under way
    orphans, heirs = instances // _REPLICAS, _REPLICAS - 1
    figures |= weathered(orphans, _PER_CLIENT, heirs, _TTL_S, call_s, lease_s, busy, rng)
    crowded = weathered(orphans, _PER_CLIENT, 1, _TTL_S, call_s, lease_s, busy, rng)
    figures |= {name.replace("storm", "crowded"): value for name, value in crowded.items()}
    return {metric.name: figures[metric.name] for metric in _METRICS}


async def _moved_s(count: int) -> float:
    """CPU of a lease whose instance comes from another connection, but for the write; in process."""
    instances = example_instances(-(-count // 3), 3)[:count]
    async with Registry(rng=random.Random(_SEED)) as registry, registry.client() as client:
        leases = [(await client.call(Register(instance=replace(one, ttl_s=_TTL_S)))).lease for one in instances]
        begun = time.thread_time()
        for first in range(0, count, _PER_CLIENT):
            await client.call(Renew(leases=tuple(leases[first : first + _PER_CLIENT]), moved=True))
        return (time.thread_time() - begun) / count
