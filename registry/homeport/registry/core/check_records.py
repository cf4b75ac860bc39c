"""What the checks of instances and nodes have come to: as written, and what only this process knows laid over it."""

from __future__ import annotations

from homeport.client.core.model import Instance, InstanceKey, Status
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.health import aggregate, before_first


class CheckRecords:
    """By instance, or with an empty id by node; each check by its name."""

    __slots__ = ("_local", "_written")

    def __init__(self) -> None:
        self._written: dict[InstanceKey, dict[str, CheckRecord]] = {}
        self._local: dict[InstanceKey, dict[str, CheckRecord]] = {}  # laid over what is written; all critical

    def put(self, key: InstanceKey, name: str, record: CheckRecord) -> None:
        """The store says so now."""
        self._written.setdefault(key, {})[name] = record

    def remove(self, key: InstanceKey, name: str) -> None:
        """The store says nothing of it any more."""
        records = self._written.get(key)
        if records is not None:
            records.pop(name, None)
            if not records:
                del self._written[key]

    def lay_over(self, key: InstanceKey, records: dict[str, CheckRecord]) -> None:
        """Lay critical records that only this process knows of over an instance's, in place of those laid before."""
        if records:
            self._local[key] = records
        else:
            self._local.pop(key, None)

    def is_written(self, key: InstanceKey) -> bool:
        """Whether anything is."""
        return key in self._written

    def is_laid_over(self, key: InstanceKey) -> bool:
        return key in self._local

    def of(self, key: InstanceKey) -> dict[str, CheckRecord]:
        """What each check has come to, defined or not; what only this process knows goes first."""
        written = self._written.get(key, {})
        return {**written, **self._local[key]} if key in self._local else written

    def one(self, key: InstanceKey, name: str) -> CheckRecord | None:
        """The same of one check; None before its first look and after a ttl check's silence."""
        return self.of(key).get(name)

    def written(self, key: InstanceKey) -> dict[str, Status]:
        """The written status of each check."""
        return {name: record.status for name, record in self._written.get(key, {}).items()}

    def verdicts(self, key: InstanceKey) -> dict[str, Status]:
        """The same, but for the checks that others look after."""
        return {name: record.status for name, record in self._written.get(key, {}).items() if not record.extra}

    def statuses(self, key: InstanceKey, registered: Instance | None) -> list[tuple[str, Status]]:
        """Every check with its status now: those of what is registered, and those that only records tell of."""
        records = self.of(key)
        checks = registered.checks if registered is not None else ()
        found = [(one.name, records[one.name].status if one.name in records else before_first(one)) for one in checks]
        # A record without a defined check was found by the registry itself (a refused connection) or told by others.
        defined = {check.name for check in checks}
        return found + [(name, record.status) for name, record in records.items() if name not in defined]

    def status(self, key: InstanceKey, registered: Instance | None) -> Status:
        """What all of them, and the state that is registered, come to."""
        if registered is not None and registered.state == "maintenance":
            return "maintenance"
        if (registered is None or not registered.checks) and key not in self._written and key not in self._local:
            return "passing"
        return aggregate(status for _, status in self.statuses(key, registered))
