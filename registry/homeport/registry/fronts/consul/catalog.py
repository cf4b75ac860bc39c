"""Reading the catalogue: its nodes, its services, and the health of both. Encoded once per change where many ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from homeport.registry.core.entries import Entry
from homeport.registry.fronts.consul import bodies, itself, rows, shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.listing import chosen, has_meta, listed, nearest, node_meta
from homeport.registry.fronts.consul.waiting import Nothing, Part, Resource, Topic

_SHAPES_KEPT_MAX: Final = 64  # answers kept per service: its tags combined in every way would be endless

_PASSING: Final = {"passing": True}
_PLAIN: Final = (("consul", "passing"), ("consul", "all"))

# --- what can be waited for -------------------------------------------------------------------------------------


def one_service(call: Call) -> Resource:
    return Part(call.agent, Topic("service", call.name))


def one_node(call: Call) -> Resource:
    return Part(call.agent, Topic("node", call.name))


def all_nodes(call: Call) -> Resource:
    return Part(call.agent, Topic("nodes"))


def all_checks(call: Call) -> Resource:
    return Part(call.agent, Topic("checks"))


def all_services(call: Call) -> Resource:
    """The list of services; chosen by more than their names, all that is said of instances and nodes counts."""
    return Part(call.agent, Topic("instances" if _chooses(call) else "services"))


def nothing(_call: Call) -> Resource:
    return Nothing()


# --- nodes ------------------------------------------------------------------------------------------------------


def nodes(call: Call) -> Answer:
    """Every node."""
    wanted = node_meta(call)
    found = [node for node in rows.nodes(call.agent) if has_meta(node.meta, wanted)]
    near = nearest(call)
    return listed(call, sorted(found, key=lambda node: node.node != near), all_nodes(call).index())


def node(call: Call) -> Answer:
    """A node and what is on it by ID; null if there is no such node."""
    index = one_node(call).index()
    at = rows.node(call.agent, call.name)
    if at is None:
        return Answer(body=b"null", index=index)
    services = {service.id: service for service in chosen(call, _services_on(call))}
    return Answer(body=bodies.encode(shapes.NodeServices(node=at, services=services)), index=index)


def node_services(call: Call) -> Answer:
    """A node and the list of what is on it."""
    at = rows.node(call.agent, call.name)
    shown = shapes.NodeServiceList(node=at, services=chosen(call, _services_on(call)))
    return Answer(body=bodies.encode(shown), index=one_node(call).index())


def node_checks(call: Call) -> Answer:
    """The checks of a node and of all that is on it."""
    agent, name = call.agent, call.name
    return listed(call, [*itself.checks(agent, name), *rows.checks_on(agent, name)], one_node(call).index())


def _services_on(call: Call) -> Iterable[shapes.Service]:
    agent = call.agent
    ours = itself.instances(agent) if call.name == agent.node else []
    return (rows.service(entry.registered) for entry in (*ours, *agent.catalogue.entries_on(call.name)))


# --- services ---------------------------------------------------------------------------------------------------


def services(call: Call) -> Answer:
    """Every service with the tags of its instances."""
    agent = call.agent
    if _chooses(call):
        tags: dict[str, set[str]] = {}
        names = sorted({*agent.catalogue.services, itself.SERVICE})
        every = (entry for name in names for entry in _in_order(agent, name))
        wanted = node_meta(call)
        found = (rows.service_node(agent, entry) for entry in every)
        for row in chosen(call, (row for row in found if has_meta(row.node_meta, wanted))):
            tags.setdefault(row.service_name, set()).update(row.service_tags)
        body = bodies.encode({name: sorted(of_it) for name, of_it in tags.items()})
        return Answer(body=body, index=all_services(call).index())
    index, body = agent.services_shown
    if index != agent.catalogue.index:
        tags_of = {itself.SERVICE: (), **agent.catalogue.tags()}
        index, body = agent.services_shown = agent.catalogue.index, bodies.encode(dict(sorted(tags_of.items())))
    return Answer(body=body, index=index)


def service(call: Call) -> Answer:
    """The instances of a service, each with its node in one row."""
    found = (rows.service_node(call.agent, entry) for entry in _instances(call))
    return listed(call, found, one_service(call).index())


def service_checks(call: Call) -> Answer:
    """The checks of a service's instances, without those of their nodes."""
    found = (check for entry in _instances(call) for check in rows.own_checks(call.agent, entry))
    return listed(call, found, one_service(call).index())


