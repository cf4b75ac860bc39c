"""What does a cluster do with many instances, and what is left for etcd to do? Three replicas over one etcd.

One long turn: everything is registered, then renewed in peace; for the last fifth of that, changes are timed from
replica to replica. Halfway a replica is killed, and after a while started again. At the end every instance must be the
one that was registered at the beginning, and all mirrors equal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from typing import Final

import msgspec

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import cluster, homeport
from benchmarks.contenders.cluster import Cluster
from benchmarks.load import site
from benchmarks.proc import cpu_s
from benchmarks.servers import MeasurementError, Server
from benchmarks.stage import Stage
from homeport.client import Client, HomeportError
from homeport.client.core.messages import BackupOpen, BackupRead, Resolve, Stats

_CLIENTS_PER_INSTANCE: Final = 1 / 20  # a site's hosts: 1,000 connections for 20,000 instances
_SITES: Final = 2  # processes of the load: one would need most of a core
_CLIENTS_MAX: Final = 1_000
_REGISTERED_S: Final = 1_200.0  # for everything to be registered, on a slow machine
_CALL_S: Final = 120.0  # for a backup
_AT_ONCE: Final = 64
_AWAY_S: Final = 20.0  # of the replica that is killed: longer than a membership
_PING_S: Final = 0.05  # between two changes that are timed
_LOOK_S: Final = 0.25
_KILLED: Final = 1  # the replica; changes are timed between the two others
_METRICS: Final = (
    Metric("registrations", "/s", "higher"),
    Metric("renewals", "/s", "higher"),
    Metric("replicas_cpu", "% of a core", "lower"),
    Metric("etcd_cpu", "% of a core", "lower"),
    Metric("replica_memory", "MiB", "lower"),
    Metric("etcd_memory", "MiB", "lower"),
    Metric("etcd_received", "KiB/s", "lower"),
    Metric("etcd_sent", "KiB/s", "lower"),
    Metric("etcd_puts", "/s", "lower"),
    Metric("etcd_lease_renewals", "/s", "lower"),
    Metric("propagation_p50", "ms", "lower"),
    Metric("propagation_p99", "ms", "lower"),
    Metric("owned_again", "s", "lower"),
    Metric("puts_of_failover", "keys", "lower"),
    Metric("loop_late_max", "ms", "lower"),
    Metric("instances_lost", "instances", "lower"),
)


def cases(scale: Scale) -> tuple[Case, ...]:
    """A case for each load."""
    return tuple(_case(instances, ttl_s, scale.cluster_s) for instances, ttl_s in scale.cluster_loads)


def _case(instances: int, ttl_s: float, duration_s: int) -> Case:
    return Case(
        f"cluster/{instances}",
        f"what do {instances:,} instances with TTLs of {ttl_s:g} s ask of three replicas, and of etcd?",
        f"{_clients(instances)} clients, {duration_s} s, a replica killed halfway; every process on any core",
        "homeport",
        (
            Contender(
                "homeport",
                "three homeport serve over one etcd; shares of all three together, rates and bytes before the fault",
                _turns(instances, ttl_s, duration_s),
                cluster.missing(),
            ),
        ),
        metrics=_METRICS,
        rounds_max=1,
        warm_ups=0,
    )


def _clients(instances: int) -> int:
    return min(_CLIENTS_MAX, max(1, int(instances * _CLIENTS_PER_INSTANCE)))


def _turns(instances: int, ttl_s: float, duration_s: int) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        with cluster.running(stage) as running:
            yield lambda: asyncio.run(_Run(running, instances, ttl_s, duration_s).turn())

    return turns


class _Run:
    """One turn over a running cluster."""

    def __init__(self, running: Cluster, instances: int, ttl_s: float, duration_s: int) -> None:
        self._cluster = running
        self._instances = instances
        self._ttl_s = ttl_s
        self._duration_s = duration_s
        self._figures: dict[str, float] = {}

    async def turn(self) -> Turn:
        async with AsyncExitStack() as stack:
            self._direct = [await stack.enter_async_context(Client(one)) for one in self._cluster.addresses]
            load = await self._register()
            registered = await self._instances_now()
            await asyncio.sleep(self._ttl_s)
            shares = await self._in_peace(load)
            self._figures |= await self._propagation(self._duration_s / 10)
            await self._fault()
            rest_s = self._duration_s / 2 - self._figures["owned_again"] - _AWAY_S
            await asyncio.sleep(max(rest_s, 1.5 * self._ttl_s))
            await self._judge(registered, load)
        return Turn(self._figures, *shares)

    async def _register(self) -> list[Server]:
        begun, load = time.monotonic(), []
        whole = self._instances // site.OF_SERVICE  # services; the last process has what is left over as well
        for number in range(_SITES):
            first = whole * number // _SITES
            count = self._instances - first * site.OF_SERVICE
            if number < _SITES - 1:
                count = (whole * (number + 1) // _SITES - first) * site.OF_SERVICE
            clients = max(1, _clients(self._instances) // _SITES)
            plan = site.Plan(self._cluster.addresses, first, count, self._ttl_s, clients)
            load.append(self._cluster.site(number, msgspec.json.encode(plan).decode()))
        while (said := site.standing([one.log for one in load])).started < self._instances:
            if time.monotonic() - begun > _REGISTERED_S:
                raise MeasurementError(f"{said} after {_REGISTERED_S:.0f} s: {load[0].last_words()}")
            await asyncio.sleep(_LOOK_S)
        self._figures["registrations"] = self._instances / (time.monotonic() - begun)
        return load

    async def _in_peace(self, load: list[Server]) -> tuple[float, float]:
        """Renewals and nothing else; return the shares of a core that the servers and the load took."""
        before, heard = self._cluster.totals(), await self._sum("renewals")
        replicas_s, etcd_s = self._cluster.cpu_s()
        load_s, begun = cpu_s([one.pid for one in load]), time.monotonic()
        await asyncio.sleep(self._duration_s * 0.4)
        wall_s = time.monotonic() - begun
        replicas_s, etcd_s = (now - then for now, then in zip(self._cluster.cpu_s(), (replicas_s, etcd_s), strict=True))
        after = self._cluster.totals()
        mib = 1024 * 1024
        self._figures |= {
            "renewals": (await self._sum("renewals") - heard) / wall_s,
            "replicas_cpu": replicas_s / wall_s * 100,
            "etcd_cpu": etcd_s / wall_s * 100,
            "replica_memory": max(one.rss_bytes for one in self._cluster.replicas) / mib,
            "etcd_memory": self._cluster.etcd.server.rss_bytes / mib,
            "etcd_received": (after.received - before.received) / wall_s / 1024,
            "etcd_sent": (after.sent - before.sent) / wall_s / 1024,
            "etcd_puts": (after.puts - before.puts) / wall_s,
            "etcd_lease_renewals": (after.lease_renewals - before.lease_renewals) / wall_s,
        }
        return (replicas_s + etcd_s) / wall_s, (cpu_s([one.pid for one in load]) - load_s) / wall_s / _SITES

    async def _propagation(self, duration_s: float) -> dict[str, float]:
        """Time changes from the put at one replica to the watcher at another."""
        writer, reader = (self._direct[at] for at in range(len(self._direct)) if at != _KILLED)
        took_ms: list[float] = []
        watching = reader.kv.watch("benchmark/ping")
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(1.0)  # the watch stands
        until = time.monotonic() + duration_s
        seen = first
        while time.monotonic() < until:
            begun = time.perf_counter()
            putting = asyncio.ensure_future(writer.kv.put("benchmark/ping", b"%d" % len(took_ms)))
            await seen
            took_ms.append((time.perf_counter() - begun) * 1e3)
            await putting
            seen = asyncio.ensure_future(anext(watching))
            await asyncio.sleep(_PING_S)
        seen.cancel()
        took_ms.sort()
        return {
            "propagation_p50": took_ms[len(took_ms) // 2],
            "propagation_p99": took_ms[min(len(took_ms) - 1, int(len(took_ms) * 0.99))],
        }

    async def _fault(self) -> None:
        """Kill a replica, wait until the others own everything, and start it again."""
        before = self._cluster.totals()
        self._cluster.replicas[_KILLED].kill()
        killed = time.monotonic()
        others = [client for at, client in enumerate(self._direct) if at != _KILLED]
        while await self._sum("leases_owned", others) < self._instances:
            if time.monotonic() - killed > self._duration_s:
                raise MeasurementError("the leases of the killed replica are nobody's")
            await asyncio.sleep(_LOOK_S)
        self._figures["owned_again"] = time.monotonic() - killed
        await asyncio.sleep(_AWAY_S)
        self._figures["puts_of_failover"] = self._cluster.totals().puts - before.puts
        self._cluster.start_again(_KILLED)

    async def _judge(self, registered: dict[str, int], load: list[Server]) -> None:
        """Whether everything is as it was.

        Raises:
            MeasurementError: mirrors differ, or a client thinks that it is not registered.
        """
        self._figures["loop_late_max"] = max(await self._each("loop_late_max_us", self._direct)) / 1e3
        now = await self._instances_now()
        self._figures["instances_lost"] = sum(now.get(name) != created for name, created in registered.items())
        hashes = [await self._mirror(at) for at in range(len(self._direct))]
        if len(set(hashes)) != 1:
            raise MeasurementError(f"the mirrors differ: {hashes}")
        told = site.standing([one.log for one in load])
        if told.registered != self._instances:
            raise MeasurementError(f"{self._instances - told.registered} registrations are not in force: {told}")

    async def _instances_now(self) -> dict[str, int]:
        """Every instance, with the revision that created it: one that was gone for a moment has another."""
        names = iter([homeport.service_name(at) for at in range(-(-self._instances // site.OF_SERVICE))])
        found: dict[str, int] = {}

        async def ask() -> None:
            for name in names:
                answer = await self._direct[0].call(Resolve(service=name))
                found.update({one.id: one.create_revision for one in answer.instances})

        await asyncio.gather(*(ask() for _ in range(_AT_ONCE)))
        return found

    async def _mirror(self, at: int) -> str:
        """The digest of a replica's mirror, once it shows all that is written."""
        client, file = self._direct[at], self._cluster.new_file(f"mirror-{at}.db")
        await client.kv.get("benchmark/ping", newest=True)
        await client.call(BackupOpen(), timeout_s=_CALL_S)
        with file.open("wb") as copy:
            while piece := (await client.call(BackupRead(offset=copy.tell()))).data:
                copy.write(piece)
        return cluster.mirror_hash(file)

    async def _sum(self, name: str, clients: list[Client] | None = None) -> float:
        return sum(await self._each(name, clients or self._direct))

    async def _each(self, name: str, clients: list[Client]) -> list[float]:
        found = []
        for client in clients:
            try:
                found.append(float((await client.call(Stats())).numbers.get(name, 0)))
            except HomeportError:
                found.append(0.0)  # busy for a moment, or only just back
        return found
