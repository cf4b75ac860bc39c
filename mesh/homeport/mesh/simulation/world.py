"""The world of one run: its loop, its parties by name, what disturbs them, and everything that is written down.

Every party has a host of its own in the memory network, and an own generator for each of its lives, so that leaving a
step out of a scenario changes as little as possible of the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from homeport.client import Client
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import Deregister, LeaseGrant, LeaseRevoke, Register, Renew, Request, WaitApplied
from homeport.mesh.simulation.etcd import ModelEtcd
from homeport.mesh.simulation.history import Histories
from homeport.mesh.simulation.leases import Leases
from homeport.mesh.simulation.linearizability import Operation
from homeport.mesh.simulation.locks import Locks
from homeport.mesh.simulation.requests import Requests
from homeport.mesh.simulation.scenario import Scenario
from homeport.mesh.simulation.trace import Trace
from homeport.mesh.testing.virtual import VirtualLoop
from homeport.registry.core import keys

if TYPE_CHECKING:
    from homeport.mesh.simulation.registries import RegistryParty

T = TypeVar("T")

DISK_S: Final = 3.0  # after a disk's failure, until a store writes again and has caught up with what was due


@dataclass
class Disturbance:
    """Something that is wrong with some parties for a time; `end` is infinite until it is known."""

    kind: str
    start: float
    end: float
    parties: tuple[str, ...]


class Party:
    """Somebody with a host of its own.

    Args:
        address: of its host.
    """

    def __init__(self, world: World, name: str, address: str) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.lives = 0
        self.runs = False

    def rng(self) -> random.Random:
        """A generator for what follows in this life."""
        return random.Random(f"{self.world.scenario.seed}/{self.name}/{self.lives}")

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run something on this party's host, until it is done or the host is dead."""
        with self.world.network.host(self.address):
            task: asyncio.Task[T] = self.world.loop.create_task(work, name=f"{self.name} {name}")
        self.world.under_way[task] = self
        return task

    def live(self) -> Coroutine[Any, Any, None]:
        """Everything that it does in one life."""
        raise NotImplementedError

    def follows(self, service: str) -> bool:
        """Whether it balances over a service, as a registry tells it right now."""
        return False

    def registers(self) -> dict[str, set[str]]:
        """By service, the instances that are to be available by this party, once all faults have ended."""
        return {}

    async def works(self) -> str:
        """Do once what it is there for; return what does not work, which is said once all faults have ended."""
        return ""

    def start(self) -> None:
        """Begin a life."""
        if not self.runs:
            self.lives += 1
            self.runs = True
            self.life = self.spawn(self.live(), f"life {self.lives}")
            del self.world.under_way[self.life]  # nobody waits for its end

    def crash(self) -> None:
        """End it as by SIGKILL."""
        if self.runs:
            self.runs = False
            self.world.network.crash(self.address)
            for disturbance in self.world.disturbances:  # it is dead now, and stands still no more
                if disturbance.kind == "pause" and disturbance.parties[0] == self.name:
                    disturbance.end = min(disturbance.end, self.world.now())


class ObservedClient(Client):
    """The real client, with what it asks of leases and what it is answered written down."""

    def __init__(self, world: World, *addresses: str, name: str, rng: random.Random) -> None:
        super().__init__(*addresses, name=name, rng=rng)
        self._world = world
        self._name = name

    async def call(self, request: Request[Any], *, timeout_s: float = CALL_S) -> Any:
        leases, sent = self._world.leases, self._world.now()
        before = 0
        if isinstance(request, Deregister | LeaseRevoke):
            leases.given_up(request.lease)
        elif isinstance(request, Register):
            before = self._world.lease_of.get(request.instance.id, 0)
            leases.given_up(before)
        answer = await super().call(request, timeout_s=timeout_s)
        if isinstance(request, Deregister | LeaseRevoke):
            leases.expect_gone(request.lease)
        elif isinstance(request, Renew):
            for lease, ttl_s in zip(request.leases, answer.ttls_s, strict=True):
                if ttl_s:
                    leases.confirmed(lease, ttl_s, sent)
        elif isinstance(request, Register):
            self._world.lease_of[request.instance.id] = answer.lease
            if answer.lease == before:
                leases.kept(before)
            leases.confirmed(answer.lease, answer.ttl_s, sent)
        elif isinstance(request, WaitApplied) and answer.applied:
            self._world.requests.acknowledged(self._name, self._world.now(), self._world.followers(request.service))
        elif isinstance(request, LeaseGrant):
            leases.confirmed(answer.lease, answer.ttl_s, sent)
        return answer


