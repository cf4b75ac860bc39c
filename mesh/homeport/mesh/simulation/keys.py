"""Parties that write, read and watch keys, and what each saw, for the checkers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final, cast

from homeport.client.core.errors import CasFailed, ConnectionLost, HomeportError, OutcomeUnknown
from homeport.client.core.model import Lost
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.history import Following
from homeport.mesh.simulation.linearizability import Kind, Operation, State
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import ObservedClient, Party, World

PREFIX: Final = "w/"
CALL_S: Final = 8.0
AGAIN_S: Final = 0.5
LARGE_BYTES: Final = 6_000  # some hundreds of these are more than waits for one connection before it is held back


class WriterParty(Party):
    """One client that reads and writes keys, `writer1`."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.client: ObservedClient | None = None
        self._known: dict[bytes, tuple[State, int]] = {}  # what it last saw of a key, and its revision
        self._seen: dict[bytes, tuple[str, int]] = {}  # the newest version it was shown of a key, and of which history

    async def live(self) -> None:
        self.client = ObservedClient(self.world, *self.world.registry_addresses, name=self.name, rng=self.rng())
        await self.client.start()

    async def write_many(self, step: Step) -> None:
        """Write so many keys of one prefix at once: a storm for whoever watches it."""
        await asyncio.gather(*(self._operate("put", f"{step.what}{at}".encode()) for at in range(step.count)))

    async def operate(self, step: Step) -> None:
        """One operation: `what` is its kind and its key."""
        kind, key = step.what.split()
        await self._operate(cast("Kind", kind), key.encode())

    async def _operate(self, kind: Kind, key: bytes) -> None:
        world = self.world
        if self.client is None:
            return
        number = world.moment()
        value = b"%d" % number  # never written twice, so that a value stands for its revision
        if key.startswith(b"w/large"):
            value = value.ljust(LARGE_BYTES, b".")
        expected, revision = self._known.get(key, (None, 0))
        operation = Operation(int(self.name[6:] or 0), kind, key, number, None, value, expected)
        store_id = self.client.store_id
        try:
            result = await self._ask(kind, key, value, revision)
        except (ConnectionLost, OutcomeUnknown) as error:
            world.operations.append(operation)
            if kind != "get":
                world.trace.count("write of unknown outcome")
            world.trace.note(f"{self.name} {kind} {key!r}: {type(error).__name__}")
            return
        except HomeportError as error:  # nothing was written
            world.trace.note(f"{self.name} {kind} {key!r}: {type(error).__name__}")
            return
        world.operations.append(replace(operation, returned=world.moment(), result=result))
        if store_id != self.client.store_id:
            self._known.pop(key, None)

    async def _ask(self, kind: Kind, key: bytes, value: bytes, revision: int) -> bytes | bool | None:
        assert self.client is not None
        kv, world = self.client.kv, self.world
        async with asyncio.timeout(CALL_S * 4):
            match kind:
                case "get":
                    found = await kv.get(key, newest=world.scenario.store == "etcd")
                    self._known[key] = (found.value, found.mod_revision) if found else (None, 0)
                    world.trace.note(f"{self.name} get {key!r}: {found.value if found else None!r}")
                    return found.value if found else None
                case "put":
                    written = await kv.put(key, value)
                    self._acknowledged(key, value, written)
                    return None
                case "delete":
                    count = await kv.delete(key)
                    self._known[key] = (None, 0)
                    world.trace.note(f"{self.name} delete {key!r}: {count}")
                    return count > 0
                case "cas":
                    try:
                        written = await kv.put(key, value, cas=revision)
                    except CasFailed:
                        world.trace.count("read that saw a conflict")
                        world.trace.note(f"{self.name} cas {key!r}: refused")
                        self._known.pop(key, None)
                        return False
                    self._acknowledged(key, value, written)
                    return True

    def _acknowledged(self, key: bytes, value: bytes, revision: int) -> None:
        assert self.client is not None
        self._known[key] = (value, revision)
        self.world.trace.note(f"{self.name} wrote {key!r} at {revision}")
        if self.client.connected:
            self.world.histories.acknowledged(self.client.store_id, revision, b"k/" + key, value)

    async def works(self) -> str:
        assert self.client is not None
        try:
            await self.client.kv.put(f"works/{self.name}", b"1")
        except HomeportError as error:
            return f"cannot write: {error!r}"
        return ""

    async def glance(self, step: Step) -> None:
        """Read a key as this client's own replica has it: maybe a moment old, never older than what it saw before."""
        assert self.client is not None
        key = step.what.encode()
        try:
            found = await self.client.kv.get(key)
        except HomeportError as error:
            self.world.trace.note(f"{self.name} glance {key!r}: {type(error).__name__}")
            return
        store_id, seen = self._seen.get(key, ("", 0))
        if found is None:
            known = self.world.histories.get(self.client.store_id)
            if store_id == self.client.store_id and not known.was_absent(b"k/" + key, seen):
                self.world.trace.broken(
                    guarantees.FORWARD, f"{self.name} saw {key!r} at revision {seen}, and then that there is none"
                )
            return
        if store_id == self.client.store_id and found.mod_revision < seen:
            self.world.trace.broken(
                guarantees.FORWARD, f"{self.name} saw {key!r} at revision {seen}, and then at {found.mod_revision}"
            )
        self._seen[key] = (
            self.client.store_id,
            max(found.mod_revision, seen if store_id == self.client.store_id else 0),
        )


class WatcherParty(Party):
    """One client that watches a prefix and holds what it gets against the history, `watcher1`."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.client: ObservedClient | None = None
        self.following = Following(world.trace, world.histories, name, b"k/" + PREFIX.encode())
        self.slow = False

    async def live(self) -> None:
        client = self.client = ObservedClient(
            self.world, *self.world.registry_addresses, name=self.name, rng=self.rng()
        )
        await client.start()
        while True:
            try:
                await self._watch(client)
            except HomeportError as error:
                self.world.trace.note(f"{self.name} starts over: {type(error).__name__}")
                await asyncio.sleep(AGAIN_S)

    async def _watch(self, client: ObservedClient) -> None:
        known = await client.kv.snapshot(PREFIX)
        self.following.starts(known.store_id, known.revision)
        changes = client.kv.watch(PREFIX, prefix=True, start_revision=known.revision + 1, store_id=known.store_id)
        epoch = client.link_epoch
        async for change in changes:
            if client.link_epoch != epoch:
                epoch = client.link_epoch
                self.world.trace.count("watch resumed")
            if isinstance(change, Lost):
                self.world.trace.note(f"{self.name} lost {change.from_revision} to {change.to_revision}")
                if client.store_id != self.following.store_id:
                    self.world.trace.count("watch of another history")
                    self.following.starts(client.store_id, change.to_revision)
                else:
                    self.world.trace.count("compaction during resume")
                    self.following.lost(change.from_revision, change.to_revision)
            else:
                self.world.trace.note(f"{self.name} got {change.revision}")
                self.following.event(change.revision, [(b"k/" + event.key, event.value) for event in change.events])
