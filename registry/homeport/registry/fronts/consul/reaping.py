"""DeregisterCriticalServiceAfter: which instances have had a critical check for longer than they asked to be kept.

Pure: told of every change and of the time, it says whom to deregister. A status found critical when this starts counts
from then, so a restart makes nobody vanish early.
"""

from __future__ import annotations

from typing import Final

from homeport.client.core.model import InstanceKey
from homeport.registry.core.catalogue import Catalogue, Entry
from homeport.registry.fronts.consul.registrations import check_status, details_of, told_details

SWEEP_S: Final = 30.0  # how often Consul looks, so a service may stay this much longer


class Reaper:
    """Follows the checks that carry such a deadline."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Per instance its create revision, and per critical check with a deadline since when it is so.
        self._critical: dict[InstanceKey, tuple[int, dict[str, float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._critical)

    def put(self, key: InstanceKey, entry: Entry | None, now: float) -> None:
        """An instance may have changed; None: it is gone."""
        created, since = self._critical.pop(key, (0, {}))
        if entry is None or not entry.registered.id:
            return  # gone, or a node, which stays
        if created != entry.registered.create_revision:
            since = {}
        checks = [(check.name, check_status(self._catalogue, entry, check)) for check in entry.registered.checks]
        checks += [(name, status) for name, status in self._catalogue.statuses(key).items() if name not in dict(checks)]
        critical = {
            name: since.get(name, now)
            for name, status in checks
            if status == "critical" and self._reap_after_s(entry, name)
        }
        if critical:
            self._critical[key] = (entry.registered.create_revision, critical)

    def due(self, now: float) -> list[InstanceKey]:
        """Those to deregister now; they stay here until they are gone."""
        return [key for key in self._critical if self.is_due(key, now)]

    def is_due(self, key: InstanceKey, now: float) -> bool:
        """Whether one of them is still to be deregistered."""
        _, critical = self._critical.get(key, (0, {}))
        entry = self._catalogue.find(*key)
        return entry is not None and any(
            now - since > self._reap_after_s(entry, name) for name, since in critical.items()
        )

    def _reap_after_s(self, entry: Entry, name: str) -> float:
        """How long an instance may have this check critical, whoever looks after it; 0: for ever."""
        record = self._catalogue.check_record(entry.registered.key, name)
        details = details_of(entry.registered).checks.get(name) or (record and told_details(record))
        return details.reap_after_s if details else 0.0
