"""What a client knows of one service: snapshots and deltas in, a set of instances out, with a guard against emptiness.

The guard: a registry that has just been restarted knows fewer instances than its clients do, until they have registered
again. So the first snapshot after a reconnect that is empty, or under half of the set known before, is held back: what
was known stays in use, corrected by everything the registry says, until the registry knows half of it again or
`HOLD_S` have passed. Nothing else is ever held back; a service that empties while connected is empty at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from homeport.client.core.model import Instance, InstanceKey, ServiceEvent

HOLD_S: Final = 300.0  # two dozen times the default TTL: whoever has not registered again by then is gone


class ServiceView:
    """The instances of one service as last told; `now` is seconds of any clock that never goes back."""

    __slots__ = ("_held_until", "_instances", "_kept", "_pages", "_reconnected", "known", "revision", "service")

    def __init__(self, service: str) -> None:
        self.service: str = service
        self.revision: int = 0
        self.known: bool = False
        self._instances: dict[InstanceKey, Instance] = {}
        self._kept: dict[InstanceKey, Instance] = {}  # known before, not yet confirmed, while a snapshot is held back
        self._held_until = 0.0
        self._reconnected = False
        self._pages: list[ServiceEvent] = []

    @property
    def instances(self) -> Mapping[InstanceKey, Instance]:
        """All instances to act on, whatever their status; a new mapping after each change."""
        return MappingProxyType({**self._kept, **self._instances})

    @property
    def held_until(self) -> float | None:
        """Until when unconfirmed instances are kept in use; None if there are none."""
        return self._held_until if self._kept else None

    def recall(self, instances: Iterable[Instance], revision: int) -> None:
        """Begin with what an earlier process knew; the first snapshot is then one after a reconnect."""
        self._instances = {instance.key: instance for instance in instances}
        self.revision = revision
        self.known = True
        self._reconnected = True

    def reconnected(self) -> None:
        """The next snapshot comes over a new connection, maybe from a registry that knows less."""
        self._reconnected = self.known
        self._pages.clear()

    def apply(self, event: ServiceEvent, now: float) -> ServiceEvent | None:
        """Take in an event; return what changed as one event, or None while more pages belong to it."""
        if event.more:
            self._pages.append(event)
            return None
        if self._pages:
            pages = [*self._pages, event]
            self._pages.clear()
            event = ServiceEvent(
                service=self.service,
                revision=event.revision,
                snapshot=pages[0].snapshot,
                changed=tuple(instance for page in pages for instance in page.changed),
                removed=tuple(key for page in pages for key in page.removed),
            )
        before = {**self._kept, **self._instances}
        if event.snapshot:
            self._take_snapshot(event, before, now)
        else:
            for key in event.removed:
                self._instances.pop(key, None)
                self._kept.pop(key, None)
            for instance in event.changed:
                self._instances[instance.key] = instance
                self._kept.pop(instance.key, None)
        self.revision = event.revision
        self.known = True
        self._release(now)
        return self._difference(before)

    def release(self, now: float) -> ServiceEvent | None:
        """Let go of unconfirmed instances if their time is over; return what changed."""
        before = {**self._kept, **self._instances}
        self._release(now)
        changed = self._difference(before)
        return changed if changed.removed else None

    def _take_snapshot(self, event: ServiceEvent, before: dict[InstanceKey, Instance], now: float) -> None:
        holding = bool(self._kept)
        self._instances = {instance.key: instance for instance in event.changed}
        self._kept = {}
        if self._reconnected and 2 * len(self._instances) < len(before):
            self._kept = {key: instance for key, instance in before.items() if key not in self._instances}
            if not holding:  # one reconnect after the other must not keep the same instances for ever
                self._held_until = now + HOLD_S
        self._reconnected = False

    def _release(self, now: float) -> None:
        if self._kept and (len(self._instances) >= len(self._kept) or now >= self._held_until):
            self._kept = {}

    def _difference(self, before: dict[InstanceKey, Instance]) -> ServiceEvent:
        after = {**self._kept, **self._instances}
        return ServiceEvent(
            service=self.service,
            revision=self.revision,
            changed=tuple(instance for key, instance in after.items() if not _same(before.get(key), instance)),
            removed=tuple(key for key in before if key not in after),
        )


def _same(before: Instance | None, after: Instance) -> bool:
    """Whether nothing is new: a registry that was restarted does not know since when an instance is as it is."""
    if before is None or before == after:
        return before is not None
    return msgspec.structs.replace(before, mod_revision=after.mod_revision) == after
