"""Parties that take locks: by a key on a lease, by the client's own locks, and by Consul's sessions over HTTP.

The first is the recipe of etcd's `concurrency.Mutex` without its queue: whoever creates the key on a living lease has
the lock, and the revision of that write is the fencing token. The second queues. The third is Consul's, whose token is
the key's lock index.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from math import inf
from typing import Any, Final

from homeport.client.coordination.election import Election
from homeport.client.coordination.lock import Lock
from homeport.client.core.errors import CasFailed, HomeportError
from homeport.client.core.messages import LeaseGrant, LeaseRevoke
from homeport.mesh.one_try import Connection, TryError
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.locks import DELAY_S, Holder
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import ObservedClient, Party, World

LEASE_S: Final = 2.0
TURN_S: Final = 6.0  # longer than a lease that is left behind
SESSION_S: Final = 10  # Consul's least
CALL_S: Final = 5.0


class LockerParty(Party):
    """One taker of locks, `locker1`; each attempt is a task of its own, as by another thread."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.client: ObservedClient | None = None

    async def live(self) -> None:
        self.client = ObservedClient(self.world, *self.world.registry_addresses, name=self.name, rng=self.rng())
        await self.client.start()

    # --- a key on a lease ---------------------------------------------------------------------------------------

    async def lock(self, step: Step) -> None:
        """Take the lock `whom`, hold it for `for_s`, and end as `what` says: release it, or say nothing more."""
        client = self.client
        assert client is not None
        try:
            sent = self.world.now()
            lease = (await client.call(LeaseGrant(ttl_s=LEASE_S), timeout_s=CALL_S)).lease
            try:
                token = await client.kv.put(f"lock/{step.whom}", self.name.encode(), cas=0, lease=lease)
            except CasFailed:
                self.world.trace.note(f"{self.name} is refused {step.whom}")
                self.world.trace.count("lock refused")
                await client.call(LeaseRevoke(lease=lease))
                return
            history = self.world.histories.get(client.store_id)
            decided = history.first_seen.get(token, self.world.now())
            holder = self._has(step.whom, token, decided, sent + LEASE_S)
            if await self._hold(client, holder, lease, step.for_s) and step.what == "release":
                holder.released = True
                await client.call(LeaseRevoke(lease=lease))
        except HomeportError as error:
            self.world.trace.note(f"{self.name} and {step.whom}: {type(error).__name__}")

    def _has(self, lock: str, token: int, decided: float, valid_until: float) -> Holder:
        self.world.trace.note(f"{self.name} has {lock} by token {token}")
        self.world.trace.count("election decided" if lock.startswith("election") else "lock taken")
        return self.world.locks.taken(self.name, lock, token, decided, valid_until)

    async def _hold(self, client: ObservedClient, holder: Holder, lease: int, for_s: float) -> bool:
        """Renew for so long; return whether it still has the lock then."""
        until = self.world.now() + for_s
        while self.world.now() < until:
            sent = self.world.now()
            try:
                ttl_s = await client.renewals.renew(lease, LEASE_S)
            except HomeportError:
                ttl_s = LEASE_S if self.world.now() < holder.valid_until else 0.0
                sent = holder.valid_until - LEASE_S
            if not ttl_s:
                self.world.trace.note(f"{self.name} has lost {holder.lock}")
                self.world.trace.count("lock lost")
                holder.released = True
                return False
            holder.valid_until = max(holder.valid_until, sent + ttl_s)
            await asyncio.sleep(LEASE_S / 3)
        return True

    # --- the client's own locks and elections -------------------------------------------------------------------

    async def fair(self, step: Step) -> None:
        """Take a lock of the client's own, in turn, and give it back after `for_s`."""
        assert self.client is not None
        await self._in_turn(self.client.lock(f"fair/{step.whom}", ttl_s=LEASE_S), f"fair-{step.whom}", step.for_s)

    async def elect(self, step: Step) -> None:
        """Stand for an election, and lead for `for_s`."""
        assert self.client is not None
        election = self.client.election(f"elect/{step.whom}", ttl_s=LEASE_S, value=self.name.encode())
        await self._in_turn(election, f"election-{step.whom}", step.for_s)

    async def _in_turn(self, lock: Lock, name: str, for_s: float) -> None:
        world = self.world
        try:
            if not await lock.acquire(timeout_s=TURN_S):
                world.trace.note(f"{self.name} does not get {name}")
                return
        except HomeportError as error:
            world.trace.note(f"{self.name} and {name}: {type(error).__name__}")
            return
        since, lost = world.now(), lock.lost

        def holds() -> bool:
            """A process that stands still cannot be told that it has lost a lock; its token is what protects then."""
            return not lost.is_set() and not world.disturbed(since, world.now(), lambda name: name == self.name)

        holder = self._has(name, lock.token, since, inf)
        holder.holds = holds
        if isinstance(lock, Election):
            await self._expect_to_lead(lock, holder)
        with suppress(TimeoutError):
            await asyncio.wait_for(lost.wait(), for_s)
        if lost.is_set():
            world.trace.note(f"{self.name} has lost {name}")
            world.trace.count("lock lost")
        holder.released = True
        with suppress(HomeportError):
            await lock.release()

    async def _expect_to_lead(self, election: Election, holder: Holder) -> None:
        """Whoever asks who leads is told of nobody else, for as long as the leader may rely on it."""
        try:
            leader = await election.leader()
        except HomeportError:
            return
        if holder.holds() and (leader is None or leader.token != holder.token):
            self.world.trace.broken(
                guarantees.LOCKS, f"{self.name} leads {holder.lock} by token {holder.token}, and is shown {leader}"
            )

    async def works(self) -> str:
        assert self.client is not None
        lock = self.client.lock(f"works/{self.name}", ttl_s=LEASE_S)
        try:
            if not await lock.acquire(timeout_s=TURN_S):
                return "gets no lock"
            await lock.release()
        except HomeportError as error:
            return f"gets no lock: {error!r}"
        return ""

    # --- a session of Consul's ----------------------------------------------------------------------------------

    async def session(self, step: Step) -> None:
        """The same by a session; `what`: release the key, destroy the session, or say nothing more."""
        registry = self.world.registries[step.count % len(self.world.registries)]
        connection = Connection(f"{registry.address}:8500")
        with suppress(TryError):
            await self._session(registry, connection, step)
        connection.close()

    async def _session(self, registry: Party, http: Connection, step: Step) -> None:
        world, lock, life = self.world, f"session-{step.whom}", registry.lives
        made = await self._ask(
            http, "PUT", "/v1/session/create", {"TTL": f"{SESSION_S}s", "LockDelay": f"{DELAY_S:g}s"}
        )
        if not isinstance(made, dict):
            return
        session, sent = made["ID"], world.now()
        if await self._ask(http, "PUT", f"/v1/kv/{lock}?acquire={session}", None) is not True:
            world.trace.note(f"{self.name} is refused {lock}")
            world.trace.count("lock-delay race" if world.locks.is_closed(lock, world.now()) else "lock refused")
            world.give_up_session(session)
            await self._ask(http, "PUT", f"/v1/session/destroy/{session}", None)
            return
        decided = world.now()
        found = await self._ask(http, "GET", f"/v1/kv/{lock}", None)
        if not isinstance(found, list) or found[0].get("Session") != session:
            return
        holder = self._has(lock, int(found[0]["LockIndex"]), decided, sent + SESSION_S)
        holder.session = session
        await asyncio.sleep(step.for_s)
        if step.what == "release":
            holder.released = True
            await self._ask(http, "PUT", f"/v1/kv/{lock}?release={session}", None)
        elif step.what == "destroy":
            holder.released = True
            began = world.now()
            world.give_up_session(session)
            if await self._ask(http, "PUT", f"/v1/session/destroy/{session}", None) is True and (
                registry.lives == life or not world.forgets  # else it never was in the one that said so
            ):
                world.locks.closed(lock, began + DELAY_S)

    async def _ask(self, http: Connection, method: str, target: str, body: dict[str, str] | None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        answer = await http.request(method, target, host="registry", timeout_s=CALL_S, body=content)
        if answer.status != 200:
            self.world.trace.note(f"{self.name} {method} {target.partition('?')[0]}: {answer.status}")
            return None
        return json.loads(answer.body)
