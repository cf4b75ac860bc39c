"""Renewals of very many leases in virtual time: every client renews as the client does, every owner runs its clock."""

from __future__ import annotations

import random
from collections.abc import Awaitable

from benchmarks.million import RENEWAL_ALL_US, RENEWAL_CALL_US, CpuTimer
from homeport.client.core.messages import Renew, Renewed
from homeport.client.registration import RENEWAL_JITTER, RENEWALS_PER_TTL
from homeport.client.renewals import Renewals
from homeport.registry.core.leases import BUCKET_S, LeaseTable


def _nobody(_request: Renew, _ttl_s: float) -> Awaitable[Renewed]:
    raise AssertionError("only the clock of a client is used")


def renewed(
    instances: int, ttl_s: float, replicas: int, per_client: int, rng: random.Random, duration_s: float
) -> dict[str, float]:
    """Run the clocks for so long; client `n` talks to replica `n % replicas`, which owns its leases."""
    clients = [Renewals(_nobody, rng) for _ in range(-(-instances // per_client))]
    period_s = ttl_s / RENEWALS_PER_TTL
    tables = [LeaseTable(0.0) for _ in range(replicas)]
    wheel: dict[int, list[int]] = {}
    for lease in range(instances):
        tables[lease // per_client % replicas].grant(0.0, lease, ttl_s)
        wheel.setdefault(int(rng.uniform(0.0, period_s) / BUCKET_S), []).append(lease)
    renewing, advancing = CpuTimer(), CpuTimer()
    renewals = calls = ended = 0
    for bucket in range(int(duration_s / BUCKET_S)):
        now = (bucket + 1) * BUCKET_S
        due: list[list[int]] = [[] for _ in range(replicas)]
        asking: set[int] = set()
        for lease in wheel.pop(bucket, ()):
            client = lease // per_client
            asking.add(client)
            due[client % replicas].append(lease)
            wait_s = period_s * rng.uniform(1 - RENEWAL_JITTER, 1 + RENEWAL_JITTER)
            wait_s = clients[client].delay_s(now, period_s, wait_s)
            wheel.setdefault(max(bucket + 1, int((now + wait_s) / BUCKET_S)), []).append(lease)
        calls += len(asking)
        for table, leases in zip(tables, due, strict=True):
            renewals += len(leases)
            with renewing.running():
                for lease in leases:
                    table.renew(now, lease)
            with advancing.running():
                ended += len(table.advance(now))
    calls_per_s = calls / duration_s / replicas
    return {
        "renewals": renewals / duration_s,
        "renewal_calls": calls_per_s,
        "renewal_core_least": calls_per_s * RENEWAL_CALL_US / 1e4,
        "renewal_core_most": renewals / duration_s / replicas * RENEWAL_ALL_US / 1e4,
        "lease_cpu": renewing.total_s / renewals * 1e6,
        "clock_cpu": advancing.total_s / duration_s / replicas * 100,
        "clock_turn_max": advancing.longest_s * 1e3,
        "leases_ended": float(ended),
    }
