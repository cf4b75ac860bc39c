"""Three replicas over three members of etcd, real processes all, while any of them dies, stops or is cut off.

Under load: users of three instances through sidecars, and clients that read and write keys at all replicas. Nobody gets
an error, no instance is ever seen to be gone, and what the clients saw and were told is linearizable: so no
acknowledged write is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from homeport.client import Client
from homeport.client.core.errors import Busy, CasFailed, HomeportError, ReadOnly
from homeport.client.core.messages import Stats
from homeport.mesh.demo.processes import Process
from homeport.mesh.simulation.linearizability import Kind, Operation, State, check
from tests.crash.workload import of_long
from tests.lincheck.relay import Relay
from tests.registry.store.etcd_members import Etcd
from tests.resilience.site import SEED, SERVICE, Site

pytest.importorskip("aetcd", reason="aetcd is not installed (make peers)")

INSTANCES = 3
WRITERS = 6
KEYS = ("a", "b", "c")
THINK_S = 0.3  # of a writer: some hundred operations a key, which the checker takes with a few unknown outcomes
AWAY_S = 14.0  # longer than a membership and a TTL
SETTLED_S = 40.0

Fault = Callable[["Cluster"], Awaitable[None]]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Etcd]]:
    with Etcd.members(tmp_path_factory.mktemp("etcd"), 3) as started:
        yield started


class Cluster(Site):
    """A site whose registry is three replicas, each with its own way to every member."""

    def __init__(self, directory: Path, stack: AsyncExitStack, members: list[Etcd]) -> None:
        super().__init__(directory, stack)
        self.etcd = members
        self.addresses = [self.rpc, *(f"127.0.0.1:{self.ports.take()}" for _ in range(2))]
        self.rpc = ",".join(self.addresses)
        self._client = Client(*self.addresses, name="the tests")
        self.ways: list[list[Relay]] = []
        self.replicas: list[Process] = []
        self._prefix = f"faults-{os.urandom(6).hex()}"

    @classmethod
    @asynccontextmanager
    async def over(cls, directory: Path, members: list[Etcd]) -> AsyncIterator[Cluster]:
        async with AsyncExitStack() as stack:
            cluster = cls(directory, stack, members)
            for _ in cluster.addresses:
                cluster.ways.append([await stack.enter_async_context(Relay(one.endpoint)) for one in members])
            for at in range(3):
                cluster.replicas.append(await cluster.start_replica(at))
            for address in cluster.addresses:
                await cluster.listens(address)
            await stack.enter_async_context(cluster._client)
            yield cluster

    async def start_replica(self, at: int) -> Process:
        store = f"etcd://{','.join(way.address for way in self.ways[at])}/{self._prefix}"
        fronts = ["--http", "off", "--dns", "off", "--rpc", self.addresses[at]]
        return await self.spawn(f"replica-{at}", ["serve", *fronts, "--node", "n", "--store", store])

    async def whole(self) -> None:
        """Return when all three replicas live, know each other, can write and show the same."""
        async with asyncio.timeout(SETTLED_S), AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(address)) for address in self.addresses]
            while True:
                try:
                    await clients[0].kv.put("whole", b"")
                    numbers = [(await client.call(Stats())).numbers for client in clients]
                except HomeportError:
                    numbers = []
                if numbers and all(one["replicas"] == 3 and not one["read_only"] for one in numbers):
                    return
                await asyncio.sleep(0.2)

    def leader(self) -> tuple[str, list[int]]:
        """The endpoint of etcd's leader, and the ids of all others."""
        endpoints = ",".join(one.endpoint for one in self.etcd)
        status = ["etcdctl", "--endpoints", endpoints, "endpoint", "status", "-w", "json"]
        env = {**os.environ, "ETCDCTL_API": "3"}
        found = json.loads(subprocess.run(status, check=True, capture_output=True, env=env).stdout)
        leader = found[0]["Status"]["leader"]
        ids = {one["Status"]["header"]["member_id"]: one["Endpoint"] for one in found}
        return ids[leader], [id_ for id_ in ids if id_ != leader]

    def move_leader(self) -> None:
        at, others = self.leader()
        command = ["etcdctl", "--endpoints", at, "move-leader", f"{self.rng.choice(others):x}"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})


