"""What the registry says of itself: to Consul's clients, to load balancers."""

from __future__ import annotations

from typing import Final

from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import DATACENTER, VERSION, node_id
from homeport.registry.fronts.consul.answers import TEXT, Answer
from homeport.registry.fronts.consul.calls import Call

_SERF_PORT: Final = 8301  # where Consul's agents gossip; nothing listens there, but clients expect a number
_RPC_PORT: Final = 8300
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
                member={
                    "Name": agent.node,
                    "Addr": agent.address,
                    "Port": _SERF_PORT,
                    "Tags": {"dc": DATACENTER, "role": "consul", "id": node_id(agent.node)},
                    "Status": _ALIVE,
                },
            )
        )
    )


def leader(call: Call) -> Answer:
    return Answer(body=bodies.encode(f"{call.agent.address}:{_RPC_PORT}"))


def healthz(_call: Call) -> Answer:
    """Whether the process answers at all."""
    return Answer(body=b"ok\n", content_type=TEXT)


def readyz(call: Call) -> Answer:
    """Whether to send requests here; the front refuses this itself once it is closing."""
    read_only = call.agent.store.read_only
    text = "ready\n" if read_only is None else f"ready, read only: {read_only}\n"
    return Answer(body=text.encode(), content_type=TEXT)
