"""Writing to the catalogue in Consul's words: nodes, services and checks, on an overlay (`core/catalogue_verbs.py`).

Registering with the catalogue says what is so and looks after nothing: a check that comes with it has the status it is
told. What the registry looks after itself (checks that were registered with it, leases) stands as it is. A check with
one of the CheckIDs that mean maintenance sets that state, and takes it back when it is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import EXTRA_BYTES_MAX, NAME_BYTES_MAX, Instance, State, Status, validate_instance
from homeport.registry.core import catalogue_verbs, keys
from homeport.registry.core.catalogue_verbs import Registered
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.health import capped
from homeport.registry.core.kv_verbs import VerbFailed, quoted
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.sessions import Session
from homeport.registry.fronts.consul import rows, shapes, writes
from homeport.registry.fronts.consul.agent import DATACENTER, Agent
from homeport.registry.fronts.consul.answers import YES, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.durations import format_duration
from homeport.registry.fronts.consul.registrations import (
    EXTRA,
    NODE_MAINTENANCE,
    SERVICE_MAINTENANCE,
    CheckDetails,
    Details,
    details_of,
    duration_s,
    reap_after_s,
    to_instance,
    told_details,
)

T = TypeVar("T")

_STATUSES: Final[dict[str, Status]] = {
    "": "critical",
    "passing": "passing",
    "warning": "warning",
    "critical": "critical",
}
_DURATIONS: Final = ("Interval", "Timeout", "DeregisterCriticalServiceAfter")  # the last one last


async def register(call: Call) -> Answer:
    """Register a node, a service on it, and checks of either, at once."""
    asked: writes.Registration = call.payload
    _refuse_elsewhere(asked)
    if asked.locality:
        raise Refusal(400, "Locality is not supported: use NodeMeta")
    if not asked.node or not (asked.address or asked.skip_node_update):
        raise Refusal(400, "Must provide node and address")
    checks = [*([asked.check] if asked.check else []), *asked.checks]
    for check in checks:
        if check.node not in ("", asked.node):
            raise Refusal(400, f"check node {check.node!r} does not match node {asked.node!r}")
    node = writes.CatalogNode(
        id=asked.id,
        node=asked.node,
        address=asked.address,
        tagged_addresses=asked.tagged_addresses,
        meta=asked.node_meta,
    )

    def attempt(overlay: Overlay) -> None:
        if not asked.skip_node_update:
            set_node(call.agent, overlay, node)
        elif node_instance(call.agent, overlay, asked.node) is None:
            raise Refusal(500, f"Missing node registration: {asked.node!r}")
        if asked.service is not None:
            set_service(call.agent, overlay, asked.node, asked.service)
        for check in checks:
            set_check(call.agent, overlay, msgspec.structs.replace(check, node=asked.node))

    await decide(call.agent, attempt)
    return YES


async def deregister(call: Call) -> Answer:
    """Remove a service, a check, or a node with all that is on it; what is not there is removed already."""
    asked: writes.Deregistration = call.payload
    _refuse_elsewhere(asked)
    if not asked.node:
        raise Refusal(400, "Must provide node")
    agent = call.agent

    def attempt(overlay: Overlay) -> None:
        if asked.service_id:
            catalogue_verbs.delete(overlay, asked.node, asked.service_id)
        elif asked.check_id:
            delete_check(agent, overlay, asked.node, asked.check_id)
        else:
            delete_node(agent, overlay, asked.node)

    await decide(agent, attempt)
    return YES


async def decide(agent: Agent, attempt: Callable[[Overlay], T]) -> T:
    """Run an attempt on an overlay and commit it, in the words of requests that are not transactions.

    Raises:
        Refusal: it cannot be done.
    """
    try:
        decided, _ = await agent.sessions.decide(attempt)
    except VerbFailed as failed:
        raise Refusal(500, str(failed)) from None
    return decided


# --- nodes ------------------------------------------------------------------------------------------------------


def node_instance(agent: Agent, overlay: Overlay, name: str) -> Instance | None:
    """A node as registered; the agent's own always is, and one with something on it is as far as that goes."""
    standing = catalogue_verbs.find(overlay, name, "")
    if standing is not None:
        return standing.instance
    known = agent.catalogue.nodes.get(name)
    if name == agent.node:
        return Instance(service="", id="", node=name, address=agent.address)
    if known is None or known.entry is not None or not any(overlay.get(keys.id_of(name, id_)) for id_ in known.ids):
        return None
    return Instance(service="", id="", node=name, address=known.address)


