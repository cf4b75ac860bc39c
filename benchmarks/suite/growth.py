"""What becomes of a registry that grows a thousandfold? Each size is a server of its own; all are asked in turn.

The cost of an operation at each size, and the exponent of the power law that fits it best: 0 means that the size does
not matter, 1 that an operation costs in proportion to everything that is registered.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import homeport
from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.stage import Stage
from homeport.client import Client
from homeport.client.core.messages import Deregister, LeaseGrant, Register, Renew, Resolve
from homeport.registry.core.limits import LEASES_MAX

_INSTANCES: Final = 3  # of a service
_SAMPLE: Final = 1_000  # services that are asked for, leases that are renewed
_CHURN: Final = 2_000  # instances that come and go in each turn
_BATCH: Final = 60_000  # registered by one generator process, so that its calls find room
_CONNECTIONS: Final = 16
_DEPTH: Final = 8
_TTL_S: Final = 3600.0  # none ends while it is measured
_SETTLED_S: Final = 1.0
_BYTES_EACH: Final = 6_000  # of an instance, with room to spare: a machine without that memory is told so
_LASTING_MAX: Final = LEASES_MAX - _SAMPLE - _CHURN  # what a registry holds has room for what comes and goes
_METRICS: Final = (
    Metric("lookup_cpu", "us/op", "lower", headline=True),
    Metric("renewal_cpu", "us/op", "lower", headline=True),
    Metric("registration_cpu", "us/op", "lower", headline=True),
    Metric("bytes_per_instance", "B", "lower", headline=True),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """One case, whose contenders are the sizes."""
    sizes = {f"homeport {size:,}": size for size in scale.sizes}
    return (
        Case(
            "growth",
            "what does an operation cost when a thousand times as much is registered?",
            f"services of {_INSTANCES} instances with a lease each; {_CONNECTIONS} connections with {_DEPTH} in "
            f"flight; {_SAMPLE} services asked for, {_SAMPLE} leases renewed, {_CHURN} instances coming and going",
            next(iter(sizes)),
            tuple(
                Contender(
                    name,
                    f"homeport serve, in memory, {_services(size) * _INSTANCES:,} instances",
                    _turns(size, scale),
                    _missing(sum(other for other in sizes.values() if other <= size)),
                )
                for name, size in sizes.items()
            ),
            metrics=_METRICS,
            sizes=sizes,
        ),
    )


def _services(size: int) -> int:
    return min(-(-size // _INSTANCES), _LASTING_MAX // _INSTANCES)


def _missing(instances: int) -> str:
    """Why so many do not find room, or nothing."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    needed_bytes = instances * _BYTES_EACH
    if found is None or int(found[1]) * 1024 > needed_bytes:
        return ""
    return f"it and the smaller ones need {needed_bytes / 2**30:.1f} GiB of free memory"


def _turns(size: int, scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage, name=f"homeport-{size}")
        with registry.server as server:
            time.sleep(_SETTLED_S)  # it accepts connections, and is not done with starting while all of them are
            empty = server.rss_bytes
            services = _services(size)
            for first in range(0, services, _BATCH // _INSTANCES):
                count = min(_BATCH // _INSTANCES, services - first)
                batch = homeport.example_instances(count, _INSTANCES, first=first)
                homeport.register(stage, registry, [replace(each, ttl_s=_TTL_S) for each in batch])
            time.sleep(_SETTLED_S)
            per_instance = (server.rss_bytes - empty) / (services * _INSTANCES)
            leases = asyncio.run(_granted(registry.rpc_port))
            step = max(1, services // _SAMPLE)
            lookups = [rpc_body(Resolve(service=homeport.service_name(at))) for at in range(0, services, step)]
            renewals = [rpc_body(Renew(leases=(lease,))) for lease in leases]
            churn = [
                replace(each, ttl_s=_TTL_S)
                for each in homeport.example_instances(_CHURN // _INSTANCES, _INSTANCES, first=services)
            ]
            come = [rpc_body(Register(instance=each)) for each in churn]
            go = [rpc_body(Deregister(id=each.id, node=each.node)) for each in churn]

            def cpu(bodies: list[bytes], *, once: bool = False) -> float:
                plan = ClosedLoop(
                    port=registry.rpc_port,
                    connections=_CONNECTIONS,
                    depth=_DEPTH,
                    calls=RpcCalls(bodies),
                    duration_s=scale.turn_s,
                    operations_max=len(bodies) if once else 0,
                )
                return driver.closed_loop(plan, stage.generators, [server.pid]).figures["server_cpu"]

            yield lambda: Turn(
                {
                    "lookup_cpu": cpu(lookups),
                    "renewal_cpu": cpu(renewals),
                    "registration_cpu": cpu(come, once=True) + cpu(go, once=True),
                    "bytes_per_instance": per_instance,
                }
            )
            server.kill()  # to end in order, it would take a million instances apart

    return turns


async def _granted(port: int) -> list[int]:
    async with Client(f"127.0.0.1:{port}", name="benchmark") as client:
        return [(await client.call(LeaseGrant(ttl_s=_TTL_S))).lease for _ in range(_SAMPLE)]
