"""The agent's services and their checks: registering, deregistering, reporting."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from homeport.client.core.messages import Deregister, Register, ReportCheck
from homeport.client.core.model import Status
from homeport.registry.fronts.consul.answers import NOTHING, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.registrations import details_of, to_instance

_REPORTED: Final[dict[str, Status]] = {"passing": "passing", "warning": "warning", "critical": "critical"}


async def register(call: Call) -> Answer:
    """Register a service with its checks, in place of what had its ID; a state it was set to stays."""
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
    for check in instance.checks:
        if agent.check_is_of_another(check.name, instance.key):
            raise Refusal(400, f"Invalid check: CheckID {check.name!r} belongs to another service")
    await agent.operations.register(Register(instance), agent.peer())
    return NOTHING


async def deregister(call: Call) -> Answer:
    agent = call.agent
    done = await agent.operations.deregister(Deregister(call.name), agent.peer())
    if not done.applied:
        raise Refusal(
            404, f"Unknown service ID {call.name!r}. Ensure that the service ID is passed, not the service name."
        )
    return NOTHING


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
    found = agent.check(call.name)
    if found is None:
        raise Refusal(404, f"Unknown check ID {call.name!r}. Ensure that the check ID is passed, not the check name.")
    (node, id_), name = found
    await agent.operations.report_check(ReportCheck(id_, name, status, node, output), agent.peer())
    return NOTHING