def ensure_node(agent: Agent, overlay: Overlay, name: str) -> Registered:
    """A node as registered, which it is now if it was not in so many words.

    Raises:
        VerbFailed: there is no such node.
    """
    standing = catalogue_verbs.find(overlay, name, "")
    if standing is not None:
        return standing
    implied = node_instance(agent, overlay, name)
    if implied is None:
        raise VerbFailed("Missing node registration")
    return catalogue_verbs.put(overlay, implied)


def set_node(agent: Agent, overlay: Overlay, asked: writes.CatalogNode) -> Instance:
    """Register a node, with what the registry looks after on it as it stands."""
    _refuse_datacenter(asked.datacenter)
    if not asked.node or not asked.address:
        raise VerbFailed("Must provide node and address")
    other = _node_with_id(agent, overlay, asked.id) if asked.id else None
    if other is not None and other != asked.node:
        raise VerbFailed(f"node ID {quoted(asked.id)} of node {quoted(asked.node)} is that of node {quoted(other)}")
    one = node_instance(agent, overlay, asked.node)
    old = one or Instance(service="", id="", node=asked.node)
    details = msgspec.structs.replace(
        details_of(old),
        tagged_addresses={way: (address, 0) for way, address in sorted(asked.tagged_addresses.items())},
        node_id=asked.id or details_of(old).node_id,
    )
    extra = {EXTRA: wire.encode(details)} if details != Details() else {}
    new = msgspec.structs.replace(old, address=asked.address, meta=asked.meta, extra=extra)
    if new == one and asked.node == agent.node:
        return new  # it stands without being written, too
    validate_node(new)
    put = catalogue_verbs.put(overlay, new)
    if one is not None and one.address != new.address:
        _readdress(overlay, asked.node, new.address)
    return put.shown


def delete_node(agent: Agent, overlay: Overlay, name: str) -> None:
    """Remove a node with all that is on it, and end the sessions that were made on it."""
    if not catalogue_verbs.delete_node(overlay, name):
        return
    mvcc = agent.store.mvcc
    for key in mvcc.keys(keys.SESSIONS, keys.prefix_end(keys.SESSIONS)):
        kv = mvcc.get(key)
        if kv is not None and (session := wire.decode(Session, kv.value)).node == name:
            overlay.get(key)
            overlay.end(session.lease)


def _node_with_id(agent: Agent, overlay: Overlay, id_: str) -> str | None:
    """The node that has an ID of its own, in this request's view."""
    for kv in overlay.written(keys.NODES, keys.prefix_end(keys.NODES)):
        one = wire.decode(Instance, kv.value)
        if details_of(one).node_id == id_:
            return one.node
    for name, node in agent.catalogue.nodes.items():
        if node.entry is not None and details_of(node.entry.registered).node_id == id_:
            standing = catalogue_verbs.find(overlay, name, "")
            if standing is not None and details_of(standing.instance).node_id == id_:
                return name
    return None


def _readdress(overlay: Overlay, node: str, address: str) -> None:
    """Services that gave no address are at their node's."""
    prefix = keys.ids_on(node)
    for kv in overlay.range(prefix, keys.prefix_end(prefix)):
        standing = catalogue_verbs.find(overlay, node, keys.split(kv.key)[1])
        if standing is not None and not details_of(standing.instance).address_given:
            catalogue_verbs.put(overlay, msgspec.structs.replace(standing.instance, address=address))


# --- services ---------------------------------------------------------------------------------------------------


