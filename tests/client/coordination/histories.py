"""Histories of holders under faults: clients that take turns while a seed decides what breaks, and what must hold.

The guarantees, each named where it is checked:

* whoever holds knows of the loss before the registry ends its lease (checked in the registry, at that moment);
* no more hold at one time, each by its own clock, than there are permits;
* tokens grow from holder to holder, and no two holdings have the same;
* what is protected takes no write with a smaller token than it has seen;
* when the faults stop, everyone gets its turn.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from homeport.client import Client, Holding, HomeportError, Session
from homeport.client.coordination.lock import Lock
from homeport.client.coordination.queue import Claim
from homeport.client.coordination.semaphore import Semaphore
from homeport.mesh.testing.network import LATENCY_S
from homeport.mesh.testing.virtual import VirtualTask
from homeport.registry.core.txn import Change
from tests.client.coordination.sites import REGISTRY, Site, host

TTL_S = 3.0
FAULTS_S = 60.0  # of faults in a history
PEACE_S = 60.0  # afterwards, for everyone to get a turn

Make = Callable[[Client, Session | None], Holding]


class Violation(AssertionError):
    """A guarantee was broken; the message says which, when, and what came before."""


class Resource:
    """What is protected: it remembers the largest token, and refuses smaller ones."""

    def __init__(self) -> None:
        self.largest = 0
        self.refused = 0
        self.written = 0

    def write(self, token: int) -> None:
        if token < self.largest:
            self.refused += 1
            return
        self.written += 1
        self.largest = token


class Held:
    """One holding from its acquisition to its end."""

    def __init__(self, who: int, holding: Holding) -> None:
        self.who = who
        self.holding = holding
        self.lease = holding._lease
        self.token = holding.token
        self.key = owner_key(holding)
        self.over = False  # released, by its holder

    @property
    def valid(self) -> bool:
        """Whether its holder would say that it holds, if it was asked now."""
        return not self.over and self.lease is not None and self.lease.valid


def owner_key(holding: Holding) -> bytes:
    """The key that stands for a holding, while it is held."""
    match holding:
        case Semaphore():
            return holding._permit
        case Claim():
            return holding._claims + holding._number
        case Lock():
            assert holding._place is not None
            return holding._place.key
    raise AssertionError(f"{holding} has no key")


class History:
    """One run; everything in it is decided by the seed of the loop.

    Args:
        make: what a client holds.
        permits: how many may at one time.
        sessions: whether each client holds on one session for as long as that lives.
    """

    def __init__(self, site: Site, make: Make, *, permits: int = 1, clients: int = 4, sessions: bool = False) -> None:
        self.site = site
        self.rng = random.Random(site.loop.rng.getrandbits(64))
        self.resources: dict[bytes, Resource] = {}
        self.acquired = 0
        self.lost = 0
        self._make = make
        self._permits = permits
        self._sessions = sessions
        self._numbers = range(clients)
        self._held: dict[bytes, Held] = {}  # by owner key, from its acquisition until its key is gone
        self._tokens: set[int] = set()
        self._newest = 0
        self._log: list[str] = []
        self._turns: dict[int, int] = dict.fromkeys(self._numbers, 0)
        self._restarting = asyncio.Lock()
        self._violation: Violation | None = None
        self._holders: list[VirtualTask[None]] = []

    def note(self, what: str) -> None:
        self._log.append(f"{self.site.loop.time() - self._began:8.3f} {what}")

    def broken(self, guarantee: str) -> None:
        """Remember the first guarantee that was broken; `run` raises it."""
        if self._violation is None:
            before = "\n".join(self._log[-40:])
            self._violation = Violation(f"{guarantee}, at {self.site.loop.time() - self._began:.3f} s, after\n{before}")

    # --- the holders --------------------------------------------------------------------------------------------

    async def _holder(self, who: int, client: Client) -> None:
        """Acquire, write now and then, give back, again and again; sometimes it loses patience."""
        rng = random.Random(self.rng.getrandbits(64))
        session: Session | None = None
        while True:
            try:
                if self._sessions and (session is None or not session.valid):
                    session = client.session(TTL_S)
                    await session.start()
                holding = self._make(client, session)
                patience_s = rng.choice((None, None, rng.uniform(0.0, 8.0)))
                if rng.random() < 0.2:
                    acquired = await self._cancelled(holding, rng.uniform(0.0, 2.0))
                else:
                    acquired = await holding.acquire(timeout_s=patience_s)
                if acquired:
                    await self._hold(who, holding, rng)
            except HomeportError as error:
                self.note(f"{who}: {type(error).__name__}: {error}")
            await asyncio.sleep(rng.uniform(0.0, 1.0))

    async def _cancelled(self, holding: Holding, after_s: float) -> bool:
        acquiring = asyncio.ensure_future(holding.acquire())
        try:
            await asyncio.wait((acquiring,), timeout=after_s)
        finally:
            acquiring.cancel()
            await asyncio.gather(acquiring, return_exceptions=True)
        return not acquiring.cancelled() and acquiring.exception() is None and acquiring.result()

    async def _hold(self, who: int, holding: Holding, rng: random.Random) -> None:
        held = Held(who, holding)
        self._began_to_hold(held)
        try:
            for _ in range(rng.choice((0, 1, 2, 8))):
                await asyncio.sleep(rng.uniform(0.0, 2.0))
                # Half of the writers look before they write, as all should; a token must protect from the others too.
                if rng.random() < 0.5 or holding.held:
                    self._write(held)
        finally:
            held.over = True
            self.lost += holding.lost.is_set()
            self.note(f"{who}: gives back {held.token}")
            if isinstance(holding, Claim) and rng.random() < 0.7:
                await holding.done()
            else:
                await holding.release()

    def _began_to_hold(self, held: Held) -> None:
        self.acquired += 1
        self._turns[held.who] += 1
        self.note(f"{held.who}: holds {held.token} until {held.lease.deadline - self._began:.3f}" if held.lease else "")
        if held.token in self._tokens:
            self.broken(f"token {held.token} was given twice")
        if self._permits == 1 and held.token <= self._newest and not isinstance(held.holding, Claim):
            self.broken(f"token {held.token} came after {self._newest}")
        self._tokens.add(held.token)
        self._newest = max(self._newest, held.token)
        self._held[held.key] = held
        rivals = [each for each in self._held.values() if each.valid and self._rival(each, held)]
        if len(rivals) > self._permits:
            names = ", ".join(f"{each.who} with {each.token}" for each in rivals)
            self.broken(f"{len(rivals)} hold at one time: {names}")

    def _rival(self, one: Held, other: Held) -> bool:
        return one.key == other.key if isinstance(other.holding, Claim) else True

    def _write(self, held: Held) -> None:
        what = held.key if isinstance(held.holding, Claim) else b""
        resource = self.resources.setdefault(what, Resource())
        if held.valid and held.token < resource.largest and self._permits == 1:
            self.broken(f"{held.who} holds with {held.token}, and {resource.largest} has written already")
        resource.write(held.token)

    def _revision(self, _revision: int, changes: tuple[Change, ...]) -> None:
        """The registry's view: a key is gone."""
        now = self.site.loop.time()
        for change in changes:
            held = self._held.get(change.key.removeprefix(b"k/")) if change.kv is None else None
            if held is None or change.prev is None or held.token != change.prev.create_revision:
                continue
            del self._held[held.key]
            self.note(f"registry: {held.token} of {held.who} is gone")
            if not held.over and held.lease is not None and held.lease.deadline > now:
                late_s = held.lease.deadline - now
                self.broken(f"{held.who} would have believed in {held.token} for {late_s:.3f} s too long")

    # --- the faults ---------------------------------------------------------------------------------------------

    async def _faults(self) -> None:
        until = self.site.loop.time() + FAULTS_S
        while self.site.loop.time() < until:
            await asyncio.sleep(self.rng.uniform(0.2, 4.0))
            await self._fault()

    async def _fault(self) -> None:
        network, who = self.site.network, self.rng.choice(self._numbers)
        kind = self.rng.choice(
            ("reset", "cut", "partition", "half", "pause", "slow", "fade", "fade", "crash", "restart", "pause registry")
        )
        lasts_s = self.rng.uniform(0.1, 2.5 * TTL_S)
        self.note(f"fault: {kind} of {who} for {lasts_s:.3f} s")
        match kind:
            case "reset":
                network.reset_all()
            case "cut":
                network.cut(REGISTRY, host(who))
                await asyncio.sleep(lasts_s)
                network.heal(REGISTRY, host(who))
            case "partition":
                network.partition(REGISTRY, host(who))
                await asyncio.sleep(lasts_s)
                network.heal(REGISTRY, host(who))
            case "half":  # requests arrive, and answers do not
                network.partition(REGISTRY, host(who), one_way=True)
                await asyncio.sleep(lasts_s)
                network.heal(REGISTRY, host(who))
            case "pause":
                network.stall(host(who))
                await asyncio.sleep(lasts_s)
                network.heal(host(who))
            case "slow":  # answers take their time, up to nearly a TTL
                slow_s = self.rng.uniform(0.1, 0.9 * TTL_S)
                network.link(REGISTRY, host(who)).latency_s = (slow_s / 2, slow_s)
                await asyncio.sleep(2 * lasts_s)
                network.link(REGISTRY, host(who)).latency_s = LATENCY_S
            case "fade":  # first the answers take their time, and then no request arrives any more
                slow_s = self.rng.uniform(0.3 * TTL_S, 0.9 * TTL_S)
                network.link(REGISTRY, host(who)).latency_s = (slow_s, slow_s)
                await asyncio.sleep(self.rng.uniform(0.5, 2 * TTL_S))
                network.partition(host(who), REGISTRY, one_way=True)
                await asyncio.sleep(2 * TTL_S)
                network.link(REGISTRY, host(who)).latency_s = LATENCY_S
                network.heal(REGISTRY, host(who))
            case "crash":
                network.crash(host(who))
                self.site.clients.pop(host(who))
                await self._begin(who)
            case "restart":
                async with self._restarting:
                    await self.site.registry.close()
                    await asyncio.sleep(self.rng.uniform(0.0, 0.6 * TTL_S))
                    await self._start_registry()
            case "pause registry":
                network.stall(REGISTRY)
                await asyncio.sleep(lasts_s)
                network.heal(REGISTRY)

    async def _start_registry(self) -> None:
        await self.site.start_registry()
        self.site.registry.store.listen(self._revision)

    async def _begin(self, who: int) -> None:
        client = await self.site.client(who)
        self._holders.append(self.site.run(who, self._holder(who, client)))

    async def run(self) -> None:
        """Everyone takes turns, things break, and in the end all is well.

        Raises:
            Violation: a guarantee was broken.
        """
        self._began = self.site.loop.time()
        self.site.registry.store.listen(self._revision)
        for who in self._numbers:
            await self._begin(who)
        await asyncio.gather(self._faults(), self._faults())  # two at one time: a slow answer, and then a cut
        self.note("faults end")
        self._turns = dict.fromkeys(self._numbers, 0)
        deadline = self.site.loop.time() + PEACE_S
        while self._violation is None and not all(self._turns.values()):
            if self.site.loop.time() > deadline:
                waiting = [who for who, turns in self._turns.items() if not turns]
                self.broken(f"{waiting} got no turn within {PEACE_S:g} s without faults")
            await asyncio.sleep(0.5)
        for task in self._holders:
            task.cancel()
        await asyncio.wait([task for task in self._holders if task.host is None or not task.host.crashed])
        if self._violation is not None:
            raise self._violation
