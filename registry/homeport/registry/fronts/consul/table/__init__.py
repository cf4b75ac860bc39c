"""The table: every endpoint of the HTTP API, and what each parameter means. Adding an endpoint is adding a row.

From a row come its route, the decoding of its parameters and body, whether it can block, who may call it, its numbers
in the metrics and its line in docs/consul.md (`documentation.py`, which a test holds the page to). The rows stand by
what they are about: `agent.py`, `catalogue.py`, `keys.py`, `server.py`; how a row is written, in `rows.py`.
"""

from __future__ import annotations

import functools
from typing import Final

from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import Call, Endpoint
from homeport.registry.fronts.consul.openapi import description
from homeport.registry.fronts.consul.table.agent import AGENT
from homeport.registry.fronts.consul.table.catalogue import CATALOGUE
from homeport.registry.fronts.consul.table.keys import KEYS
from homeport.registry.fronts.consul.table.rows import EVERY
from homeport.registry.fronts.consul.table.server import SERVER

__all__ = ["EVERY", "TABLE"]


@functools.cache
def _description() -> bytes:
    return bodies.encode(description(TABLE))


def _openapi(_call: Call) -> Answer:
    return Answer(body=_description())


_ITSELF: Final = Endpoint(
    method="GET",
    path="/v1/openapi.json",
    summary="this API as an OpenAPI 3.1 description",
    view=_openapi,
    answers=dict[str, object],
    access="open",
    support="differs",
    note="Homeport's own; Consul has none",
)

TABLE: Final[tuple[Endpoint, ...]] = (*AGENT, *CATALOGUE, *KEYS, *SERVER, _ITSELF)
