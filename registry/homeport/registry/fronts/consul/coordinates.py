"""Network coordinates: every node at the same place, which is true of one site as far as anybody can tell.

Consul's are made of round trips that its agents measure between them. There are no agents here; clients that sort by
distance find all of it equal.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.agent import DATACENTER, Agent
from homeport.registry.fronts.consul.answers import Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.catalog import all_nodes, one_node

_DIMENSIONS: Final = 8  # of Serf's coordinates
_ERROR_MAX: Final = 1.5  # what Serf starts with: nothing is known
_HEIGHT_MIN: Final = 1e-5


class Coordinate(msgspec.Struct, frozen=True, rename="pascal"):
    vec: tuple[float, ...] = (0.0,) * _DIMENSIONS
    error: float = _ERROR_MAX
    adjustment: float = 0.0
    height: float = _HEIGHT_MIN


class NodeCoordinate(msgspec.Struct, frozen=True, rename="pascal"):
    node: str
    segment: str = ""
    coord: Coordinate = Coordinate()


class DatacenterCoordinates(msgspec.Struct, frozen=True, rename="pascal"):
    datacenter: str
    area_id: str = msgspec.field(name="AreaID")
    coordinates: list[NodeCoordinate]


def nodes(call: Call) -> Answer:
    """Every node's."""
    return Answer(
        body=bodies.encode([NodeCoordinate(name) for name in _names(call.agent)]), index=all_nodes(call).index()
    )


def node(call: Call) -> Answer:
    """One node's, in a list."""
    if call.name not in _names(call.agent):
        raise Refusal(404, f"There is no node {call.name!r}")
    return Answer(body=bodies.encode([NodeCoordinate(call.name)]), index=one_node(call).index())


def datacenters(call: Call) -> Answer:
    """The servers', by datacenter: there is one of each."""
    server = NodeCoordinate(call.agent.node)
    return Answer(body=bodies.encode([DatacenterCoordinates(DATACENTER, "wan", [server])]))


def _names(agent: Agent) -> list[str]:
    return sorted({*agent.catalogue.nodes, agent.node})
