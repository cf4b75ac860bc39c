"""The agent that Consul's clients believe they talk to: this registry under one node name, and what that takes.

Everything here follows the store revision by revision and could be computed anew from it at any moment: which CheckID
means which check, which index a name has, there or not, who waits for which service.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.entries import Entry, LastChanges
from homeport.registry.core.indexes import Indexes
from homeport.registry.core.limits import DELETIONS_REMEMBERED
from homeport.registry.core.sessions import Session
from homeport.registry.core.txn import Change
from homeport.registry.fronts.consul.registrations import EXTRA, check_id
from homeport.registry.fronts.consul.waiting import Topic, Waits
from homeport.registry.fronts.metrics import FrontNumbers
from homeport.registry.operations import Operations
from homeport.registry.peers import NoOutlet, Peer

DATACENTER: Final = "dc1"  # the name Consul gives a datacenter that was given none
# Clients ask for the version to know what the API can do; after the plus stands who really answers.
VERSION: Final = f"1.21.4+homeport.{version('homeport')}"


def node_id(node: str) -> str:
    """A node's id, which Consul draws once and keeps; here it follows from the name, so every replica says the same."""
    return str(uuid.UUID(bytes=hashlib.blake2b(node.encode(), digest_size=16).digest(), version=4))


class Agent:
    """What views read and write. Made when the front opens; from then on it hears of every revision."""

    def __init__(self, operations: Operations, address: str, now: float, numbers: FrontNumbers, rng: Rng) -> None:
        self.numbers = numbers
        self.started = now
        self.streams: dict[Callable[[], None], None] = {}  # endless answers under way: what ends each
        self._rng = rng
        self.operations = operations
        self.store = operations.store
        self.catalogue = operations.catalogue
        self.node = operations.node
        self.address = address
        self.sessions = operations.sessions
        self.key_indexes = Indexes(self.store.mvcc, keys.USER)
        self.session_indexes = Indexes(self.store.mvcc, keys.SESSIONS)
        self.event_indexes = Indexes(self.store.mvcc, keys.EVENTS)
        self.query_indexes = Indexes(self.store.mvcc, keys.QUERIES)
        self.waits = Waits(self.catalogue)
        self.node_sessions = LastChanges(DELETIONS_REMEMBERED, self.store.mvcc.revision)  # by node
        self.firing = asyncio.Lock()  # of events that others overtook
        self.services_shown = (0, b"")  # the list of services as last encoded, and the index it is of
        # Node and CheckID -> the checks that go by it, each as of whom (of the node itself: an empty id) and its name.
        self._checks: dict[tuple[str, str], dict[tuple[InstanceKey, str], None]] = {}
        self._check_ids: dict[InstanceKey, list[tuple[str, str]]] = {}  # and back: CheckID and name
        for name, node in self.catalogue.nodes.items():
            for id_ in ("", *node.ids):
                self._follow((name, id_))

    @property
    def rng(self) -> Rng:
        return self._rng

    def new_id(self) -> str:
        """A new UUID, as Consul gives its events and sessions."""
        return str(uuid.UUID(int=self._rng.randrange(1 << 128), version=4))

    def end_streams(self) -> None:
        """The front closes."""
        for end in tuple(self.streams):
            end()

    def peer(self) -> Peer:
        """Who asks, as far as operations care."""
        return Peer(NoOutlet())

    def check(self, node: str, id_: str) -> tuple[InstanceKey, str] | None:
        """Whose check it is, and its name, that goes by a CheckID on a node."""
        return next(iter(self._checks.get((node, id_), ())), None)

    def check_is_of_another(self, id_: str, key: InstanceKey) -> bool:
        """Whether a CheckID is taken by some other instance on its node, or by the node."""
        return any(owner != key for owner, _ in self._checks.get((key[0], id_), ()))

    def revision(self, revision: int, changes: tuple[Change, ...]) -> None:
        """Take in one revision, after the catalogue has."""
        self.key_indexes.apply(revision, changes)
        self.session_indexes.apply(revision, changes)
        self.event_indexes.apply(revision, changes)
        self.query_indexes.apply(revision, changes)
        for change in changes:
            if change.key.startswith(keys.SESSIONS):
                self._session_changed(change, revision)
        touched = self.catalogue.touched
        if touched.revision == revision:
            for key in touched.keys:
                self._follow(key)
            self.waits.revision()

    def _session_changed(self, change: Change, revision: int) -> None:
        found = change.kv or change.prev
        assert found is not None
        node = wire.decode(Session, found.value).node
        self.node_sessions.add(node, revision)
        self.waits.wake(Topic("sessions", node))

    def _follow(self, key: InstanceKey) -> None:
        entry = self.catalogue.find(*key)
        ids = self._ids(entry) if entry is not None else []
        old = self._check_ids.get(key, [])
        if ids == old:
            return
        for id_, name in old:
            owners = self._checks[key[0], id_]
            del owners[key, name]
            if not owners:
                del self._checks[key[0], id_]
        for id_, name in ids:
            self._checks.setdefault((key[0], id_), {})[key, name] = None
        if ids:
            self._check_ids[key] = ids
        else:
            del self._check_ids[key]

    def _ids(self, entry: Entry) -> list[tuple[str, str]]:
        """The CheckIDs and names of the checks that are defined, and of those that are told."""
        one = entry.registered
        defined = dict.fromkeys(check.name for check in one.checks)
        ids = [(check_id(one, name), name) for name in defined]
        told = self.catalogue.checks.of(one.key)
        return ids + [(name, name) for name, record in told.items() if name not in defined and EXTRA in record.extra]
