"""A replica dies, and all that were at it come to the others: what waits there, how long, and whether it is in time.

Every client's backoff is the client's own. A replica takes registrations one after the other, as fast as one core and
its share of etcd allow, and their callers give up after the time that they do; what they gave up is done all the same.
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

_LONGEST_S: Final = 3600.0  # a storm that takes longer never ends


def weathered(
    orphans: int, per_client: int, heirs: int, ttl_s: float, call_cpu_s: float, busy: float, rng: random.Random
) -> dict[str, float]:
    """Have so many instances come to `heirs` replicas, at random.

    Args:
        call_cpu_s: what a registration costs a replica.
        busy: the share of its core that it needs for everything else.
    """
    per_step = min((1.0 - busy) / call_cpu_s, ETCD_WRITES_PER_S / heirs) * BUCKET_S
    queues: list[deque[tuple[int, int]]] = [deque() for _ in range(heirs)]
    events: dict[int, list[int]] = {}  # by step: the instances whose clients ask
    for first in range(0, orphans, per_client):
        step = int(Backoff(rng).next_s() / BUCKET_S)
        events.setdefault(step, []).extend(range(first, min(first + per_client, orphans)))
    home = [rng.randrange(heirs) for _ in range(-(-orphans // per_client))]
    back: dict[int, int] = {}  # instance -> the step in which its lease was taken over
    answered = [False] * orphans
    backoffs: dict[int, Backoff] = {}
    given_up, waiting_max, step, left, credit = 0, 0, 0, orphans, [0.0] * heirs
    while left and step * BUCKET_S < _LONGEST_S:
        for instance in events.pop(step, ()):
            if not answered[instance]:
                queues[home[instance // per_client]].append((instance, step))
        waiting_max = max(waiting_max, *map(len, queues))
        for number, queue in enumerate(queues):
            credit[number] = min(credit[number] + per_step, max(per_step, 1.0))
            while queue and credit[number] >= 1.0:
                credit[number] -= 1.0
                instance, asked = queue.popleft()
                back.setdefault(instance, step)
                if answered[instance]:
                    continue
                if (step - asked) * BUCKET_S <= CALL_S:
                    answered[instance] = True
                    left -= 1
                    continue
                given_up += 1
                backoff = backoffs.setdefault(instance, Backoff(rng))
                again = max(step + 1, asked + int((CALL_S + backoff.next_s()) / BUCKET_S))
                events.setdefault(again, []).append(instance)
        step += 1
    last = max(back.values(), default=0) * BUCKET_S
    return {
        "storm_calls": float(orphans + given_up),
        "storm_waiting_max": float(waiting_max),
        "storm_owned": last,
        "storm_over": step * BUCKET_S,
        "storm_lost": float(sum(at * BUCKET_S > MEMBER_TTL_S + ttl_s for at in back.values()) + orphans - len(back)),
    }
