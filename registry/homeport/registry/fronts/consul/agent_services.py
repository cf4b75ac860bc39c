"""The agent's own view of its services: what is registered on this node, each with its health, and their maintenance.

A health answer says it twice, in its body and in its status: 200 passing, 429 warning, 503 worse, 404 unknown.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.client.core.model import SEVERITY, Status
from homeport.registry.core import catalogue_verbs
from homeport.registry.core.entries import Entry
from homeport.registry.core.overlay import Overlay
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, Agent
from homeport.registry.fronts.consul.answers import CONTENT_HASH, JSON, NOTHING, TEXT, Answer, Refusal, content_hash
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.listing import listed_by_name
from homeport.registry.fronts.consul.registering import decide, ensure_node, set_maintenance
from homeport.registry.fronts.consul.registrations import details_of, tagged_addresses
from homeport.registry.fronts.consul.rows import checks_on, deciding_checks
from homeport.registry.fronts.consul.waiting import Part, Resource, Topic

HEALTH_STATUSES: Final[dict[Status, int]] = {"passing": 200, "warning": 429, "critical": 503, "maintenance": 503}


def services(call: Call) -> Answer:
    """The services of this node by ID."""
    shown = {entry.registered.id: _service(entry) for entry in call.agent.catalogue.entries_on(call.agent.node)}
    return listed_by_name(call, shown)


def service(call: Call) -> Answer:
    """One service of this node, with a hash of it that can be waited with."""
    shown = _service(_find(call))
    hashed = content_hash(Answer(body=bodies.encode(shown)))
    one = shapes.HashedAgentService(**msgspec.structs.asdict(shown), content_hash=hashed)
    return Answer(body=bodies.encode(one), headers={CONTENT_HASH: hashed})


def one_node(call: Call) -> Resource:
    """What a service of this node is waited for by: anything that changes on the node."""
    return Part(call.agent, Topic("node", call.agent.node))


def checks(call: Call) -> Answer:
    """The checks of this node and its services by CheckID."""
    shown = {check.check_id: check for check in checks_on(call.agent, call.agent.node)}
    return listed_by_name(call, shown)


def health_by_id(call: Call) -> Answer:
    """The health of one service of this node."""
    entry = call.agent.catalogue.find(call.agent.node, call.name)
    if entry is None:
        missing = shapes.AgentHealth(aggregated_status="critical", service=None, checks=None)
        return _health(call, 404, f"ServiceId {call.name} not found", missing)
    shown = _healthy(call.agent, entry)
    return _health(call, HEALTH_STATUSES[_status(entry)], shown.aggregated_status, shown)


def health_by_name(call: Call) -> Answer:
    """The health of all services of this node that have a name; the worst of them decides the status."""
    on_it = call.agent.catalogue.entries_on(call.agent.node)
    found = [entry for entry in on_it if entry.registered.service == call.name]
    if not found:
        return _health(call, 404, f"ServiceName {call.name} Not Found", [])
    worst = max((_status(entry) for entry in found), key=SEVERITY.__getitem__)
    return _health(call, HEALTH_STATUSES[worst], worst, [_healthy(call.agent, entry) for entry in found])


async def maintenance(call: Call) -> Answer:
    """Put a service of this node in maintenance, or back; the reason is shown with the check that stands for it."""
    on = _enable(call)

    def attempt(overlay: Overlay) -> None:
        standing = catalogue_verbs.find(overlay, call.agent.node, call.name)
        if standing is None:
            raise _unknown(call.name)
        set_maintenance(overlay, standing, on=on, reason=call.text("reason"))

    await decide(call.agent, attempt)
    return NOTHING


async def node_maintenance(call: Call) -> Answer:
    """Put this node in maintenance with all that is on it, or back."""
    on = _enable(call)

    def attempt(overlay: Overlay) -> None:
        if on or catalogue_verbs.find(overlay, call.agent.node, "") is not None:
            standing = ensure_node(call.agent, overlay, call.agent.node)
            set_maintenance(overlay, standing, on=on, reason=call.text("reason"))

    await decide(call.agent, attempt)
    return NOTHING


def _enable(call: Call) -> bool:
    if "enable" not in call.values:
        raise Refusal(400, "Missing value for enable")
    return call.flag("enable")


def _find(call: Call) -> Entry:
    entry = call.agent.catalogue.find(call.agent.node, call.name)
    if entry is None:
        raise _unknown(call.name)
    return entry


def _unknown(id_: str) -> Refusal:
    return Refusal(404, f"unknown service ID: {id_}")


def _service(entry: Entry) -> shapes.AgentService:
    one = entry.registered
    details = details_of(one)
    return shapes.AgentService(
        id=one.id,
        service=one.service,
        tags=one.tags,
        meta=one.meta,
        port=one.port,
        address=one.address if details.address_given else "",
        tagged_addresses=tagged_addresses(details),
        weights=shapes.Weights(one.weight, details.weight_warning),
        enable_tag_override=details.enable_tag_override,
        datacenter=DATACENTER,
    )


def _status(entry: Entry) -> Status:
    """A service that is being drained counts as critical, as its check says."""
    return "critical" if entry.registered.state == "draining" else entry.seen.status


def _healthy(agent: Agent, entry: Entry) -> shapes.AgentHealth:
    shown = _service(entry)
    return shapes.AgentHealth(
        aggregated_status=_status(entry), service=shown, checks=tuple(deciding_checks(agent, entry))
    )


def _health(call: Call, status: int, said: str, shown: shapes.AgentHealth | list[shapes.AgentHealth]) -> Answer:
    if call.text("format") == "text":
        return Answer(status=status, body=said.encode(), content_type=TEXT)
    return Answer(status=status, body=bodies.encode(shown), content_type=JSON)
