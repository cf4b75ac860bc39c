"""Picks within one process: `python -m benchmarks.load.picks POLICY|choice ENDPOINTS SECONDS`.

Prints `[picks, wall seconds, CPU seconds]`. Every endpoint has some requests under way, so that loads are compared;
keys are of a thousand users. The clock is read once per thousand picks.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Final

from benchmarks.contenders.homeport import example_instances
from homeport.client.core.balancing import Balancing, HashOn, Latency, choose
from homeport.client.core.balancing.settings import PolicyName
from homeport.sidecar.core.endpoint import Endpoint

_SEED: Final = 20_260_101
_KEYS: Final = tuple(b"user-%d" % number for number in range(1000))
_POLICIES: Final[dict[str, PolicyName]] = {
    "least-request": "least-request",
    "peak-ewma": "peak-ewma",
    "round-robin": "round-robin",
    "maglev": "maglev",
}


class _NoConnection:
    idle_since_s = 0.0


def picker(what: str, count: int) -> Callable[[bytes], object]:
    """The function whose calls are counted."""
    rng = random.Random(_SEED)
    endpoints = [Endpoint[_NoConnection](instance) for instance in example_instances(1, count)]
    for endpoint in endpoints:
        endpoint.active = rng.randrange(4)
        if what == "peak-ewma":
            endpoint.latency = Latency(0.0)
            endpoint.latency.observe(rng.uniform(0.03, 0.1), 0.0)
    if what == "choice":
        return lambda _key: rng.choice(endpoints)
    policy = _POLICIES[what]
    hash_on = HashOn(source=True) if policy == "maglev" else None
    pick = choose(Balancing(policy=policy, hash_on=hash_on), endpoints).pick
    return lambda key: pick(rng, (), 0.0, key)


def main() -> None:
    """The command line."""
    what, count, duration = sys.argv[1:]
    pick = picker(what, int(count))
    picks, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started_at < float(duration):
        for key in _KEYS:
            pick(key)
        picks += len(_KEYS)
    print(json.dumps([picks, time.perf_counter() - started_at, time.process_time() - cpu_at]))


if __name__ == "__main__":
    main()
