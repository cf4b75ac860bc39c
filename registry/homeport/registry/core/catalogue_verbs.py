"""What can be done to nodes, services and their checks: each runs on an overlay, after those before it.

A node is an `Instance` of no service and no id. What is so already is not written again, so its index stays. Whatever a
registration hung on (its lease, the leases of its ttl checks) ends with it. A status that is told for a check hangs on
the lease of what it is told of; one that the registry finds itself, because the check is defined, cannot be told.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import Check, Instance, KeyValue
from homeport.registry.core import keys
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.locality import as_asked
from homeport.registry.core.overlay import Overlay

# The fields that only the registry says.
_OWN: Final = {"status": "passing", "mark": "", "create_revision": 0, "mod_revision": 0}


class Registered(msgspec.Struct, frozen=True):
    """A registration on the overlay: what it says, and the key it stands under."""

    instance: Instance
    kv: KeyValue

    @property
    def shown(self) -> Instance:
        """What it says, with its revisions; `PENDING` where this request wrote it."""
        return msgspec.structs.replace(
            self.instance, create_revision=self.kv.create_revision, mod_revision=self.kv.mod_revision
        )


def find(overlay: Overlay, node: str, id: str) -> Registered | None:  # noqa: A002 - the field's name everywhere else
    """The instance, or with an empty id the node itself, relying on all of it."""
    if id:
        service = overlay.get(keys.id_of(node, id))
        kv = overlay.get(keys.instance(service.value.decode(), node, id)) if service else None
    else:
        kv = overlay.get(keys.node(node))
    return None if kv is None else Registered(wire.decode(Instance, kv.value), kv)


def put(overlay: Overlay, instance: Instance) -> Registered:
    """Register an instance or a node in place of what it was; checks that are defined so no more lose their status."""
    instance = msgspec.structs.replace(instance, **_OWN)
    standing = find(overlay, instance.node, instance.id)
    if standing is not None and as_asked(standing.instance) == as_asked(instance):
        return standing
    lease = standing.kv.lease if standing else 0
    key = keys.registered(instance.service, instance.node, instance.id)
    if standing is not None:
        if standing.kv.key != key:
            overlay.delete(standing.kv.key)
        for check in standing.instance.checks:
            if check not in instance.checks:
                _drop(overlay, keys.check(instance.node, instance.id, check.name), lease)
    kv = overlay.put(key, wire.encode(instance), lease)
    if instance.id and (standing is None or standing.kv.key != key):
        overlay.put(keys.id_of(instance.node, instance.id), instance.service.encode(), lease)
    return Registered(instance, kv)


def delete(overlay: Overlay, node: str, id: str) -> bool:  # noqa: A002
    """Deregister an instance with its checks; False if there is none."""
    standing = find(overlay, node, id)
    if standing is None:
        return False
    overlay.delete(standing.kv.key)
    overlay.delete(keys.id_of(node, id))
    _drop_all(overlay, node, id, standing.kv.lease)
    if standing.kv.lease:
        overlay.end(standing.kv.lease)
    return True


def delete_node(overlay: Overlay, node: str) -> bool:
    """Deregister a node with its checks and all that is on it; False if there is nothing."""
    found = find(overlay, node, "") is not None
    for kv in overlay.range(keys.ids_on(node), keys.prefix_end(keys.ids_on(node))):
        found = delete(overlay, node, keys.split(kv.key)[1]) or found
    _drop_all(overlay, node, "", 0)
    overlay.delete(keys.node(node))
    return found


def defined(standing: Registered, name: str) -> Check | None:
    """The check of that name that the registry runs for a registration."""
    return next((check for check in standing.instance.checks if check.name == name), None)


def tell(overlay: Overlay, standing: Registered, name: str, told: CheckRecord) -> KeyValue:
    """Write the status of a check of a registration that somebody else looks after: one that it does not define."""
    assert defined(standing, name) is None
    key = keys.check(standing.instance.node, standing.instance.id, name)
    old = overlay.get(key)
    if old is not None and wire.decode(CheckRecord, old.value) == told:
        return old
    return overlay.put(key, wire.encode(told), standing.kv.lease)


def delete_check(overlay: Overlay, one: Instance, name: str) -> None:
    """Remove a check of a registration, defined or told, there or not; the rest of it is to be as `one` says."""
    left = tuple(check for check in one.checks if check.name != name)
    put(overlay, msgspec.structs.replace(one, checks=left))
    standing = find(overlay, one.node, one.id)
    assert standing is not None
    _drop(overlay, keys.check(one.node, one.id, name), standing.kv.lease)


def _drop_all(overlay: Overlay, node: str, id: str, lease: int) -> None:  # noqa: A002
    prefix = keys.checks_of(node, id)
    for kv in overlay.range(prefix, keys.prefix_end(prefix)):
        _drop(overlay, kv.key, lease)


def _drop(overlay: Overlay, key: bytes, lease: int) -> None:
    """Delete a status, and the lease that a ttl check has of its own."""
    kv = overlay.get(key)
    if kv is None:
        return
    overlay.delete(key)
    if kv.lease not in (0, lease):
        overlay.end(kv.lease)
