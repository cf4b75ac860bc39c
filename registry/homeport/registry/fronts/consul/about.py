"""What the registry says of itself: to Consul's clients, to operators, to load balancers.

It is a cluster of one, and says so: its only member, its only server, its own leader.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.client.core.messages import Explain
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, VERSION, Agent, node_id
from homeport.registry.fronts.consul.answers import TEXT, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.itself import RPC_PORT
from homeport.registry.fronts.metrics import exposition, telemetry

_SERF_PORT: Final = 8301  # where Consul's agents gossip; nothing listens there, but clients expect a number
_SERF_WAN_PORT: Final = 8302
_ALIVE: Final = 1  # as Serf numbers the states of members


def agent_self(call: Call) -> Answer:
    agent = call.agent
    return Answer(
        body=bodies.encode(
            shapes.AgentSelf(
                config={
                    "Datacenter": DATACENTER,
                    "PrimaryDatacenter": DATACENTER,
                    "NodeName": agent.node,
                    "NodeID": node_id(agent.node),
                    "Version": VERSION,
                    "Revision": "",
                    "Server": True,
                    "AdvertiseAddr": agent.address,
                },
                member=_member(agent),
                stats={
                    "agent": {"services": str(len(agent.catalogue.entries_on(agent.node)))},
                    "consul": {
                        "known_datacenters": "1",
                        "leader": "true",
                        "leader_addr": _server(agent),
                        "server": "true",
                    },
                },
                xds={"SupportedProxies": {}},
            )
        )
    )


def version(_call: Call) -> Answer:
    return Answer(body=bodies.encode(shapes.AgentVersion(human_version=VERSION)))


def members(call: Call) -> Answer:
    """The members of the cluster; those of other datacenters, if there were any, would come with `wan`."""
    member = _member(call.agent)
    if call.flag("wan"):
        member = msgspec.structs.replace(member, name=f"{member.name}.{DATACENTER}", port=_SERF_WAN_PORT)
    return Answer(body=bodies.encode([member]))


def _member(agent: Agent) -> shapes.Member:
    return shapes.Member(
        name=agent.node,
        addr=agent.address,
        port=_SERF_PORT,
        tags={"build": VERSION, "dc": DATACENTER, "id": node_id(agent.node), "port": str(RPC_PORT), "role": "consul"},
        status=_ALIVE,
    )


def force_leave(call: Call) -> Answer:
    """There is nobody to be made to leave, and that is the answer."""
    if call.name in (call.agent.node, f"{call.agent.node}.{DATACENTER}"):
        raise Refusal(400, f"{call.name!r} is this registry itself, its only member: stop its process instead")
    raise Refusal(500, f"agent: No node found with name {call.name!r}")


def metrics(call: Call) -> Answer:
    """Its numbers, as JSON or for Prometheus."""
    asked = call.text("format")
    if asked not in ("", "prometheus"):
        raise Refusal(400, f"Invalid format: {asked!r}; allowed: prometheus, or none for JSON")
    return exposition(call) if asked else Answer(body=bodies.encode(telemetry(call.agent)))


def leader(call: Call) -> Answer:
    return Answer(body=bodies.encode(_server(call.agent)))


def peers(call: Call) -> Answer:
    return Answer(body=bodies.encode([_server(call.agent)]))


def datacenters(_call: Call) -> Answer:
    return Answer(body=bodies.encode([DATACENTER]))


def raft_configuration(call: Call) -> Answer:
    """The servers of the quorum: this one."""
    agent = call.agent
    one = shapes.RaftServer(id=node_id(agent.node), node=agent.node, address=_server(agent))
    return Answer(body=bodies.encode(shapes.RaftConfiguration(servers=(one,))))


def autopilot_health(call: Call) -> Answer:
    """Whether the store takes writes; as Consul's does, it says 429 where it does not."""
    agent = call.agent
    healthy = agent.store.read_only is None
    one = shapes.AutopilotServer(
        id=node_id(agent.node),
        name=agent.node,
        address=_server(agent),
        version=VERSION,
        last_index=agent.store.mvcc.revision,
        healthy=healthy,
    )
    health = shapes.AutopilotHealth(healthy=healthy, failure_tolerance=0, servers=(one,))
    return Answer(status=200 if healthy else 429, body=bodies.encode(health))


def usage(call: Call) -> Answer:
    """How much is registered; nothing is of the kinds that Connect counts."""
    catalogue = call.agent.catalogue
    writable = call.agent.operations.store.read_only is None
    instances = sum(len(service.entries) for service in catalogue.services.values())
    kinds = ("connect-native", "connect-proxy", "ingress-gateway", "mesh-gateway", "terminating-gateway")
    counted = shapes.Usage(
        nodes=len({*catalogue.nodes, call.agent.node}),
        services=len(catalogue.services),
        service_instances=instances,
        billable_service_instances=instances,
        connect_service_instances=dict.fromkeys(kinds, 0),
    )
    return Answer(body=bodies.encode(shapes.OperatorUsage(usage={DATACENTER: counted}, known_leader=writable)))


def _server(agent: Agent) -> str:
    return f"{agent.address}:{RPC_PORT}"


def root(_call: Call) -> Answer:
    """What this is, as Consul says at the same place; people check that a registry is up by asking for it."""
    return Answer(body=b"Homeport: a registry with Consul's HTTP API under /v1\n", content_type=TEXT)


def healthz(_call: Call) -> Answer:
    """Whether the process answers at all."""
    return Answer(body=b"ok\n", content_type=TEXT)


class Told(msgspec.Struct, frozen=True):
    """Whether an instance takes new traffic, and why."""

    node: str
    id: str
    available: bool
    reasons: tuple[str, ...]


def explain(call: Call) -> Answer:
    """Why each instance of a service, or the one asked for, is in or out, in words."""
    service = call.agent.catalogue.services.get(call.name)
    wanted = call.text("id")
    found = []
    for node, id_ in sorted(service.entries) if service is not None else ():
        if wanted in ("", id_):
            explained = call.agent.operations.explain(Explain(id=id_, node=node), call.agent.peer())
            found.append(Told(node, id_, explained.available, explained.reasons))
    return Answer(status=200 if found else 404, body=bodies.encode(found))


def readyz(call: Call) -> Answer:
    """Whether to send requests here, or writes; the front refuses this itself once it is closing."""
    read_only = call.agent.store.read_only
    if read_only is None:
        return Answer(body=b"ready\n", content_type=TEXT)
    if call.flag("writable"):
        return Answer(status=503, body=f"read only: {read_only}\n".encode(), content_type=TEXT)
    return Answer(body=f"ready, read only: {read_only}\n".encode(), content_type=TEXT)
