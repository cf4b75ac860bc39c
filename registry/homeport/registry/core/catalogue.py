"""The catalogue: every instance with its status, computed from the store's keys as each revision passes.

`apply` takes one revision and returns one `ServiceEvent` per service whose instances look different afterwards, so
that watchers hear of nothing else. Each service keeps its encoded answers until it changes: a lookup is a dict access.

A node is registered like an instance, one of no service and no id, and stands with its address, its state and its
checks behind every instance on it. One that nobody registered is there as long as something is on it.

The index of a service or a node is the revision of the last change to anything it is made of. Those that vanished are
remembered for a while; a name that is unknown answers with the newest deletion that is no longer remembered (`floor`),
so an index never goes backwards.

Two things show that no revision says: what only this process knows while the store is read-only (laid over `checks`),
and instances that are kept although their leases ended with most others' (`keep`). What looks different for such a
reason takes the newest revision for its index: whoever was told that one was told everything before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.messages import Resolved
from homeport.client.core.model import Instance, InstanceKey, Mark, ServiceEvent, Status
from homeport.registry.core import keys
from homeport.registry.core.check_records import CheckRecords
from homeport.registry.core.entries import UNSEEN, CheckRecord, Entry, LastChanges, Node, Service, Touched, as_it_stands
from homeport.registry.core.health import worse
from homeport.registry.core.limits import DELETIONS_REMEMBERED
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.pages import resolved_page
from homeport.registry.core.txn import Change

OWN: Final = (keys.INSTANCES, keys.CHECKS, keys.NODES)  # the prefixes it is made of


class Catalogue:
    """The instances of all services at the store's durable revision.

    Args:
        deletions_max: how many vanished services, and nodes, keep an index of their own.
    """

    __slots__ = (
        "_gone",
        "_gone_nodes",
        "_service_of",
        "checks",
        "checks_index",
        "index",
        "instances_index",
        "leased",
        "looked_at",
        "nodes",
        "nodes_index",
        "revision",
        "services",
        "stale",
        "touched",
    )

    def __init__(self, deletions_max: int = DELETIONS_REMEMBERED) -> None:
        self.revision = 1
        self.index = 1  # of the list of services
        self.instances_index = 1  # of all instances and their nodes
        self.nodes_index = 1  # of the list of nodes
        self.checks_index = 1  # of all checks
        self.checks = CheckRecords()
        self.services: dict[str, Service] = {}
        self.nodes: dict[str, Node] = {}
        self.touched = Touched(1)  # by the last revision that concerned it
        self.looked_at = Touched(1)  # when something was last looked at again, for a reason that no revision has
        self.leased = 0  # instances that stand on a lease
        self.stale: dict[InstanceKey, None] = {}
        self._service_of: dict[InstanceKey, str] = {}
        self._gone = LastChanges(deletions_max)  # of services that are not there
        self._gone_nodes = LastChanges(deletions_max)

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, node: str, id: str) -> Entry | None:  # noqa: A002 - the field's name everywhere else
        """The instance, or with an empty id what is registered of the node itself."""
        if not id:
            found = self.nodes.get(node)
            return found.entry if found else None
        service = self._service_of.get((node, id))
        return None if service is None else self.services[service].entries[node, id]

    @property
    def floor(self) -> int:
        """The index of a service that is not there and not remembered."""
        return self._gone.floor

    def index_of(self, name: str) -> int:
        """The revision of the last change to a service, existing or not."""
        service = self.services.get(name)
        return service.index if service else self._gone.index_of(name)

    def index_of_node(self, name: str) -> int:
        """The revision of the last change to a node and all that is on it, existing or not."""
        node = self.nodes.get(name)
        return node.index if node else self._gone_nodes.index_of(name)

    def entries_on(self, name: str) -> list[Entry]:
        """The instances on a node in the order of their ids."""
        node = self.nodes.get(name)
        if node is None:
            return []
        return [self.services[service].entries[name, id_] for id_, service in node.ids.items()]

    def resolved(self, name: str, passing: bool, offset: int = 0) -> bytes:
        """The encoded `Resolved` page of a service."""
        service = self.services.get(name)
        if service is None:
            return wire.encode(Resolved(self.index_of(name), ()))
        if offset:  # as many as a caller likes to ask for, so they are not kept
            return resolved_page(service, passing, offset)
        return service.answer(("resolved", passing), lambda it: resolved_page(it, passing, 0))

    def tags(self) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of its instances, sorted."""
        return {
            name: tuple(sorted({tag for entry in service.entries.values() for tag in entry.seen.tags}))
            for name, service in sorted(self.services.items())
        }

    # --- following the store ------------------------------------------------------------------------------------

    def load(self, mvcc: Mvcc) -> list[ServiceEvent]:
        """Start from a state; what was deleted before it is unknown, so every index starts at its revision."""
        found = (mvcc.get(key) for prefix in OWN for key in mvcc.keys(prefix, keys.prefix_end(prefix)))
        events = self.apply(mvcc.revision, [Change(kv.key, kv, None) for kv in found if kv is not None])
        self.index = self.instances_index = self.nodes_index = self.checks_index = mvcc.revision
        self._gone.floor = self._gone_nodes.floor = mvcc.revision
        return events

    def apply(self, revision: int, changes: Iterable[Change]) -> list[ServiceEvent]:
        """Take in one revision and return what looks different now, one event per service."""
        self.revision = revision
        touched = self.touched = Touched(revision)
        vanished: dict[tuple[str, InstanceKey], None] = {}
        for change in changes:
            key = change.key
            if key.startswith(keys.INSTANCES):
                service, node, id_ = keys.split(key)
                touched.keys[node, id_] = None
                if change.kv is None:
                    vanished[service, (node, id_)] = None
                else:
                    if (node, id_) in self.stale and self._service_of[node, id_] != service:
                        vanished[self._service_of[node, id_], (node, id_)] = None
                    self._put(service, (node, id_), wire.decode(Instance, change.kv.value), change)
            elif key.startswith(keys.CHECKS):
                node, id_, name = keys.split(key)
                touched.keys[node, id_] = None
                touched.checks = True
                if change.kv is not None:
                    self.checks.put((node, id_), name, wire.decode(CheckRecord, change.kv.value))
                else:
                    self.checks.remove((node, id_), name)
            elif key.startswith(keys.NODES):
                (node,) = keys.split(key)
                touched.keys[node, ""] = None
                self._put_node(node, change)
        events: dict[str, tuple[list[Instance], list[InstanceKey]]] = {}
        for service, instance_key in vanished:
            entry = self.services[service].entries[instance_key]
            if entry.kept_until and entry.seen.available and self._service_of.get(instance_key) == service:
                self.leased -= 1
                self._turn_stale(service, instance_key, entry)
                continue
            self._remove(service, instance_key, revision)
            events.setdefault(service, ([], []))[1].append(instance_key)
        if self.stale:
            self._touch_stale([*[service for service, _ in vanished], *map(self._service_of.get, touched.keys)])
        for node, id_ in tuple(touched.keys):
            if not id_:
                self._weigh(node)
        for instance_key in tuple(touched.keys):
            self._recompute(instance_key, revision, events)
        for node in touched.nodes:
            self._settle(node, revision)
        if touched.services or touched.nodes:
            self.instances_index = revision
        if touched.checks:
            self.checks_index = revision
        return _told(events, revision)

    def _node(self, name: str) -> Node:
        node = self.nodes.get(name)
        if node is None:
            node = self.nodes[name] = Node(name)
            node.status = self.checks.status((name, ""), None)
            self._gone_nodes.discard(name)
            self.nodes_index = self.revision
        return node

    def _put_node(self, name: str, change: Change) -> None:
        node = self._node(name)
        self.touched.checks = True  # its state and its metadata, by which checks are chosen, may be others
        if change.kv is None:
            node.entry = None
        else:
            registered = as_it_stands(wire.decode(Instance, change.kv.value), change.kv)
            node.entry = Entry(registered, change.kv.lease, registered)
        self.nodes_index = self.revision

    def _put(self, name: str, key: InstanceKey, registered: Instance, change: Change) -> None:
        assert change.kv is not None
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = Service(name)
            self._gone.discard(name)
            self.index = change.kv.mod_revision
        old = service.entries.get(key)
        self._forget_stale(key)
        if old is not None and old.lease and not old.stale:
            self.leased -= 1
        if change.kv.lease:
            self.leased += 1
        if old is None or old.registered.tags != registered.tags:
            self.index = change.kv.mod_revision
        if old is not None:
            self._note_checks(old.registered)
            if old.registered.create_revision != change.kv.create_revision:
                self.checks.lay_over(key, {})
        registered = as_it_stands(registered, change.kv)
        # What was seen stays until `_recompute`, which compares with it; a new one has never been seen.
        service.entries[key] = Entry(registered, change.kv.lease, old.seen if old else UNSEEN)
        self._service_of[key] = name
        self._node(key[0]).ids[key[1]] = name

    def _remove(self, name: str, key: InstanceKey, revision: int) -> None:
        service = self.services[name]
        self.touched.services[name] = None
        entry = service.entries.pop(key)
        self._note_checks(entry.registered)
        self.checks.lay_over(key, {})
        if entry.stale:
            self.stale.pop(key, None)
            service.stale.pop(key, None)
        elif entry.lease:
            self.leased -= 1
        service.index = self.index = revision
        service.answers.clear()
        if self._service_of.get(key) == name:
            del self._service_of[key]
            self.nodes[key[0]].ids.pop(key[1], None)
        self.touched.nodes[key[0]] = None
        if not service.entries:
            del self.services[name]
            self._gone.add(name, revision)

    def _note_checks(self, one: Instance) -> None:
        """Something of an instance changed: of its checks, too, if it has any, or one stands for its state."""
        if one.checks or one.state != "up" or self.checks.is_written(one.key):
            self.touched.checks = True

    def _weigh(self, name: str) -> None:
        """Find the status of a node anew; all that is on it is concerned."""
        self.touched.nodes[name] = None
        node = self.nodes.get(name)
        if node is None:
            return
        registered = node.entry.registered if node.entry else None
        node.status = self.checks.status((name, ""), registered)
        for id_ in node.ids:
            self.touched.keys[name, id_] = None

    def _recompute(
        self, key: InstanceKey, revision: int, events: dict[str, tuple[list[Instance], list[InstanceKey]]]
    ) -> None:
        name = self._service_of.get(key)
        if name is None:
            return
        node = self.nodes[key[0]]
        self.touched.nodes[key[0]] = None
        self.touched.services[name] = None
        service = self.services[name]
        entry = service.entries[key]
        self._note_checks(entry.registered)
        status: Status
        mark: Mark = ""
        if entry.stale:
            mark = "stale"
            status = worse(entry.kept_status, node.status) if service.needs_stale else "critical"
        else:
            mark = "unwritten" if self.checks.is_laid_over(key) else ""
            status = worse(self.checks.status(key, entry.registered), node.status)
        service.index = max(service.index, revision)
        service.answers.clear()
        # Something that it is made of was written or deleted just now; the newest of what is left may be older.
        seen, before = entry.registered, entry.seen
        if (status, mark, revision) != (seen.status, seen.mark, seen.mod_revision):  # else it is seen as registered
            seen = msgspec.structs.replace(seen, status=status, mark=mark, mod_revision=revision)
        same = before.mod_revision >= 0 and msgspec.structs.replace(before, mod_revision=revision) == seen
        entry.seen = seen
        if not same:
            events.setdefault(name, ([], []))[0].append(seen)

    def _settle(self, name: str, revision: int) -> None:
        """A node, or something on it, changed: see whether it is still there, and at which address."""
        node = self.nodes.get(name)
        if node is None:
            return
        if node.entry is None and not node.ids:
            del self.nodes[name]
            self._gone_nodes.add(name, revision)
            self.nodes_index = revision
            return
        node.index = revision
        if node.entry is not None:
            address = node.entry.registered.address
        else:
            first, service = node.ids.peekitem(0)
            address = self.services[service].entries[name, first].registered.address
        if address != node.address:
            node.address = address
            self.nodes_index = revision

    # --- what no revision says ----------------------------------------------------------------------------------

    def keep(self, entry: Entry, until: float) -> bool:
        """Keep an instance whose lease ends, or has just ended, as stale; return whether it must be looked at again.

        One whose checks fail, or that is taking its leave, is not kept.
        """
        key = entry.registered.key
        if not entry.seen.available or entry.kept_until:
            return False
        entry.kept_until = until
        if self.find(*key) is entry:
            return False  # it turns stale when its keys go
        if key in self._service_of:
            entry.kept_until = 0.0  # it is registered again already
            return False
        name = entry.registered.service
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = Service(name)
            service.index = self.index = self.revision
            self._gone.discard(name)
        service.entries[key] = entry
        self._service_of[key] = name
        self._node(key[0]).ids[key[1]] = name
        self._turn_stale(name, key, entry)
        entry.seen = msgspec.structs.replace(entry.seen, mod_revision=-1)  # it was told to be gone
        return True

    def drop_stale(self, stale: Iterable[InstanceKey]) -> list[ServiceEvent]:
        """Let go of stale instances; those that are not stale any more stay."""
        events: dict[str, tuple[list[Instance], list[InstanceKey]]] = {}
        by_revision, self.touched = self.touched, Touched(self.revision)
        for key in stale:
            if key in self.stale:
                name = self._service_of[key]
                self._remove(name, key, self.revision)
                events.setdefault(name, ([], []))[1].append(key)
        self._touch_stale(events)
        return self._looked_again(events, by_revision)

    def look_again(self, concerned: Iterable[InstanceKey]) -> list[ServiceEvent]:
        """What looks different now of these instances, for a reason that no revision has."""
        by_revision, self.touched = self.touched, Touched(self.revision)
        self.touched.keys.update(dict.fromkeys(concerned))
        if self.stale:
            self._touch_stale(map(self._service_of.get, self.touched.keys))
        return self._looked_again({}, by_revision)

    def _looked_again(
        self, events: dict[str, tuple[list[Instance], list[InstanceKey]]], by_revision: Touched
    ) -> list[ServiceEvent]:
        for key in tuple(self.touched.keys):
            entry = self.find(*key) if key[1] else None
            if entry is not None:
                known = entry.seen.mod_revision
                self._recompute(key, known if known >= 0 else self.revision, events)
        for node in self.touched.nodes:
            self._settle(node, self.revision)
        if events:
            self._move_indexes(events)
        # Whoever follows the revisions may not have taken in yet what the last one touched.
        self.looked_at, self.touched = self.touched, by_revision
        return _told(events, self.revision)

    def _move_indexes(self, services: Iterable[str]) -> None:
        """What no revision says is new to whoever knows less than all that there is: it gets the newest index."""
        for name in services:
            service = self.services.get(name)
            if service is not None:
                service.index = self.revision
        self.instances_index = self.checks_index = self.revision  # an overlay is made of checks

    def _turn_stale(self, name: str, key: InstanceKey, entry: Entry) -> None:
        entry.stale = True
        entry.kept_status = entry.seen.status
        self.stale[key] = None
        self.services[name].stale[key] = None
        self.checks.lay_over(key, {})

    def _forget_stale(self, key: InstanceKey) -> None:
        """It is registered again, maybe under another name."""
        if key in self.stale:
            del self.stale[key]
            del self.services[self._service_of[key]].stale[key]

    def _touch_stale(self, services: Iterable[str | None]) -> None:
        """Whether a service's stale instances are served may have changed with the others."""
        for name in dict.fromkeys(services):
            service = self.services.get(name) if name is not None else None
            if service is not None:
                self.touched.keys.update(service.stale)


def _told(events: dict[str, tuple[list[Instance], list[InstanceKey]]], revision: int) -> list[ServiceEvent]:
    return [
        ServiceEvent(service=service, revision=revision, changed=tuple(changed), removed=tuple(removed))
        for service, (changed, removed) in events.items()
    ]