def set_service(agent: Agent, overlay: Overlay, node: str, asked: writes.CatalogService) -> Instance:
    """Register a service on a node, with the checks and the state that it has."""
    at = node_instance(agent, overlay, node)
    if at is None:
        raise VerbFailed("Missing node registration")
    if not asked.service:
        raise VerbFailed("Must provide service name (Service.Service) when service ID is provided")
    given = {name: getattr(asked, name) for name in msgspec.structs.asdict(asked) if name in _OF_A_DEFINITION}
    new = to_instance(
        shapes.ServiceDefinition(name=asked.service, **given), node=node, node_address=at.address, state="up"
    )
    standing = catalogue_verbs.find(overlay, node, new.id)
    if standing is not None:
        one, old = standing.instance, details_of(standing.instance)
        details = msgspec.structs.replace(details_of(new), checks=old.checks, maintenance_reason=old.maintenance_reason)
        new = msgspec.structs.replace(
            new,
            checks=one.checks,
            state=one.state,
            ttl_s=one.ttl_s,
            zone=one.zone,
            version=one.version,
            idle_timeout_s=one.idle_timeout_s,
            extra={**one.extra, EXTRA: wire.encode(details)},
        )
    validate_instance(new)
    return catalogue_verbs.put(overlay, new).shown


_OF_A_DEFINITION: Final = {field.name for field in msgspec.structs.fields(shapes.ServiceDefinition)}


# --- checks -----------------------------------------------------------------------------------------------------


def set_check(agent: Agent, overlay: Overlay, asked: writes.CatalogCheck) -> shapes.Check:
    """Tell the status of a check that somebody else looks after; return it as it will be shown, but for its indexes."""
    node, id_ = asked.node, asked.service_id
    name = asked.check_id or asked.name
    if not name:
        raise VerbFailed("Must provide a CheckID or a Name of the check")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise Refusal(400, f"CheckID has {len(name.encode())} bytes; allowed: at most {NAME_BYTES_MAX}")
    status = _STATUSES.get(asked.status)
    if status is None:
        raise Refusal(400, f"Invalid check status: {asked.status!r} must be 'passing', 'warning' or 'critical'")
    standing = _standing(agent, overlay, node, id_)
    definition, after_s = _definition(asked.definition)
    if after_s and not id_:
        raise Refusal(400, "DeregisterCriticalServiceAfter needs a ServiceID: it is a service that is deregistered")
    owner = find_check(agent, overlay, node, name)
    if owner is not None and owner[0] != id_:
        delete_check(agent, overlay, node, name)  # it is a node's only one of this CheckID, and moves
    if is_maintenance(id_, name):
        return rows.state(set_maintenance(overlay, standing, on=True, reason=asked.notes))
    if catalogue_verbs.defined(standing, name) is not None:
        raise VerbFailed(f"check {quoted(name)} is run by the registry; report it with /v1/agent/check/update")
    told = CheckDetails(name=asked.name or name, notes=asked.notes, kind=asked.type, definition=definition)
    data = wire.encode(told)
    if len(data) > EXTRA_BYTES_MAX:
        raise Refusal(400, f"Name, Notes and Definition have {len(data)} bytes; allowed: at most {EXTRA_BYTES_MAX}")
    record = CheckRecord(status, capped(asked.output), {EXTRA: data}, after_s)
    kv = catalogue_verbs.tell(overlay, standing, name, record)
    return rows.told(standing.instance, name, record, told, kv)


def find_check(agent: Agent, overlay: Overlay, node: str, check_id: str) -> tuple[str, str] | None:
    """Whose check goes by a CheckID, by service ID (empty: the node's), and its name, in this request's view."""
    prefix = keys.checks_on(node)
    for kv in overlay.written(prefix, keys.prefix_end(prefix)):
        _, id_, name = keys.split(kv.key)
        if name == check_id and EXTRA in wire.decode(CheckRecord, kv.value).extra:
            return id_, name
    id_ = check_id.removeprefix(SERVICE_MAINTENANCE) if check_id.startswith(SERVICE_MAINTENANCE) else ""
    if is_maintenance(id_, check_id):
        set_to = catalogue_verbs.find(overlay, node, id_)
        return (id_, check_id) if set_to is not None and set_to.instance.state == "maintenance" else None
    found = agent.check(node, check_id)
    if found is None:
        return None
    (_, id_), name = found
    standing = catalogue_verbs.find(overlay, node, id_)
    if standing is None:
        return None
    if catalogue_verbs.defined(standing, name) is None and overlay.get(keys.check(node, id_, name)) is None:
        return None
    return id_, name


