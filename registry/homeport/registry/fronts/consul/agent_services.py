"""The agent's own view of its services: what is registered on this node, each with its health, and their maintenance.

A health answer says it twice, in its body and in its status: 200 passing, 429 warning, 503 worse, 404 unknown.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import SEVERITY, Status
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Entry
from homeport.registry.core.txn import Compare, Put, Txn
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, Agent
from homeport.registry.fronts.consul.answers import JSON, NOTHING, TEXT, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.catalog import checks_of
from homeport.registry.fronts.consul.registrations import EXTRA, details_of, tagged_addresses

HEALTH_STATUSES: Final[dict[Status, int]] = {"passing": 200, "warning": 429, "critical": 503, "maintenance": 503}
_RACES_MAX: Final = 16  # times a state is set anew because the registration changed meanwhile


def services(call: Call) -> Answer:
    """The services of this node by ID."""
    shown = {entry.registered.id: _service(entry) for entry in _own(call.agent)}
    return Answer(body=bodies.encode(shown))


def service(call: Call) -> Answer:
    """One service of this node."""
    shown = _service(_find(call))
    hashed = hashlib.blake2b(bodies.encode(shown), digest_size=8).hexdigest()
    one = shapes.HashedAgentService(**msgspec.structs.asdict(shown), content_hash=hashed)
    return Answer(body=bodies.encode(one), headers={"X-Consul-ContentHash": hashed})


def checks(call: Call) -> Answer:
    """The checks of this node's services by CheckID."""
    agent = call.agent
    shown = {check.check_id: check for entry in _own(agent) for check in checks_of(agent, entry)}
    return Answer(body=bodies.encode(shown))


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
    found = [entry for entry in _own(call.agent) if entry.registered.service == call.name]
    if not found:
        return _health(call, 404, f"ServiceName {call.name} Not Found", [])
    worst = max((_status(entry) for entry in found), key=SEVERITY.__getitem__)
    return _health(call, HEALTH_STATUSES[worst], worst, [_healthy(call.agent, entry) for entry in found])


async def maintenance(call: Call) -> Answer:
    """Put a service of this node in maintenance, or back; the reason is shown with the check that stands for it."""
    agent, key = call.agent, (call.agent.node, call.name)
    if "enable" not in call.values:
        raise Refusal(400, "Missing value for enable")
    on = call.flag("enable")
    for _ in range(_RACES_MAX):
        one = _find(call).registered
        standing = keys.instance(one.service, *key)
        found = agent.store.at_head(standing)
        if not found:
            continue  # it is moving to another name; its next revision says to which
        details = msgspec.structs.replace(details_of(one), maintenance_reason=call.text("reason") if on else "")
        changed = msgspec.structs.replace(
            one,
            state="maintenance" if on else "up" if one.state == "maintenance" else one.state,
            extra={**one.extra, EXTRA: wire.encode(details)},
            create_revision=0,
            mod_revision=0,
        )
        unchanged = Compare(standing, "mod", "=", one.mod_revision)
        put = Put(standing, wire.encode(changed), found[0].lease)
        if (await agent.store.commit(Txn((unchanged,), (put,)))).succeeded:
            return NOTHING
    raise Refusal(500, f"the service was changed by others {_RACES_MAX} times meanwhile; try again")


def _own(agent: Agent) -> list[Entry]:
    return [
        entry
        for _, service in sorted(agent.catalogue.services.items())
        for key, entry in sorted(service.entries.items())
        if key[0] == agent.node
    ]


def _find(call: Call) -> Entry:
    entry = call.agent.catalogue.find(call.agent.node, call.name)
    if entry is None:
        raise Refusal(404, f"unknown service ID: {call.name}")
    return entry


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
    return shapes.AgentHealth(aggregated_status=_status(entry), service=shown, checks=tuple(checks_of(agent, entry)))


def _health(call: Call, status: int, said: str, shown: shapes.AgentHealth | list[shapes.AgentHealth]) -> Answer:
    if call.text("format") == "text":
        return Answer(status=status, body=said.encode(), content_type=TEXT)
    return Answer(status=status, body=bodies.encode(shown), content_type=JSON)
