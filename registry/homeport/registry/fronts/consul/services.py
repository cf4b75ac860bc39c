"""The agent's services and checks: registering, deregistering, reporting."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.messages import Deregister, Register, ReportCheck
from homeport.client.core.model import Status, validate_instance
from homeport.registry.core import catalogue_verbs, keys
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.overlay import Overlay
from homeport.registry.fronts.consul import shapes
from homeport.registry.fronts.consul.answers import NOTHING, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.registering import (
    decide,
    delete_check,
    ensure_node,
    find_check,
    is_maintenance,
    with_details,
)
from homeport.registry.fronts.consul.registrations import details_of, to_check, to_instance
from homeport.registry.store.contract import lease_put

_REPORTED: Final[dict[str, Status]] = {"passing": "passing", "warning": "warning", "critical": "critical"}


async def register(call: Call) -> Answer:
    """Register a service with its checks, in place of what had its ID; a state it was set to stays.

    So do its tags where they may be overridden: whoever changed them meant it.
    """
    agent = call.agent
    definition = call.payload
    standing = agent.catalogue.find(agent.node, definition.id or definition.name)
    instance = to_instance(
        definition,
        node=agent.node,
        node_address=agent.address,
        state=standing.registered.state if standing else "up",
        maintenance_reason=details_of(standing.registered).maintenance_reason if standing else "",
    )
    if standing is not None and definition.enable_tag_override and standing.registered.service == instance.service:
        instance = msgspec.structs.replace(instance, tags=standing.registered.tags)
    for check in instance.checks:
        if agent.check_is_of_another(check.name, instance.key):
            raise Refusal(400, f"Invalid check: CheckID {check.name!r} belongs to another service")
    await agent.operations.registrations.register(Register(instance), agent.peer())
    return NOTHING


async def deregister(call: Call) -> Answer:
    agent = call.agent
    done = await agent.operations.registrations.deregister(Deregister(call.name), agent.peer())
    if not done.applied:
        raise Refusal(
            404, f"Unknown service ID {call.name!r}. Ensure that the service ID is passed, not the service name."
        )
    return NOTHING


async def register_check(call: Call) -> Answer:
    """Add a check to this node, or to a service on it, in place of the one that had its CheckID."""
    agent = call.agent
    asked: shapes.AgentCheckDefinition = call.payload
    name = asked.check_id or asked.id or asked.name
    if not name:
        raise Refusal(400, "Missing check name")
    check, details = to_check(asked, name)
    if check.deregister_after_s and not asked.service_id:
        raise Refusal(400, "DeregisterCriticalServiceAfter needs a ServiceID: it is a service that is deregistered")

    def attempt(overlay: Overlay) -> None:
        owner = find_check(agent, overlay, agent.node, name)
        if owner is not None and owner[0] != asked.service_id:
            raise Refusal(400, f"Invalid check: CheckID {name!r} belongs to another service, or to the node")
        if is_maintenance(asked.service_id, name):
            raise Refusal(400, f"Invalid check: CheckID {name!r} stands for maintenance")
        if asked.service_id:
            standing = catalogue_verbs.find(overlay, agent.node, asked.service_id)
        else:
            standing = ensure_node(agent, overlay, agent.node)
        if standing is None:
            raise Refusal(404, f"ServiceID {asked.service_id!r} does not exist")
        old = details_of(standing.instance)
        with_it = with_details(standing.instance, msgspec.structs.replace(old, checks={**old.checks, name: details}))
        others = tuple(one for one in with_it.checks if one.name != name)
        new = msgspec.structs.replace(with_it, checks=(*others, check))
        if check in standing.instance.checks and with_it == standing.instance:
            return  # it runs already
        validate_instance(msgspec.structs.replace(new, service=new.service or "node", id=new.id or "node"))
        catalogue_verbs.put(overlay, new)
        if check.kind == "ttl" and check not in standing.instance.checks:
            lease = agent.store.new_lease()
            overlay.grant(lease_put(lease, check.ttl_s))
            key = keys.check(agent.node, asked.service_id, name)
            overlay.put(key, wire.encode(CheckRecord(check.initial)), lease)

    await decide(agent, attempt)
    return NOTHING


async def deregister_check(call: Call) -> Answer:
    """Remove the check that goes by a CheckID on this node."""

    def attempt(overlay: Overlay) -> None:
        if not delete_check(call.agent, overlay, call.agent.node, call.name):
            raise _unknown_check(call.name)

    await decide(call.agent, attempt)
    return NOTHING


def _unknown_check(id_: str) -> Refusal:
    return Refusal(404, f"Unknown check ID {id_!r}. Ensure that the check ID is passed, not the check name.")


def report(status: Status) -> Callable[[Call], Coroutine[Any, Any, Answer]]:
    """The view that reports a ttl check with this status and the `note` as its output."""

    async def view(call: Call) -> Answer:
        return await _report(call, status, call.text("note"))

    return view


async def update(call: Call) -> Answer:
    """Report a ttl check with the status and output of the body."""
    status = _REPORTED.get(call.payload.status)
    if status is None:
        raise Refusal(400, f"Invalid check status: {call.payload.status!r} must be 'passing', 'warning' or 'critical'")
    return await _report(call, status, call.payload.output)


async def _report(call: Call, status: Status, output: str) -> Answer:
    agent = call.agent
    found = agent.check(agent.node, call.name)
    if found is None:
        raise _unknown_check(call.name)
    (node, id_), name = found
    await agent.operations.registrations.report_check(ReportCheck(id_, name, status, node, output), agent.peer())
    return NOTHING