def health(call: Call) -> Answer:
    """The instances of a service with their checks; all of them, or those that pass."""
    agent = call.agent
    found = agent.catalogue.services.get(call.name)
    if call.name == itself.SERVICE:  # not kept: its own node's maintenance is no change of the others
        return Answer(body=_health(call), index=one_service(call).index())
    if found is None:
        return Answer(body=b"[]", index=one_service(call).index())
    shape = _shape(call)
    if shape in found.answers or len(found.answers) < _SHAPES_KEPT_MAX:
        body = found.answer(shape, lambda _: _health(call))
    else:
        body = _health(call)
    return Answer(body=body, index=found.index)


def _shape(call: Call) -> object:
    """Equal for calls that are answered the same as long as the service does not change."""
    values = call.values
    if not values or values == _PASSING:  # what nearly everybody asks for
        return _PLAIN[not values]
    return ("consul", call.flag("passing"), _tags(call), node_meta(call), nearest(call), call.filter)


def _health(call: Call) -> bytes:
    passing = call.flag("passing")
    shown = (
        rows.health_entry(call.agent, entry)
        for entry in _instances(call)
        if not passing or (entry.seen.status == "passing" and entry.seen.state == "up")
    )
    return bodies.encode(chosen(call, shown))


def checks_in_state(call: Call) -> Answer:
    """Every check that has a status, or with `any` every check."""
    agent, wanted, state = call.agent, node_meta(call), call.name
    found = [check for check in rows.every_check(agent) if state in ("any", check.status)]
    if wanted:
        meta = {node.node: node.meta for node in rows.nodes(agent)}
        found = [check for check in found if has_meta(meta.get(check.node, {}), wanted)]
    near = nearest(call)
    return listed(call, sorted(found, key=lambda check: check.node != near), all_checks(call).index())


def none_of_them(call: Call) -> Answer:
    """The proxies, gateways and mesh-capable instances of a service: there is no service mesh of Consul's kind."""
    return listed(call, (), nothing(call).index())


# --- choosing ---------------------------------------------------------------------------------------------------


def _instances(call: Call) -> list[Entry]:
    """The instances of the service that is asked for: those with the tags and on nodes with the metadata asked for."""
    agent = call.agent
    entries = _in_order(agent, call.name)
    if tags := _tags(call):
        entries = [entry for entry in entries if {tag.lower() for tag in entry.seen.tags}.issuperset(tags)]
    if wanted := node_meta(call):
        entries = [entry for entry in entries if has_meta(_node_meta_of(agent, entry), wanted)]
    if near := nearest(call):
        entries.sort(key=lambda entry: entry.registered.node != near)
    return entries


def _in_order(agent: Agent, name: str) -> list[Entry]:
    """All instances of a service."""
    service = agent.catalogue.services.get(name)
    entries = [service.entries[key] for key in sorted(service.entries)] if service else []
    return [*itself.instances(agent), *entries] if name == itself.SERVICE else entries


def _node_meta_of(agent: Agent, entry: Entry) -> dict[str, str]:
    node = agent.catalogue.find(entry.registered.node, "")
    return node.registered.meta if node else {}


def _tags(call: Call) -> tuple[str, ...]:
    """The tags that instances must have, all of them, in any case."""
    return tuple(sorted({tag.lower() for tag in call.texts("tag")}))


def _chooses(call: Call) -> bool:
    """Whether services are chosen by more than being there."""
    return "node-meta" in call.values or bool(call.filter)