class Writers:
    """Clients that read and write keys, and write down what they saw."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._clock = count(1)
        self._values = count(1)
        self.history: list[Operation] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._run(number, stop))
            try:
                yield
            finally:
                stop.set()

    async def _run(self, number: int, stop: asyncio.Event) -> None:
        rng = random.Random(f"{SEED}/{number}")
        turn = number % 3
        addresses = [*self._cluster.addresses[turn:], *self._cluster.addresses[:turn]]
        known: dict[str, tuple[State, int]] = {}
        async with Client(*addresses, rng=rng) as client:
            while not stop.is_set():
                await self._operate(client, number, rng, known)
                await asyncio.sleep(rng.uniform(0, 2 * THINK_S))

    async def _operate(
        self, client: Client, number: int, rng: random.Random, known: dict[str, tuple[State, int]]
    ) -> None:
        key = rng.choice(KEYS)
        kind: Kind = rng.choice(("get", "get", "put", "cas", "cas"))
        value = b"%d" % next(self._values)
        expected, revision = known.get(key, (None, 0))
        operation = Operation(number, kind, key.encode(), next(self._clock), None, value, expected)
        result: bytes | bool | None = None
        try:
            if kind == "get":
                found = await client.kv.get(key, newest=True)
                known[key] = (found.value, found.mod_revision) if found else (None, 0)
                result = known[key][0]
            elif kind == "put":
                known[key] = (value, await client.kv.put(key, value))
            else:
                known[key] = (value, await client.kv.put(key, value, cas=revision))
                result = True
        except CasFailed:
            result = False
        except (ReadOnly, Busy):
            return  # nothing was written, and that was said
        except HomeportError:
            if kind != "get":
                self.history.append(operation)  # nobody knows
            return
        self.history.append(replace(operation, returned=next(self._clock), result=result))


async def survives(directory: Path, members: list[Etcd], fault: Fault) -> None:
    """Put a cluster under load, do that to it, let it heal, and judge what everyone saw."""
    async with Cluster.over(directory, members) as cluster:
        await cluster.fill(INSTANCES)
        await cluster.start_edge()
        watching = cluster._client.subscribe(SERVICE)
        assert await watching.wait_known(5.0)
        seen: list[int] = []
        watching.listen(lambda _event: seen.append(len(watching.instances)))
        load, writers = cluster.load(), Writers(cluster)
        async with load.running(4), writers.running():
            await load.more(100)
            before = len(writers.history)
            await fault(cluster)
            await cluster.whole()
            await load.more(100)
            assert len(writers.history) > before + 20, "they hardly wrote"
        assert load.judge() == []
        assert min(seen, default=INSTANCES) >= INSTANCES, f"a live instance was gone for a moment: {seen}"
        assert len(watching.instances) == INSTANCES
        async with Client(*cluster.addresses) as client:
            for key in KEYS:
                found = await client.kv.get(key, newest=True)
                at = max(one.returned or one.called for one in writers.history)
                value = found.value if found else None
                writers.history.append(Operation(99, "get", key.encode(), at + 1, at + 2, result=value))
        violation = check(writers.history)
        assert violation is None, str(violation)
        unknown = sum(one.returned is None for one in writers.history)
        print(f"{len(writers.history)} operations on keys, {unknown} of unknown outcome")


async def kill_a_replica(cluster: Cluster) -> None:
    at = cluster.rng.randrange(3)
    await cluster.replicas[at].kill()
    await asyncio.sleep(AWAY_S)  # the others adopt what it owned
    cluster.replicas[at] = await cluster.start_replica(at)


async def stop_a_replica(cluster: Cluster) -> None:
    replica = cluster.rng.choice(cluster.replicas)
    replica.signal(signal.SIGSTOP)
    await asyncio.sleep(AWAY_S)
    replica.signal(signal.SIGCONT)


async def cut_a_replica_off(cluster: Cluster) -> None:
    ways = cluster.rng.choice(cluster.ways)
    for way in ways:
        way.silence()
    await asyncio.sleep(AWAY_S)
    for way in ways:
        way.heal()


async def replace_all_replicas(cluster: Cluster) -> None:
    """A rolling upgrade: each leaves in order, and another comes in its place."""
    for at in range(3):
        cluster.replicas[at].signal(signal.SIGTERM)
        async with asyncio.timeout(SETTLED_S):
            await cluster.replicas[at].child.wait()
        cluster.replicas[at] = await cluster.start_replica(at)
        await cluster.listens(cluster.addresses[at])
        await cluster.whole()


def member(cluster: Cluster, *, leads: bool) -> Etcd:
    """The member that leads, or one that follows: replicas that are at that one lose it without an election."""
    at, _ = cluster.leader()
    return cluster.rng.choice([one for one in cluster.etcd if (one.endpoint == at) == leads])


async def kill_a_member(cluster: Cluster, *, leads: bool) -> None:
    killed = member(cluster, leads=leads)
    killed.kill()
    await asyncio.sleep(AWAY_S)
    killed.start()
    await asyncio.to_thread(killed.wait_ready)


async def stop_a_member(cluster: Cluster, *, leads: bool) -> None:
    stopped = member(cluster, leads=leads)
    stopped.pause()
    await asyncio.sleep(AWAY_S)
    stopped.resume()


async def kill_the_leader(cluster: Cluster) -> None:
    await kill_a_member(cluster, leads=True)


async def stop_the_leader(cluster: Cluster) -> None:
    await stop_a_member(cluster, leads=True)


async def kill_a_follower(cluster: Cluster) -> None:
    await kill_a_member(cluster, leads=False)


async def stop_a_follower(cluster: Cluster) -> None:
    await stop_a_member(cluster, leads=False)


async def stop_one_follower_after_the_other(cluster: Cluster) -> None:
    """Each for less than it takes to be given up, so that every replica meets a member that stands still."""
    at, _ = cluster.leader()
    for follower in [one for one in cluster.etcd if one.endpoint != at]:
        follower.pause()
        await asyncio.sleep(AWAY_S / 2)
        follower.resume()
        await cluster.whole()


async def move_the_leader(cluster: Cluster) -> None:
    for _ in range(of_long(10, 4)):
        await asyncio.to_thread(cluster.move_leader)
        await asyncio.sleep(3.0)


FAULTS: list[Fault] = [  # the first ones are tried in CI, too
    stop_a_replica,
    kill_the_leader,
    kill_a_replica,
    stop_the_leader,
    replace_all_replicas,
    move_the_leader,
    kill_a_follower,
    stop_a_follower,
    stop_one_follower_after_the_other,
]


@pytest.mark.timeout(180)
async def test_nobody_notices_that_a_replica_is_cut_off_from_etcd(tmp_path: Path, members: list[Etcd]) -> None:
    await survives(tmp_path, members, cut_a_replica_off)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS[: of_long(len(FAULTS), 2)])
async def test_nobody_notices(tmp_path: Path, members: list[Etcd], fault: Fault) -> None:
    of_replicas = (stop_a_replica, kill_a_replica, replace_all_replicas)
    if fault not in of_replicas and shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed (Debian's etcd-client)")
    await survives(tmp_path, members, fault)
