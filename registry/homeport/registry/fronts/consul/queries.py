"""Prepared queries: kept, shown, and asked by id or name."""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.registry.core import keys
from homeport.registry.core.queries import Dns, Query
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.access import Caller, authorize
from homeport.registry.fronts.consul.agent import DATACENTER
from homeport.registry.fronts.consul.answers import NOTHING, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.durations import parse_duration
from homeport.registry.fronts.consul.listing import source
from homeport.registry.fronts.consul.rows import health_entry
from homeport.registry.fronts.consul.waiting import Keys, Resource


class QueryId(msgspec.Struct, frozen=True, rename="pascal"):
    id: str = msgspec.field(name="ID")


class Executed(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a query came to."""

    service: str
    nodes: list[shapes.HealthEntry]
    dns: Dns = msgspec.field(name="DNS")
    datacenter: str = DATACENTER
    failovers: int = 0


class Explained(msgspec.Struct, frozen=True, rename="pascal"):
    query: Query


async def create(call: Call) -> Answer:
    """Keep a query under a new id."""
    if call.payload.id:
        raise Refusal(400, "ID must be empty when creating a new prepared query")
    query = msgspec.structs.replace(_valid(call), id=call.agent.new_id())
    await call.agent.operations.queries.keep(query, new=True)
    return Answer(body=bodies.encode(QueryId(query.id)))


async def update(call: Call) -> Answer:
    """Put another query in the place of one."""
    query = msgspec.structs.replace(_valid(call), id=call.name)
    await call.agent.operations.queries.keep(query, new=False)
    return NOTHING


async def delete(call: Call) -> Answer:
    await call.agent.operations.queries.delete(call.name)
    return NOTHING


def every(call: Call) -> Answer:
    shown = call.agent.operations.queries.every()
    return Answer(body=bodies.encode(shown), index=everything(call).index())


def one(call: Call) -> Answer:
    shown = [call.agent.operations.queries.find(call.name)]
    return Answer(body=bodies.encode(shown), index=resource(call).index())


def execute(call: Call) -> Answer:
    """The instances that the query admits."""
    agent = call.agent
    done = agent.operations.queries.execute(
        call.name,
        agent.rng,
        near=call.text("near"),
        source=source(call),
        limit=call.number("limit") or 0,
    )
    nodes = [health_entry(agent, entry) for entry in done.entries]
    shown = Executed(service=done.query.service.service, nodes=nodes, dns=done.query.dns)
    return Answer(body=bodies.encode(shown), index=max(agent.catalogue.index_of(shown.service), 1))


def explain(call: Call) -> Answer:
    """The query that would be asked."""
    query = call.agent.operations.queries.resolve(call.name)
    return Answer(body=bodies.encode(Explained(query)), index=query.modify_index)


def everything(call: Call) -> Resource:
    return Keys(call.agent.store, call.agent.query_indexes, keys.QUERIES, keys.prefix_end(keys.QUERIES))


def resource(call: Call) -> Resource:
    return Keys(call.agent.store, call.agent.query_indexes, keys.query(call.name), None)


_TTL_S_MAX: Final = 2**31 - 1  # RFC 2181, section 8


def _valid(call: Call) -> Query:
    """The query of the body: its TTL a duration that DNS can say, its token one that adds nothing to the caller's."""
    query: Query = call.payload
    if query.token:
        authorize(call.agent.operations.token, Caller(query.token), call.endpoint.access)
    try:
        ttl_s = parse_duration(query.dns.ttl) if query.dns.ttl else 0.0
    except ValueError as error:
        raise Refusal(400, f"Invalid prepared query: Bad DNS TTL {query.dns.ttl!r}: {error}") from None
    if not 0 <= ttl_s <= _TTL_S_MAX:
        raise Refusal(400, f"Invalid prepared query: DNS TTL {query.dns.ttl!r} must be 0 to {_TTL_S_MAX} s")
    return query
