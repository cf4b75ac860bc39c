"""The catalogue: every instance with its status, computed from the store's keys as each revision passes.

`apply` takes one revision and returns one `ServiceEvent` per service whose instances look different afterwards, so
that watchers hear of nothing else. Each service keeps its encoded answers until it changes: a lookup is a dict access.

The index of a service is the revision of the last change to anything it is made of. Services that vanished are
remembered for a while; a name that is unknown answers with the newest deletion that is no longer remembered (`floor`),
so an index never goes backwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import msgspec

from homeport.client.core import wire
from homeport.client.core.messages import Resolved
from homeport.client.core.model import Check, Instance, InstanceKey, ServiceEvent, Status
from homeport.registry.core import keys
from homeport.registry.core.health import aggregate
from homeport.registry.core.limits import DELETIONS_REMEMBERED, PAGE_BYTES
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change

T = TypeVar("T")


_OWN: Final = (keys.INSTANCES, keys.CHECKS)  # the prefixes it is made of


class CheckRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `h/<node>/<id>/<check>`."""

    status: Status
    output: str = ""


class Entry:
    """One instance: as registered, and as everybody sees it."""

    __slots__ = ("lease", "registered", "seen")

    def __init__(self, registered: Instance, lease: int, seen: Instance) -> None:
        self.registered = registered
        self.lease = lease
        self.seen = seen


