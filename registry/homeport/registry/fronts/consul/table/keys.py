"""Rows of what clients keep here: keys, sessions, transactions, events and prepared queries."""

from __future__ import annotations

from typing import Final

from homeport.registry.core.limits import HTTP_BODY_BYTES_MAX
from homeport.registry.core.queries import Query
from homeport.registry.fronts.consul import events, kv, queries, sessions, shapes, txn, writes
from homeport.registry.fronts.consul.calls import Endpoint, Parameter
from homeport.registry.fronts.consul.table.rows import READ, get, put

_EVENT_FILTER: Final = "a regular expression, of RE2's kind"

KEYS: Final[tuple[Endpoint, ...]] = (
    # --- keys ---------------------------------------------------------------------------------------------------------
    get(
        "/v1/kv/{key}",
        "a key, or with recurse or keys those under it",
        kv.read,
        Parameter("recurse", "flag"),
        Parameter("keys", "flag"),
        Parameter("separator", "text"),
        Parameter("seperator", "text", "supported", "the misspelling that Consul takes too"),
        Parameter("raw", "flag"),
        resource=kv.resource,
        answers=list[shapes.KvEntry | str],
    ),
    put(
        "/v1/kv/{key}",
        "write a key",
        view=kv.write,
        takes=bytes,
        answers=bool,
        body_bytes_max=kv.KV_BYTES_MAX,
        parameters=(
            Parameter("cas", "number"),
            Parameter("flags", "number"),
            Parameter("acquire", "text"),
            Parameter("release", "text"),
        ),
    ),
    put(
        "/v1/kv/{key}",
        "delete a key, or with recurse all under it",
        view=kv.delete,
        method="DELETE",
        answers=bool,
        parameters=(Parameter("recurse", "flag"), Parameter("cas", "number")),
    ),
    # --- sessions -----------------------------------------------------------------------------------------------------
    put(
        "/v1/session/create",
        "make a session, which can hold keys",
        view=sessions.create,
        takes=shapes.SessionDefinition,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        body_optional=True,
        answers=shapes.SessionId,
        support="differs",
        note="the agent's own node alone has a serfHealth check; name the checks of a session on another",
    ),
    put("/v1/session/destroy/{session}", "end a session", view=sessions.destroy, answers=bool),
    put("/v1/session/renew/{session}", "start a session's TTL anew", view=sessions.renew, answers=list[shapes.Session]),
    get(
        "/v1/session/info/{session}",
        "a session",
        sessions.info,
        resource=sessions.one,
        answers=list[shapes.Session],
    ),
    get(
        "/v1/session/node/{node}",
        "the sessions of a node",
        sessions.of_node,
        resource=sessions.node,
        answers=list[shapes.Session],
    ),
    get(
        "/v1/session/list",
        "every session",
        sessions.all_of_them,
        resource=sessions.everything,
        answers=list[shapes.Session],
    ),
    # --- transactions -------------------------------------------------------------------------------------------------
    put(
        "/v1/txn",
        "operations on keys, nodes, services and checks, all at one index or none",
        view=txn.transaction,
        takes=list[writes.TxnOperation],
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        answers=shapes.TxnOutcome,
        statuses=(200, 409),
        parameters=READ[:1] + READ[1:2],
        support="differs",
        note="what the registry runs itself (checks registered with it) is read and removed, not set",
    ),
    # --- events -------------------------------------------------------------------------------------------------------
    put(
        "/v1/event/fire/{event name}",
        "fire an event",
        view=events.fire,
        takes=bytes,
        body_bytes_max=events.EVENT_BYTES_MAX,
        answers=shapes.Event,
        parameters=(
            Parameter("node", "text", "supported", _EVENT_FILTER),
            Parameter("service", "text", "supported", _EVENT_FILTER),
            Parameter("tag", "text", "supported", _EVENT_FILTER),
        ),
        support="differs",
        note="kept in the store and durable as everything in it; a payload may have 512 bytes",
    ),
    get(
        "/v1/event/list",
        "the last 256 events, oldest first",
        events.listed,
        Parameter("name", "text"),
        Parameter("node", "text", "supported", "those that were meant for this node"),
        Parameter("service", "text", "supported", "those that were meant for this service"),
        Parameter("tag", "text", "supported", "those that were meant for this tag"),
        resource=events.resource,
        answers=list[shapes.Event],
        support="differs",
        note="every event is listed, whomever it was meant for; the index is a revision and never goes back",
    ),
    # --- prepared queries ---------------------------------------------------------------------------------------------
    put(
        "/v1/query",
        "keep a query",
        view=queries.create,
        method="POST",
        takes=Query,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        answers=queries.QueryId,
        support="differs",
        note="Connect and targets in peers are a 400, another Token a 403; other datacenters are passed over",
    ),
    get(
        "/v1/query",
        "every query",
        queries.every,
        resource=queries.everything,
        answers=list[Query],
    ),
    get(
        "/v1/query/{query ID}",
        "a query",
        queries.one,
        resource=queries.resource,
        answers=list[Query],
    ),
    put(
        "/v1/query/{query ID}",
        "put another in its place",
        view=queries.update,
        takes=Query,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
    ),
    put("/v1/query/{query ID}", "delete a query", view=queries.delete, method="DELETE"),
    get(
        "/v1/query/{query ID or name}/execute",
        "the instances that a query admits, in random order",
        queries.execute,
        Parameter("near", "text", "supported", "a node, _agent or _ip; its instances come first"),
        Parameter("limit", "number"),
        Parameter("connect", "flag", "refused", "there is no service mesh of Consul's kind"),
        answers=queries.Executed,
        support="differs",
        note="there are no other datacenters to fail over to: Failovers is 0",
    ),
    get(
        "/v1/query/{query ID or name}/explain",
        "the query that answers to a name, filled in for it",
        queries.explain,
        answers=queries.Explained,
    ),
)