def shown_check(agent: Agent, overlay: Overlay, node: str, check_id: str) -> shapes.Check | None:
    """The check that goes by a CheckID, in this request's view, relying on it."""
    found = find_check(agent, overlay, node, check_id)
    if found is None:
        return None
    id_, name = found
    standing = catalogue_verbs.find(overlay, node, id_)
    assert standing is not None
    if is_maintenance(id_, name):
        return rows.state(standing.shown)
    kv = overlay.get(keys.check(node, id_, name))
    if kv is not None:
        record = wire.decode(CheckRecord, kv.value)
        if told := told_details(record):
            return rows.told(standing.instance, name, record, told, kv)
    return rows.check(agent, node, check_id)


def delete_check(agent: Agent, overlay: Overlay, node: str, check_id: str) -> bool:
    """Remove the check that goes by a CheckID, whoever looks after it; False if there is none."""
    found = find_check(agent, overlay, node, check_id)
    if found is None:
        return False
    id_, name = found
    standing = catalogue_verbs.find(overlay, node, id_)
    assert standing is not None
    if is_maintenance(id_, name):
        set_maintenance(overlay, standing, on=False)
        return True
    details = details_of(standing.instance)
    if name in details.checks:
        left = {known: check for known, check in details.checks.items() if known != name}
        details = msgspec.structs.replace(details, checks=left)
    catalogue_verbs.delete_check(overlay, with_details(standing.instance, details), name)
    return True


def is_maintenance(id_: str, check_id: str) -> bool:
    """Whether a check with this CheckID stands for maintenance: of a service, or with an empty ID of its node."""
    return check_id == (f"{SERVICE_MAINTENANCE}{id_}" if id_ else NODE_MAINTENANCE)


def set_maintenance(overlay: Overlay, standing: Registered, *, on: bool, reason: str = "") -> Instance:
    """Put an instance or a node in maintenance, or back."""
    one = standing.instance
    details = msgspec.structs.replace(details_of(one), maintenance_reason=reason if on else "")
    state: State = "maintenance" if on else "up" if one.state == "maintenance" else one.state
    return catalogue_verbs.put(overlay, msgspec.structs.replace(with_details(one, details), state=state)).shown


def with_details(one: Instance, details: Details) -> Instance:
    """The instance with what only Consul's clients know of it."""
    rest = {front: data for front, data in one.extra.items() if front != EXTRA}
    ours = {EXTRA: wire.encode(details)} if details != Details() else {}
    return msgspec.structs.replace(one, extra=rest | ours)


def validate_node(one: Instance) -> None:
    """Raise `InvalidArgument` unless the registry would take this node."""
    # As an instance, for what it has of one; names are there to be checked.
    validate_instance(msgspec.structs.replace(one, service="node", id="node"))


def _standing(agent: Agent, overlay: Overlay, node: str, id_: str) -> Registered:
    """What a check is of."""
    if not id_:
        return ensure_node(agent, overlay, node)
    standing = catalogue_verbs.find(overlay, node, id_)
    if standing is not None:
        return standing
    missing = "node" if node_instance(agent, overlay, node) is None else "service"
    raise VerbFailed(f"Missing {missing} registration")


def _definition(target: writes.CheckTarget) -> tuple[dict[str, object], float]:
    """What a told check looks at, as shown, and how long it may be critical before its service goes (0: for ever)."""
    shown: dict[str, object] = msgspec.to_builtins(target)
    for field in _DURATIONS:
        if field in shown:
            seconds = duration_s(field, shown[field])
            shown[field] = format_duration(seconds)
            if field == "DeregisterCriticalServiceAfter" and seconds > 0:
                return shown, reap_after_s(seconds)
    return shown, 0.0


def _refuse_datacenter(name: str) -> None:
    if name not in ("", DATACENTER):
        raise Refusal(500, f"No path to datacenter; this one is {DATACENTER!r}")


def _refuse_elsewhere(asked: writes.Registration | writes.Deregistration) -> None:
    _refuse_datacenter(asked.datacenter)
    for field in ("namespace", "partition"):
        if getattr(asked, field) not in ("", "default"):
            raise Refusal(400, f"{field.capitalize()} is not supported: there is only the default one")