class World:
    """One run.

    Args:
        directory: an empty one, for the disks.
    """

    def __init__(self, scenario: Scenario, loop: VirtualLoop, directory: Path, trace: Trace) -> None:
        self.scenario = scenario
        self.loop = loop
        self.network = loop.network
        self.directory = directory
        self.started = loop.time()
        self.rng = random.Random(f"{scenario.seed}/world")
        self.trace = trace
        self.histories = Histories(self.trace)
        self.leases = Leases(self.trace, self.stalled_s, self.unwritable)
        self.locks = Locks(self.trace)
        self.requests = Requests(self.trace, self.now, self.well)
        self.operations: list[Operation] = []
        self.lease_of: dict[str, int] = {}  # by instance, the lease that it was last told
        self.etcd = ModelEtcd()
        self.registries: list[RegistryParty] = []
        self.parties: dict[str, Party] = {}
        self.under_way: dict[asyncio.Task[Any], Party] = {}  # what has to come to an end
        self.disturbances: list[Disturbance] = []
        self.tasks_counted_at = 0  # the loop's steps then
        self.forgets = False  # a registry without a disk has started anew: other histories, other promises
        self._addresses = iter(range(1, 1 << 16))
        self._moments = iter(range(1, 1 << 60))

    def now(self) -> float:
        """Virtual seconds after the start."""
        return self.loop.time() - self.started

    def moment(self) -> int:
        """The next moment of the clock that orders calls and answers."""
        return next(self._moments)

    def address(self) -> str:
        """A host's address that nobody has."""
        number = next(self._addresses)
        return f"10.0.{number >> 8}.{number & 255}"

    @property
    def registry_addresses(self) -> list[str]:
        return [f"{registry.address}:8300" for registry in self.registries]

    def running(self, kind: type[Party] | None = None) -> list[Party]:
        return [one for one in self.parties.values() if one.runs and (kind is None or isinstance(one, kind))]

    def wanted(self) -> dict[str, set[str]]:
        """By service, all instances that are to be available once all faults have ended."""
        found: dict[str, set[str]] = {}
        for party in self.parties.values():
            for service, instances in party.registers().items():
                found.setdefault(service, set()).update(instances)
        return dict(sorted(found.items()))

    def give_up_session(self, session: str) -> None:
        """Somebody asks for the end of one of Consul's sessions."""
        for history in self.histories.of.values():
            kv = history.state.get(keys.session(session))
            if kv is not None:
                self.leases.given_up(kv.lease)

    def followers(self, service: str) -> frozenset[str]:
        """Who follows a service over a link that stands."""
        return frozenset(one.name for one in self.parties.values() if one.runs and one.follows(service))

    # --- what is wrong with whom --------------------------------------------------------------------------------

    def disturb(self, kind: str, *parties: str, for_s: float = inf) -> Disturbance:
        """Write down that something is wrong."""
        now = self.now()
        disturbance = Disturbance(kind, now, now + for_s, parties)
        self.disturbances.append(disturbance)
        return disturbance

    @contextlib.contextmanager
    def disturbing(self, kind: str, *parties: str) -> Iterator[None]:
        """Write down that something is wrong while in the context."""
        disturbance = self.disturb(kind, *parties)
        try:
            yield
        finally:
            disturbance.end = min(disturbance.end, self.now())

    def disturbed(self, since: float, until: float, names: Callable[[str], bool]) -> bool:
        """Whether anything was wrong with any of these at a time."""
        return any(
            one.start <= until and one.end >= since and any(names(party) for party in one.parties)
            for one in self.disturbances
        )

    def well(self, since: float, until: float, *parties: str) -> bool:
        """Whether nothing was wrong with these, nor with a registry, between two times."""
        registries = [registry.name for registry in self.registries]
        return not self.disturbed(since, until, lambda name: name in parties or name in registries)

    def stalled_s(self, since: float, until: float) -> float:
        """How long the only registry stood still between two times; 0.0 where there are several."""
        if len(self.registries) != 1:
            return 0.0
        return sum(
            max(0.0, min(one.end, until) - max(one.start, since))
            for one in self.disturbances
            if one.kind == "pause" and one.parties[0] == self.registries[0].name
        )

    def unwritable(self, since: float, until: float) -> bool:
        """Whether a lease may end late, because something was in the way of writing it."""
        if self.scenario.store == "etcd":
            return True
        return any(
            one.start <= until and one.end + DISK_S >= since and one.kind in ("disk", "down")
            for one in self.disturbances
        )
