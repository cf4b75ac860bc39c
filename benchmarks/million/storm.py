"""A replica dies, and all that were at it come to the others: what waits there, how long, and whether it is in time.

Each client begins after its own backoff. A replica hears calls one after the other, as one core allows; a lease that is
not yet its own it takes over by a write, one for however many calls ask for that, as etcd allows. Callers give up after
as long as they do, and come again; what they gave up is done all the same.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final

from benchmarks.million import ETCD_WRITES_PER_S
from homeport.client.core.backoff import Backoff
from homeport.client.core.limits import CALL_S
from homeport.registry.core.leases import BUCKET_S
from homeport.registry.store.etcd_ownership import MEMBER_TTL_S

_LONGEST_S: Final = 300.0  # a storm that takes longer does not end by itself
_WRITE_CPU_S: Final = 1 / ETCD_WRITES_PER_S  # of a replica that does nothing else


class _Heir:
    """One of the replicas that are left."""

    def __init__(self, cpu_s: float, writes: float) -> None:
        self.calls: deque[tuple[int, int]] = deque()  # instance, and the step in which it asked
        self.to_write: deque[int] = deque()
        self.asking: dict[int, list[int]] = {}  # by instance whose write is on its way: when its calls were made
        self._cpu_s = cpu_s  # of each step
        self._writes = writes
        self._cpu_left_s = 0.0
        self._writes_left = 0.0

    def step(self, call_cpu_s: float, owned: dict[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
        """One step's work: the calls that are answered, and the instances that are written."""
        self._cpu_left_s = min(self._cpu_left_s, 0.0) + self._cpu_s
        self._writes_left = min(self._writes_left, 1.0) + self._writes
        written: list[int] = []
        answered: list[tuple[int, int]] = []
        while self.to_write and self._writes_left >= 1.0 and self._cpu_left_s > 0.0:
            self._writes_left -= 1.0
            self._cpu_left_s -= _WRITE_CPU_S
            instance = self.to_write.popleft()
            written.append(instance)
            answered += [(instance, asked) for asked in self.asking.pop(instance)]
        while self.calls and self._cpu_left_s > 0.0:
            self._cpu_left_s -= call_cpu_s
            instance, asked = self.calls.popleft()
            if instance in owned or instance in written:
                answered.append((instance, asked))
            else:
                if instance not in self.asking:
                    self.to_write.append(instance)
                self.asking.setdefault(instance, []).append(asked)
        return answered, written


def weathered(
    orphans: int, per_client: int, heirs: int, ttl_s: float, call_cpu_s: float, busy: float, rng: random.Random
) -> dict[str, float]:
    """Have so many instances come to `heirs` replicas, each client to one, at random.

    Args:
        call_cpu_s: what a registration that is in force already costs a replica.
        busy: the share of its core that it needs for everything else.
    """
    replicas = [_Heir((1.0 - busy) * BUCKET_S, ETCD_WRITES_PER_S / heirs * BUCKET_S) for _ in range(heirs)]
    coming: dict[int, list[int]] = {}  # by step: the instances whose clients ask
    for first in range(0, orphans, per_client):
        began = int(Backoff(rng).next_s() / BUCKET_S)
        coming.setdefault(began, []).extend(range(first, min(first + per_client, orphans)))
    at = [replicas[rng.randrange(heirs)] for _ in range(-(-orphans // per_client))]
    owned: dict[int, int] = {}  # instance -> the step in which its lease was taken over
    content = [False] * orphans  # told so in time
    backoffs: dict[int, Backoff] = {}
    given_up, waiting_max, step, left = 0, 0, 0, orphans
    while left and step * BUCKET_S < _LONGEST_S:
        for instance in coming.pop(step, ()):
            if not content[instance]:
                at[instance // per_client].calls.append((instance, step))
        for heir in replicas:
            answered, written = heir.step(call_cpu_s, owned)
            owned.update(dict.fromkeys(written, step))
            for instance, asked in answered:
                if content[instance]:
                    continue
                if (step - asked) * BUCKET_S <= CALL_S:
                    content[instance] = True
                    left -= 1
                    continue
                given_up += 1
                backoff = backoffs.setdefault(instance, Backoff(rng))
                again = max(step + 1, asked + int((CALL_S + backoff.next_s()) / BUCKET_S))
                coming.setdefault(again, []).append(instance)
            waiting_max = max(waiting_max, len(heir.calls) + len(heir.to_write))
        step += 1
    last = max(owned.values(), default=0)
    in_time = (MEMBER_TTL_S + ttl_s) / BUCKET_S
    return {
        "storm_calls": float(orphans + given_up),
        "storm_waiting_max": float(waiting_max),
        "storm_owned": last * BUCKET_S,
        "storm_over": step * BUCKET_S,
        "storm_lost": float(orphans - sum(when <= in_time for when in owned.values())),
    }
