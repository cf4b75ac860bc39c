"""Lookups within one process: `python -m benchmarks.load.in_process WHAT SERVICES INSTANCES SECONDS`.

WHAT is dict, client, catalogue, lookup (a resolver's), pick (a resolver's, balanced) or done (a pick with its block).
Prints `[lookups, wall seconds, CPU seconds]`. The clock is read once per pass over all services.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from benchmarks.contenders.homeport import example_instances
from homeport.client import Client, Instance
from homeport.client.core.messages import Register
from homeport.registry import Registry

Figures = tuple[int, float, float]


def by_dict(instances: list[Instance], duration_s: float) -> Figures:
    """The ceiling."""
    found: dict[str, tuple[Instance, ...]] = {}
    for one in instances:
        found[one.service] = (*found.get(one.service, ()), one)
    names = list(found)
    lookups, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started_at < duration_s:
        for name in names:
            found[name]
        lookups += len(names)
    return lookups, time.perf_counter() - started_at, time.process_time() - cpu_at


async def by_client(client: Client, names: list[str], duration_s: float) -> Figures:
    """What a program does before each call that it makes."""
    for name in names:
        assert await client.resolve(name)
    lookups, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started_at < duration_s:
        for name in names:
            await client.resolve(name)
        lookups += len(names)
    return lookups, time.perf_counter() - started_at, time.process_time() - cpu_at


async def by_resolver(client: Client, names: list[str], duration_s: float, what: str) -> Figures:
    """What a program does that follows its services."""
    async with client.resolver(*names) as resolver:
        lookup, pick = resolver.lookup, resolver.pick
        for name in names:
            assert lookup(name)
        lookups, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - started_at < duration_s:
            if what == "lookup":
                for name in names:
                    lookup(name)
            elif what == "pick":
                for name in names:
                    pick(name)
            else:
                for name in names:
                    with pick(name):
                        pass
            lookups += len(names)
        return lookups, time.perf_counter() - started_at, time.process_time() - cpu_at


def by_catalogue(registry: Registry, names: list[str], duration_s: float) -> Figures:
    """What a front does for each request."""
    resolved = registry.catalogue.resolved
    for name in names:
        assert resolved(name, True)
    lookups, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started_at < duration_s:
        for name in names:
            resolved(name, True)
        lookups += len(names)
    return lookups, time.perf_counter() - started_at, time.process_time() - cpu_at


async def _embedded(what: str, instances: list[Instance], duration_s: float) -> Figures:
    names = list(dict.fromkeys(one.service for one in instances))
    async with Registry() as registry, registry.client() as client:
        for one in instances:
            await client.call(Register(instance=one))
        if what == "client":
            return await by_client(client, names, duration_s)
        if what == "catalogue":
            return by_catalogue(registry, names, duration_s)
        return await by_resolver(client, names, duration_s, what)


def main() -> None:
    """The command line."""
    what, services, copies, duration = sys.argv[1:]
    instances = example_instances(int(services), int(copies))
    if what == "dict":
        figures = by_dict(instances, float(duration))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(_embedded(what, instances, float(duration)))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
