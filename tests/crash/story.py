"""The story of a store on a disk: what was decided, and what was promised by which position of the disk's log.

A listener of the store tells it: a revision that listeners hear of is one that readers see and writers are told of, so
from that position on it must survive whatever happens. `expect_kept` holds a recovered store to all of it.
"""

from __future__ import annotations

import random

from homeport.client.core import wire
from homeport.client.core.model import KeyValue
from homeport.mesh.simulation.disk import Disk
from homeport.registry.core import keys
from homeport.registry.core.txn import Change, Range
from homeport.registry.store.contract import LeaseRecord
from homeport.registry.store.embedded import EmbeddedStore

State = dict[bytes, KeyValue]
Step = dict[bytes, KeyValue | None]  # one revision's changes; None is a deletion


class PromiseBroken(AssertionError):
    """A recovered store is not what was promised; the message says which promise."""


class Story:
    """Every revision's changes and whole state, the simplest way: a dictionary for each."""

    def __init__(self) -> None:
        self.steps: dict[int, Step] = {}
        self.states: dict[int, State] = {1: {}}
        self.newest = 1
        self.store_id = ""
        self.attempts: set[frozenset[tuple[bytes, bytes]]] = set()  # writes whose outcome is unknown, as key and value
        self._promises: list[tuple[int, int]] = []  # from a position on, a revision
        self._named_at: int | None = None

    def follow(self, store: EmbeddedStore, disk: Disk | None = None) -> None:
        """A store has started on a disk; from now on this is its story."""
        if disk is not None:
            if self._named_at is None:
                self.store_id, self._named_at = store.store_id, disk.position
            self._promises.append((disk.position, self.newest))

        def hear(revision: int, changes: tuple[Change, ...]) -> None:
            self.tell(revision, changes)
            if disk is not None:
                self._promises.append((disk.position, revision))

        store.listen(hear)

    def tell(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision has happened."""
        before = self.states[self.newest]
        if revision != self.newest + 1:
            raise PromiseBroken(f"revision {revision} followed {self.newest}")
        for change in changes:
            if change.prev != before.get(change.key):
                raise PromiseBroken(f"revision {revision}, key {change.key!r}: {change.prev} was not what stood there")
        self.add({change.key: change.kv for change in changes})

    def add(self, step: Step) -> None:
        state = dict(self.states[self.newest])
        for key, kv in step.items():
            if kv is None:
                state.pop(key, None)
            else:
                state[key] = kv
        self.newest += 1
        self.steps[self.newest] = step
        self.states[self.newest] = state

    def promised(self, position: int) -> int:
        """The revision that was durable for everyone to see at a position of the log."""
        return max((revision for at, revision in self._promises if at <= position), default=1)

    def named(self, position: int) -> bool:
        """Whether anyone can have seen the store's id by then."""
        return self._named_at is not None and self._named_at <= position

    def attempted(self, step: Step) -> bool:
        """Whether this is a whole write whose outcome nobody knew."""
        return frozenset((key, b"" if kv is None else kv.value) for key, kv in step.items()) in self.attempts

    def expect_kept(self, store: EmbeddedStore, position: int, rng: random.Random) -> Story:
        """Hold a store that has just recovered from a power cut at a position to the story; return what is left of it.

        Raises:
            PromiseBroken: it does not.
        """
        mvcc = store.mvcc
        promised, found = self.promised(position), mvcc.revision
        if found < promised:
            raise PromiseBroken(f"revision {promised} was durable, and all that is left is revision {found}")
        if self.named(position) and store.store_id != self.store_id:
            raise PromiseBroken(f"the store was {self.store_id}, and is {store.store_id} now")
        left = Story()
        left.attempts = self.attempts
        left.store_id = store.store_id
        if self.named(position):
            left._named_at = 0
        left._promises.append((0, promised))
        log = dict(mvcc.changes_from(mvcc.compact_revision + 1))
        for revision in range(2, found + 1):
            step = self.steps.get(revision)
            if revision > mvcc.compact_revision:
                if revision not in log:
                    raise PromiseBroken(f"revision {found} is there, and {revision} before it is missing")
                kept: Step = {change.key: change.kv for change in log[revision]}
                if kept != step and (revision <= promised or not self.attempted(kept)):
                    raise PromiseBroken(f"revision {revision} is torn or was never decided: {kept}, decided: {step}")
                step = kept
            if step is None:
                raise PromiseBroken(f"compacted at {mvcc.compact_revision}, where the store never was")
            left.add(step)
        for revision in (found, rng.randint(max(mvcc.compact_revision, 1), found)):
            entries = mvcc.range(Range(b"", b"", revision=revision)).entries
            if {kv.key: kv for kv in entries} != left.states[revision]:
                raise PromiseBroken(f"the state at revision {revision} of {found} is not what it was")
        left.expect_leases(store)
        return left

    def expect_leases(self, store: EmbeddedStore) -> None:
        """Every lease whose record stands has its full TTL again, and there is no other."""
        standing = {
            keys.lease_number(key): wire.decode(LeaseRecord, kv.value).ttl_s
            for key, kv in self.states[self.newest].items()
            if key.startswith(keys.LEASES)
        }
        if {lease: store.lease_remaining_s(lease) for lease in store.leases()} != standing:
            raise PromiseBroken(f"leases {store.leases()} stand, and {standing} should, each with its full TTL")
