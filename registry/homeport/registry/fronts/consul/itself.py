"""What the catalogue shows of the registry itself, as Consul's servers show themselves: the service `consul` on the
agent's own node, and that node's check `serfHealth`. Clients look for both, and take a datacenter without them for one
that is not up.

Neither is stored, and only this front knows of them: they are so as long as anybody answers. Whoever registers the like
under the same name and ID takes their place.
"""

from __future__ import annotations

from typing import Final

from homeport.client.core import wire
from homeport.client.core.model import Instance
from homeport.registry.core.entries import Entry
from homeport.registry.fronts.consul import shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.registrations import EXTRA, Details

SERVICE: Final = "consul"
SERF_HEALTH: Final = "serfHealth"  # the CheckID; what it is about is called as in Consul, though nothing gossips
RPC_PORT: Final = 8300  # of Consul's servers, and of this registry unless told otherwise
_EXTRA: Final = {EXTRA: wire.encode(Details(address_given=False))}
_ALWAYS: Final = 1  # the revision that they are of


def instances(agent: Agent) -> list[Entry]:
    """The registry as an instance of the service `consul`, unless another stands in its place."""
    if agent.catalogue.find(agent.node, SERVICE) is not None:
        return []
    node = agent.catalogue.nodes.get(agent.node)
    one = Instance(
        service=SERVICE,
        id=SERVICE,
        node=agent.node,
        address=agent.address,
        port=RPC_PORT,
        status=node.status if node else "passing",
        extra=_EXTRA,
        create_revision=_ALWAYS,
        mod_revision=_ALWAYS,
    )
    return [Entry(one, 0, one)]


def checks(agent: Agent, node: str) -> list[shapes.Check]:
    """The check of the agent's own node, unless another stands in its place; of other nodes there is none."""
    if node != agent.node or agent.check(node, SERF_HEALTH) is not None:
        return []
    return [
        shapes.Check(
            node=node,
            check_id=SERF_HEALTH,
            name="Serf Health Status",
            status="passing",
            notes="",
            output="Agent alive and reachable",
            service_id="",
            service_name="",
            service_tags=(),
            type="",
            create_index=_ALWAYS,
            modify_index=_ALWAYS,
        )
    ]
