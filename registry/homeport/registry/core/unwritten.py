"""What is known of instances and cannot be written: the removing overlay of a store that is read-only.

While nothing can be written, leases go on to end and checks go on to fail. What follows from that is laid over the
catalogue as check records of this process alone: they can only make a status worse, so the overlay can only take
instances out of answers, and never shows anything as healthier, or registered, that the store does not. As soon as the
store can be written, what the overlay says is written or dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.health import Verdict

LEASE: Final = "registry lease"  # the name under which the end of an instance's lease shows

_LEASE_OVER: Final = CheckRecord("critical", "its lease has ended; the store cannot be written to say so")
_SILENT: Final = CheckRecord("critical", "nothing was reported in time; the store cannot be written to say so")

Records = dict[str, CheckRecord]


class Unwritten:
    """The overlay: by instance, the records that the store should hold and does not."""

    __slots__ = ("_over", "_verdicts", "lapsed")

    def __init__(self) -> None:
        self._verdicts: dict[InstanceKey, dict[str, tuple[int, CheckRecord]]] = {}
        self.lapsed: dict[int, list[tuple[InstanceKey, str]]] = {}  # lease -> the records that it stands for
        self._over: dict[InstanceKey, Records] = {}  # the same records by instance

    def __len__(self) -> int:
        """How many instances it concerns."""
        return len(self._verdicts.keys() | self._over.keys())

    def verdict(self, key: InstanceKey, create_revision: int, check: str, verdict: Verdict) -> bool:
        """Note what a check found of that registration; return whether the overlay changed. Only critical counts."""
        if verdict.status != "critical":
            return self.forget(key, check)
        noted = (create_revision, CheckRecord("critical", verdict.output))
        verdicts = self._verdicts.setdefault(key, {})
        changed = verdicts.get(check) != noted
        verdicts[check] = noted
        return changed

    def forget(self, key: InstanceKey, check: str) -> bool:
        """A check's verdict is written, or concerns nobody any more; return whether it was in the overlay."""
        verdicts = self._verdicts.get(key, {})
        if verdicts.pop(check, None) is None:
            return False
        if not verdicts:
            del self._verdicts[key]
        return True

    def lapse(self, lease: int, attached: Iterable[bytes]) -> list[InstanceKey]:
        """A lease has outlived its TTL; return the instances that this concerns, by the keys attached to it."""
        if lease in self.lapsed:
            return []
        instances: list[tuple[InstanceKey, str]] = []
        silent: list[tuple[InstanceKey, str]] = []
        for key in attached:
            if key.startswith(keys.INSTANCES):
                _, node, id_ = keys.split(key)
                instances.append(((node, id_), LEASE))
            elif key.startswith(keys.CHECKS):
                node, id_, check = keys.split(key)
                silent.append(((node, id_), check))
        # What hangs on an instance's lease goes with it; only a ttl check's lease of its own is about the check.
        found = instances or silent
        if not found:
            return []
        self.lapsed[lease] = found
        for instance, name in found:
            self._over.setdefault(instance, {})[name] = _LEASE_OVER if name == LEASE else _SILENT
        return [instance for instance, _ in found]

    def settle(self, lease: int) -> list[InstanceKey]:
        """A lease was renewed after all, or its end is written; return the instances that this concerns."""
        found = self.lapsed.pop(lease, [])
        for instance, name in found:
            records = self._over[instance]
            records.pop(name, None)
            if not records:
                del self._over[instance]
        return [instance for instance, _ in found]

    def records(self, key: InstanceKey, create_revision: int) -> Records:
        """What to lay over the registration of an instance that was created at this revision."""
        found = dict(self._over.get(key, {}))
        for check, (created, record) in self._verdicts.get(key, {}).items():
            if created == create_revision:
                found[check] = record
        return found