class Service:
    """All instances of one name. `answers` holds whatever readers made of it, until it changes."""

    __slots__ = ("answers", "entries", "index", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = 0
        self.entries: dict[InstanceKey, Entry] = {}
        self.answers: dict[object, object] = {}

    def instances(self, passing: bool) -> tuple[Instance, ...]:
        """Its instances in the order of node and id: all of them, or those that can take traffic."""
        seen = [self.entries[key].seen for key in sorted(self.entries)]
        return tuple([one for one in seen if one.available] if passing else seen)

    def answer(self, name: object, make: Callable[[Service], T]) -> T:
        """What `make` returns for this service, made once per change."""
        found = self.answers.get(name)
        if found is None:
            found = self.answers[name] = make(self)
        return found  # type: ignore[return-value]  # `name` decides which `make` it is


class Catalogue:
    """The instances of all services at the store's durable revision.

    Args:
        deletions_max: how many vanished services keep an index of their own.
    """

    __slots__ = ("_checks", "_deletions_max", "_gone", "_service_of", "floor", "index", "revision", "services")

    def __init__(self, deletions_max: int = DELETIONS_REMEMBERED) -> None:
        self.revision = 1
        self.index = 1  # of the list of services
        self.floor = 1
        self.services: dict[str, Service] = {}
        self._service_of: dict[InstanceKey, str] = {}
        self._checks: dict[InstanceKey, dict[str, CheckRecord]] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        self._deletions_max = deletions_max

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, node: str, id: str) -> Entry | None:  # noqa: A002 - the field's name everywhere else
        service = self._service_of.get((node, id))
        return None if service is None else self.services[service].entries[node, id]

    def index_of(self, name: str) -> int:
        """The revision of the last change to a service, existing or not."""
        service = self.services.get(name)
        return service.index if service else max(self._gone.get(name, 0), self.floor)

    def check_record(self, key: InstanceKey, name: str) -> CheckRecord | None:
        """The written status of a check; None before its first and after a ttl check's silence."""
        return self._checks.get(key, {}).get(name)

    def statuses(self, key: InstanceKey) -> dict[str, Status]:
        """The written status of each check of an instance."""
        return {name: record.status for name, record in self._checks.get(key, {}).items()}

    def check_names(self, key: InstanceKey) -> list[str]:
        """The checks of an instance that have a written status, defined or not."""
        return list(self._checks.get(key, ()))

    def resolved(self, name: str, passing: bool, offset: int = 0) -> bytes:
        """The encoded `Resolved` page of a service."""
        service = self.services.get(name)
        if service is None:
            return wire.encode(Resolved(self.index_of(name), ()))
        if offset:  # as many as a caller likes to ask for, so they are not kept
            return _resolved_page(service, passing, offset)
        return service.answer(("resolved", passing), lambda it: _resolved_page(it, passing, 0))

    def tags(self) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of its instances, sorted."""
        return {
            name: tuple(sorted({tag for entry in service.entries.values() for tag in entry.seen.tags}))
            for name, service in sorted(self.services.items())
        }

    # --- following the store ------------------------------------------------------------------------------------

    def load(self, mvcc: Mvcc) -> list[ServiceEvent]:
        """Start from a state; what was deleted before it is unknown, so every index starts at its revision."""
        found = (mvcc.get(key) for prefix in _OWN for key in mvcc.keys(prefix, keys.prefix_end(prefix)))
        events = self.apply(mvcc.revision, [Change(kv.key, kv, None) for kv in found if kv is not None])
        self.index = self.floor = mvcc.revision
        return events

    def apply(self, revision: int, changes: Iterable[Change]) -> list[ServiceEvent]:
        """Take in one revision and return what looks different now, one event per service."""
        self.revision = revision
        touched: dict[InstanceKey, None] = {}
        vanished: dict[tuple[str, InstanceKey], None] = {}
        for change in changes:
            key = change.key
            if key.startswith(keys.INSTANCES):
                service, node, id_ = keys.split(key)
                touched[node, id_] = None
                if change.kv is None:
                    vanished[service, (node, id_)] = None
                else:
                    self._put(service, (node, id_), wire.decode(Instance, change.kv.value), change)
            elif key.startswith(keys.CHECKS):
                node, id_, name = keys.split(key)
                touched[node, id_] = None
                if change.kv is not None:
                    self._checks.setdefault((node, id_), {})[name] = wire.decode(CheckRecord, change.kv.value)
                elif (records := self._checks.get((node, id_))) is not None:
                    records.pop(name, None)
                    if not records:
                        del self._checks[node, id_]
        events: dict[str, tuple[list[Instance], list[InstanceKey]]] = {}
        for service, instance_key in vanished:
            self._remove(service, instance_key, revision)
            events.setdefault(service, ([], []))[1].append(instance_key)
        for instance_key in touched:
            self._recompute(instance_key, revision, events)
        return [
            ServiceEvent(service=service, revision=revision, changed=tuple(changed), removed=tuple(removed))
            for service, (changed, removed) in events.items()
        ]

    def _put(self, name: str, key: InstanceKey, registered: Instance, change: Change) -> None:
        assert change.kv is not None
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = Service(name)
            self._gone.pop(name, None)
            self.index = change.kv.mod_revision
        old = service.entries.get(key)
        if old is None or old.registered.tags != registered.tags:
            self.index = change.kv.mod_revision
        registered = msgspec.structs.replace(
            registered,
            status="passing",
            create_revision=change.kv.create_revision,
            mod_revision=change.kv.mod_revision,
        )
        # What was seen stays until `_recompute`, which compares with it; a new one has never been seen.
        service.entries[key] = Entry(registered, change.kv.lease, old.seen if old else registered)
        if old is None:
            service.entries[key].seen = msgspec.structs.replace(registered, mod_revision=-1)
        self._service_of[key] = name

    def _remove(self, name: str, key: InstanceKey, revision: int) -> None:
        service = self.services[name]
        del service.entries[key]
        service.index = self.index = revision
        service.answers.clear()
        if self._service_of.get(key) == name:
            del self._service_of[key]
        if not service.entries:
            del self.services[name]
            self._gone[name] = revision
            if len(self._gone) > self._deletions_max:
                _, self.floor = self._gone.popitem(last=False)

    def _recompute(
        self, key: InstanceKey, revision: int, events: dict[str, tuple[list[Instance], list[InstanceKey]]]
    ) -> None:
        name = self._service_of.get(key)
        if name is None:
            return
        service = self.services[name]
        entry = service.entries[key]
        records = self._checks.get(key, {})
        statuses = [
            records[check.name].status if check.name in records else _unwritten(check)
            for check in entry.registered.checks
        ]
        # A record without a defined check is a verdict of the registry's own (a refused connection).
        defined = {check.name for check in entry.registered.checks}
        statuses += [record.status for check_name, record in records.items() if check_name not in defined]
        status: Status = "maintenance" if entry.registered.state == "maintenance" else aggregate(statuses)
        service.index = revision
        service.answers.clear()
        # Something that it is made of was written or deleted just now; the newest of what is left may be older.
        seen = msgspec.structs.replace(entry.registered, status=status, mod_revision=revision)
        same = msgspec.structs.replace(entry.seen, mod_revision=revision) == seen and entry.seen.mod_revision >= 0
        entry.seen = seen
        if not same:
            events.setdefault(name, ([], []))[0].append(seen)


def _unwritten(check: Check) -> Status:
    """The status of a check of which nothing is written: not known yet, or a ttl check that fell silent."""
    return "critical" if check.kind == "ttl" else check.initial


def snapshot(service: Service | None, name: str, revision: int) -> list[ServiceEvent]:
    """A service's whole set as watch events: the first says `snapshot`, all but the last say `more`."""
    instances = service.instances(passing=False) if service else ()
    pages = list(_pages(instances)) or [()]
    return [
        ServiceEvent(service=name, revision=revision, snapshot=at == 0, changed=page, more=at < len(pages) - 1)
        for at, page in enumerate(pages)
    ]


def _pages(instances: tuple[Instance, ...]) -> Iterable[tuple[Instance, ...]]:
    page: list[Instance] = []
    size = 0
    for instance in instances:
        size += len(wire.encode(instance))
        if page and size > PAGE_BYTES:
            yield tuple(page)
            page, size = [], len(wire.encode(instance))
        page.append(instance)
    if page:
        yield tuple(page)


def _resolved_page(service: Service, passing: bool, offset: int) -> bytes:
    instances = service.instances(passing)[offset:]
    page = next(iter(_pages(instances)), ())
    return wire.encode(Resolved(service.index, page, len(page) < len(instances)))
