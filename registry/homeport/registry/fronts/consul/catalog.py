"""Reading services: which there are, and the health of one. Encoded once per change, however many ask."""

from __future__ import annotations

from typing import Final

from homeport.client.core.model import Check as OurCheck
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Entry
from homeport.registry.core.catalogue import Service as CatalogueService
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, Agent, node_id
from homeport.registry.fronts.consul.answers import YES, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.durations import format_duration
from homeport.registry.fronts.consul.registrations import (
    Details,
    check_id,
    check_status,
    details_of,
    tagged_addresses,
)

_SHAPES_KEPT_MAX: Final = 64  # answers kept per service: its tags combined in every way would be endless
_TTL_EXPIRED: Final = "TTL expired"
_NO_REASON: Final = "Maintenance mode is enabled for this service, but no reason was given."


def services(call: Call) -> Answer:
    """Every service with the tags of its instances."""
    agent = call.agent
    index, body = agent.services_shown
    if index != agent.catalogue.index:
        index, body = agent.services_shown = agent.catalogue.index, bodies.encode(agent.catalogue.tags())
    return Answer(body=body, index=index)


def health(call: Call) -> Answer:
    """The instances of a service with their checks; all of them, or those that pass and carry the tags."""
    agent = call.agent
    name = call.name
    service = agent.catalogue.services.get(name)
    if service is None:
        return Answer(body=b"[]", index=max(agent.catalogue.index_of(name), 1))
    tags = tuple(sorted({tag.lower() for tag in call.texts("tag")}))
    passing = call.flag("passing")
    shape = ("consul", passing, tags)
    if shape in service.answers or len(service.answers) < _SHAPES_KEPT_MAX:
        body = service.answer(shape, lambda it: _health(agent, it, passing, tags))
    else:
        body = _health(agent, service, passing, tags)
    return Answer(body=body, index=service.index)


def _health(agent: Agent, service: CatalogueService, passing: bool, tags: tuple[str, ...]) -> bytes:
    shown = []
    for key in sorted(service.entries):
        entry = service.entries[key]
        if passing and not (entry.seen.status == "passing" and entry.seen.state == "up"):
            continue
        if tags and not {tag.lower() for tag in entry.seen.tags}.issuperset(tags):
            continue
        shown.append(health_entry(agent, entry))
    return bodies.encode(shown)


def health_entry(agent: Agent, entry: Entry) -> shapes.HealthEntry:
    one = entry.registered
    address = agent.address if one.node == agent.node else one.address
    return shapes.HealthEntry(
        node=_node(one.node, address), service=service_of(entry), checks=tuple(checks_of(agent, entry))
    )


def own_node(agent: Agent) -> shapes.Node:
    """The agent's own node, which always exists."""
    return _node(agent.node, agent.address)


def register(call: Call) -> Answer:
    """Register the agent's own node as it is, which changes nothing; clients do so before they make a session."""
    asked: shapes.NodeDefinition = call.payload
    if not asked.node or not asked.address:
        raise Refusal(400, "Must provide node and address")
    if (asked.node, asked.address) != (call.agent.node, call.agent.address):
        raise Refusal(
            501, f"Only the agent's own node, {call.agent.node!r} at {call.agent.address}, can be registered yet"
        )
    if asked.service or asked.check or asked.checks or asked.node_meta or asked.tagged_addresses:
        raise Refusal(501, "Only a bare node can be registered here yet; register services with the agent")
    return YES


def _node(name: str, address: str) -> shapes.Node:
    return shapes.Node(
        id=node_id(name),
        node=name,
        address=address,
        datacenter=DATACENTER,
        tagged_addresses={"lan": address, "wan": address},
    )


def service_of(entry: Entry) -> shapes.Service:
    """An instance as registered."""
    one = entry.registered
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


def check_of(agent: Agent, check_id: str) -> shapes.Check | None:
    """The check of the agent's own node that goes by a CheckID."""
    found = agent.check(check_id)
    entry = agent.catalogue.find(*found[0]) if found else None
    if entry is None:
        return None
    return next((check for check in checks_of(agent, entry) if check.check_id == check_id), None)


def checks_of(agent: Agent, entry: Entry) -> list[shapes.Check]:
    """The checks of an instance as defined, then what the registry itself found or was told about it."""
    one = entry.registered
    details = details_of(one)
    defined = {check.name for check in one.checks}
    shown = [_check(agent, entry, check, details) for check in one.checks]
    for name in agent.catalogue.check_names(one.key):
        if name not in defined:  # a verdict of the registry's own, such as a refused connection
            check = OurCheck(name=name, kind="tcp", address=f"{one.address}:{one.port}")
            shown.append(_check(agent, entry, check, details))
    if one.state == "maintenance":
        id_ = f"_service_maintenance:{one.id}"
        shown.append(_told(entry, id_, "Service Maintenance Mode", details.maintenance_reason or _NO_REASON))
    elif one.state == "draining":
        id_ = f"_service_draining:{one.id}"
        shown.append(_told(entry, id_, "Service Draining", "The service is shutting down."))
    return shown


def _check(agent: Agent, entry: Entry, check: OurCheck, details: Details) -> shapes.Check:
    one = entry.registered
    record = agent.catalogue.check_record(one.key, check.name)
    written = agent.store.mvcc.get(keys.check(*one.key, check.name))
    known = details.checks.get(check.name)
    status = check_status(agent.catalogue, entry, check)
    output = record.output if record else ""
    if check.kind == "ttl" and record is None:
        output = _TTL_EXPIRED
    probed = check.kind != "ttl"
    return shapes.Check(
        node=one.node,
        check_id=check_id(one, check.name),
        name=known.name if known else check.name,
        status=status,
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


def _told(entry: Entry, id_: str, name: str, notes: str) -> shapes.Check:
    """A critical check that stands for a state the service was set to."""
    one = entry.registered
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
