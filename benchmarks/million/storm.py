"""A replica dies, and all that were at it come to the others: what waits there, how long, and whether it is in time.

Each client begins after its own backoff, with one call for all its leases. A replica hears calls one after the other,
as one core allows; a lease that is not yet its own it takes over by a write, one for however many calls ask for that,
as etcd allows, and a call is answered when all of its are. Callers give up after as long as they do, and come again;
what they gave up is done all the same.
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


class _Call:
    """One renewal of all leases of a client."""

    __slots__ = ("asked", "client", "leases", "missing")

    def __init__(self, client: int, leases: range, asked: int) -> None:
        self.client = client
        self.leases = leases
        self.asked = asked  # in which step
        self.missing = len(leases)  # those that are not yet written


class _Heir:
    """One of the replicas that are left."""

    def __init__(self, cpu_s: float, writes: float) -> None:
        self.calls: deque[_Call] = deque()
        self.to_write: deque[int] = deque()
        self.asking: dict[int, list[_Call]] = {}  # by lease whose write is on its way
        self._cpu_s = cpu_s  # of each step
        self._writes = writes
        self._cpu_left_s = 0.0
        self._writes_left = 0.0

    def step(self, call_cpu_s: float, lease_cpu_s: float, owned: dict[int, int], now: int) -> list[_Call]:
        """Do the work of step number `now`, note in `owned` which leases were written, and return what is answered."""
        self._cpu_left_s = min(self._cpu_left_s, 0.0) + self._cpu_s
        self._writes_left = min(self._writes_left, 1.0) + self._writes
        answered: list[_Call] = []
        while self.to_write and self._writes_left >= 1.0 and self._cpu_left_s > 0.0:
            self._writes_left -= 1.0
            self._cpu_left_s -= _WRITE_CPU_S
            lease = self.to_write.popleft()
            owned[lease] = now
            for call in self.asking.pop(lease):
                call.missing -= 1
                if not call.missing:
                    answered.append(call)
        while self.calls and self._cpu_left_s > 0.0:
            call = self.calls.popleft()
            self._cpu_left_s -= call_cpu_s + lease_cpu_s * len(call.leases)
            for lease in call.leases:
                if lease in owned:
                    call.missing -= 1
                    continue
                if lease not in self.asking:
                    self.to_write.append(lease)
                self.asking.setdefault(lease, []).append(call)
            if not call.missing:
                answered.append(call)
        return answered


def weathered(
    orphans: int,
    per_client: int,
    heirs: int,
    ttl_s: float,
    call_cpu_s: float,
    lease_cpu_s: float,
    busy: float,
    rng: random.Random,
) -> dict[str, float]:
    """Have so many instances come to `heirs` replicas, each client to one, at random.

    Args:
        call_cpu_s: what a renewal costs a replica, and
        lease_cpu_s: each lease of it, but for the write.
        busy: the share of its core that it needs for everything else.
    """
    replicas = [_Heir((1.0 - busy) * BUCKET_S, ETCD_WRITES_PER_S / heirs * BUCKET_S) for _ in range(heirs)]
    clients = -(-orphans // per_client)
    coming: dict[int, list[int]] = {}  # by step: the clients that ask
    for client in range(clients):
        coming.setdefault(int(Backoff(rng).next_s() / BUCKET_S), []).append(client)
    at = [replicas[rng.randrange(heirs)] for _ in range(clients)]
    owned: dict[int, int] = {}  # lease -> the step in which it was taken over
    content = [False] * clients  # told so in time
    backoffs: dict[int, Backoff] = {}
    given_up, waiting_max, step, left = 0, 0, 0, clients
    while left and step * BUCKET_S < _LONGEST_S:
        for client in coming.pop(step, ()):
            if not content[client]:
                leases = range(client * per_client, min((client + 1) * per_client, orphans))
                at[client].calls.append(_Call(client, leases, step))
        for heir in replicas:
            for call in heir.step(call_cpu_s, lease_cpu_s, owned, step):
                if content[call.client]:
                    continue
                if (step - call.asked) * BUCKET_S <= CALL_S:
                    content[call.client] = True
                    left -= 1
                    continue
                given_up += 1
                backoff = backoffs.setdefault(call.client, Backoff(rng))
                again = max(step + 1, call.asked + int((CALL_S + backoff.next_s()) / BUCKET_S))
                coming.setdefault(again, []).append(call.client)
            waiting_max = max(waiting_max, len(heir.calls) + len(heir.to_write))
        step += 1
    last = max(owned.values(), default=0)
    in_time = (MEMBER_TTL_S + ttl_s) / BUCKET_S
    return {
        "storm_calls": float(clients + given_up),
        "storm_waiting_max": float(waiting_max),
        "storm_owned": last * BUCKET_S,
        "storm_over": step * BUCKET_S,
        "storm_lost": float(orphans - sum(when <= in_time for when in owned.values())),
    }
