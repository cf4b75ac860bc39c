"""Whom to deregister because a check was critical for longer than `deregister_after_s`, whoever looks after it.

Told of every change and of the time. A status found critical when this starts counts from then, so a restart makes
nobody vanish early. Being told critical again does not start the time anew; anything better ends it.
"""

from __future__ import annotations

from typing import Final

from homeport.client.core.model import InstanceKey
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Entry

SWEEP_S: Final = 30.0  # how often to look, as Consul does: an instance may stay this much longer


class Reaper:
    """Follows the checks that carry such a deadline."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Per instance its create revision, and per critical check with a deadline since when it is so.
        self._critical: dict[InstanceKey, tuple[int, dict[str, float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._critical)

    def touched(self, key: InstanceKey, now: float) -> None:
        """An instance may have changed, come or gone."""
        created, since = self._critical.pop(key, (0, {}))
        entry = self._catalogue.find(*key)
        if entry is None or not key[1]:
            return  # gone, or a node, which stays
        if not entry.registered.checks and not self._catalogue.checks.is_written(key):
            return
        if created != entry.registered.create_revision:
            since = {}
        critical = {
            name: since.get(name, now)
            for name, status in self._catalogue.checks.statuses(key, entry.registered)
            if status == "critical" and self._after_s(entry, name)
        }
        if critical:
            self._critical[key] = (entry.registered.create_revision, critical)

    def due(self, now: float) -> list[InstanceKey]:
        """Those to deregister now; they stay here until they are gone."""
        return [key for key in self._critical if self.left_s(key, now) < 0]

    def left_s(self, key: InstanceKey, now: float) -> float:
        """How long until an instance is due, negative if it is; infinite unless it has such a check critical."""
        _, critical = self._critical.get(key, (0, {}))
        entry = self._catalogue.find(*key)
        if entry is None:
            return float("inf")
        left = (since + self._after_s(entry, name) - now for name, since in critical.items())
        return min(left, default=float("inf"))

    def _after_s(self, entry: Entry, name: str) -> float:
        for check in entry.registered.checks:
            if check.name == name:
                return check.deregister_after_s
        record = self._catalogue.checks.one(entry.registered.key, name)
        return record.deregister_after_s if record is not None else 0.0
