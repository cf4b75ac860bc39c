"""The rows that lists of nodes, services and checks are made of: from the catalogue, in Consul's shapes.

Everything is as registered; what the registry itself has to say of it (maintenance, draining, a refused connection)
is said by checks, as Consul's agents do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from homeport.client.core.model import Check as OurCheck
from homeport.client.core.model import Instance, KeyValue
from homeport.registry.core import keys
from homeport.registry.core.entries import CheckRecord, Entry
from homeport.registry.fronts.consul import itself, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, Agent, node_id
from homeport.registry.fronts.consul.durations import format_duration
from homeport.registry.fronts.consul.registrations import (
    NODE_MAINTENANCE,
    SERVICE_MAINTENANCE,
    CheckDetails,
    Details,
    check_id,
    check_status,
    details_of,
    tagged_addresses,
    told_details,
)

_TTL_EXPIRED: Final = "TTL expired"
_NO_REASON: Final = (
    "Maintenance mode is enabled for this {}, but no reason was provided. This is a default message."  # Consul's words
)


def node(agent: Agent, name: str) -> shapes.Node | None:
    """A node that is registered, or has something on it, or is the agent's own."""
    found = agent.catalogue.nodes.get(name)
    if found is None and name != agent.node:
        return None
    registered = found.entry.registered if found and found.entry else None
    address = found.address if found and (registered or name != agent.node) else agent.address
    return shown_node(registered or Instance(service="", id="", node=name, address=address))


def shown_node(one: Instance) -> shapes.Node:
    """A node as registered."""
    details = details_of(one)
    given = {way: address for way, (address, _) in details.tagged_addresses.items()}
    return shapes.Node(
        id=details.node_id or node_id(one.node),
        node=one.node,
        address=one.address,
        datacenter=DATACENTER,
        tagged_addresses={"lan": one.address, "wan": one.address} | given,
        meta=one.meta,
        create_index=max(one.create_revision, 1),
        modify_index=max(one.mod_revision, 1),
    )


def nodes(agent: Agent) -> list[shapes.Node]:
    """Every node by name."""
    names = sorted({*agent.catalogue.nodes, agent.node})
    return [found for found in (node(agent, name) for name in names) if found is not None]


def node_of(agent: Agent, entry: Entry) -> shapes.Node:
    """The node that an instance is on."""
    found = node(agent, entry.registered.node)
    assert found is not None
    return found


def service(one: Instance) -> shapes.Service:
    """An instance as registered."""
    details = details_of(one)
    return shapes.Service(
        id=one.id,
        service=one.service,
        tags=one.tags,
        address=one.address if details.address_given else "",
        tagged_addresses=tagged_addresses(details),
        meta=one.meta,
        port=one.port,
        weights=shapes.Weights(one.weight, details.weight_warning),
        enable_tag_override=details.enable_tag_override,
        create_index=one.create_revision,
        modify_index=one.mod_revision,
    )


def service_node(agent: Agent, entry: Entry) -> shapes.ServiceNode:
    """An instance with its node, in one row."""
    one = service(entry.registered)
    at = node_of(agent, entry)
    return shapes.ServiceNode(
        id=at.id,
        node=at.node,
        address=at.address,
        datacenter=at.datacenter,
        tagged_addresses=at.tagged_addresses,
        node_meta=at.meta,
        service_id=one.id,
        service_name=one.service,
        service_tags=one.tags,
        service_address=one.address,
        service_tagged_addresses=one.tagged_addresses,
        service_meta=one.meta,
        service_port=one.port,
        service_weights=one.weights,
        service_enable_tag_override=one.enable_tag_override,
        create_index=one.create_index,
        modify_index=one.modify_index,
    )


def health_entry(agent: Agent, entry: Entry) -> shapes.HealthEntry:
    """An instance with its node and all checks that decide about it."""
    return shapes.HealthEntry(
        node=node_of(agent, entry),
        service=service(entry.registered),
        checks=(*itself.checks(agent, entry.registered.node), *deciding_checks(agent, entry)),
    )


# --- checks -----------------------------------------------------------------------------------------------------


def deciding_checks(agent: Agent, entry: Entry) -> list[shapes.Check]:
    """The checks that decide about an instance: its node's, then its own."""
    return [*node_checks(agent, entry.registered.node), *own_checks(agent, entry)]


def node_checks(agent: Agent, name: str) -> list[shapes.Check]:
    """The checks of a node itself."""
    entry = agent.catalogue.find(name, "")
    return [] if entry is None else own_checks(agent, entry)


def own_checks(agent: Agent, entry: Entry) -> list[shapes.Check]:
    """The checks of an instance, or of a node: those defined, those told, and what the registry itself found."""
    one = entry.registered
    details = details_of(one)
    defined = {check.name for check in one.checks}
    shown = [_check(agent, entry, check, details) for check in one.checks]
    told = agent.catalogue.checks.of(one.key)
    shown += [_told(agent, entry, name, record) for name, record in told.items() if name not in defined]
    if one.state != "up":
        shown.append(state(one))
    return shown


def every_check(agent: Agent) -> Iterable[shapes.Check]:
    """The checks of all nodes and instances, node by node."""
    for name in sorted({*agent.catalogue.nodes, agent.node}):
        yield from itself.checks(agent, name)
        yield from checks_on(agent, name)


def checks_on(agent: Agent, name: str) -> list[shapes.Check]:
    """The checks of a node and of all instances on it."""
    on_it = (check for entry in agent.catalogue.entries_on(name) for check in own_checks(agent, entry))
    return [*node_checks(agent, name), *on_it]


def check(agent: Agent, node_name: str, id_: str) -> shapes.Check | None:
    """The check that goes by a CheckID on a node."""
    found = agent.check(node_name, id_)
    entry = agent.catalogue.find(*found[0]) if found else None
    if entry is None:
        return None
    return next((one for one in own_checks(agent, entry) if one.check_id == id_), None)


def told(one: Instance, name: str, record: CheckRecord, details: CheckDetails, written: KeyValue) -> shapes.Check:
    """A check that others look after, as they told it."""
    return shapes.Check(
        node=one.node,
        check_id=name,
        name=details.name,
        status=record.status,
        notes=details.notes,
        output=record.output,
        service_id=one.id,
        service_name=one.service,
        service_tags=one.tags,
        type=details.kind,
        interval=str(details.definition.get("Interval", "")),
        timeout=str(details.definition.get("Timeout", "")),
        definition=details.definition,
        create_index=written.create_revision,
        modify_index=written.mod_revision,
    )


def _told(agent: Agent, entry: Entry, name: str, record: CheckRecord) -> shapes.Check:
    one = entry.registered
    details = told_details(record)
    if details is None:  # a verdict of the registry's own, such as a refused connection
        ours = OurCheck(name=name, kind="tcp", address=f"{one.address}:{one.port}")
        return _check(agent, entry, ours, details_of(one))
    written = agent.store.mvcc.get(keys.check(*one.key, name))
    assert written is not None
    return told(one, name, record, details, written)


def _check(agent: Agent, entry: Entry, check: OurCheck, details: Details) -> shapes.Check:
    one = entry.registered
    record = agent.catalogue.checks.one(one.key, check.name)
    written = agent.store.mvcc.get(keys.check(*one.key, check.name))
    known = details.checks.get(check.name)
    output = record.output if record else ""
    if check.kind == "ttl" and record is None:
        output = _TTL_EXPIRED
    probed = check.kind not in ("ttl", "alias")
    return shapes.Check(
        node=one.node,
        check_id=check_id(one, check.name),
        name=known.name if known else check.name,
        status=check_status(agent.catalogue, entry, check),
        notes=known.notes if known else "",
        output=output,
        service_id=one.id,
        service_name=one.service,
        service_tags=one.tags,
        type=check.kind,
        interval=format_duration(check.interval_s) if probed else "",
        timeout=format_duration(check.timeout_s) if probed else "",
        create_index=one.create_revision,
        modify_index=written.mod_revision if written else one.mod_revision,
    )


def state(one: Instance) -> shapes.Check:
    """The critical check that stands for the state that an instance or a node was set to."""
    if one.state == "draining":
        id_, name, notes = f"_service_draining:{one.id}", "Service Draining", "The service is shutting down."
    else:
        what, id_ = ("service", f"{SERVICE_MAINTENANCE}{one.id}") if one.id else ("node", NODE_MAINTENANCE)
        name = f"{what.capitalize()} Maintenance Mode"
        notes = details_of(one).maintenance_reason or _NO_REASON.format(what)
    return shapes.Check(
        node=one.node,
        check_id=id_,
        name=name,
        status="critical",
        notes=notes,
        output="",
        service_id=one.id,
        service_name=one.service,
        service_tags=one.tags,
        type="maintenance",
        create_index=one.create_revision,
        modify_index=one.mod_revision,
    )
