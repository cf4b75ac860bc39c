"""The table: every endpoint of the HTTP API, and what each parameter means. Adding an endpoint is adding a row.

From a row come its route, the decoding of its parameters and body, whether it can block, who may call it, its numbers
in the metrics and its line in docs/consul.md (`documentation.py`, which a test holds the page to).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from homeport.registry.core.limits import HTTP_BODY_BYTES_MAX
from homeport.registry.core.queries import Query
from homeport.registry.fronts import prometheus_sd
from homeport.registry.fronts.consul import (
    about,
    agent_services,
    bodies,
    catalog,
    coordinates,
    events,
    kv,
    monitor,
    queries,
    registering,
    services,
    sessions,
    shapes,
    snapshots,
    txn,
    writes,
)
from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import STREAM, Call, Endpoint, Parameter
from homeport.registry.fronts.consul.openapi import description
from homeport.registry.fronts.metrics import exposition
from homeport.registry.transfers import RESTORE_BYTES_MAX

View = Callable[[Call], Answer | Awaitable[Answer]]

# --- parameters that many rows share ----------------------------------------------------------------------------

EVERY: Final = (
    Parameter("pretty", "flag"),
    Parameter("token", "text"),
    Parameter("dc", "text", "differs", "there is one datacenter, dc1; another is a 500, as in Consul"),
    Parameter("ns", "text", "refused", "there are no namespaces"),
    Parameter("partition", "text", "refused", "there are no partitions"),
)
_READ: Final = (
    Parameter("stale", "flag", "supported", "answers are never stale"),
    Parameter("consistent", "flag"),
    Parameter("cached", "flag", "supported", "answers are never older than without it"),
    Parameter("peer", "text", "refused", "there are no cluster peerings"),
)
_BLOCKING: Final = (
    Parameter("index", "number"),
    Parameter("hash", "text", "supported", "everywhere; the answer then has X-Consul-ContentHash"),
    Parameter("wait", "duration", "supported", "5m by default, at most 10m, and up to a sixteenth more"),
)
_NOTE: Final = (Parameter("note", "text", "supported", "4 KB are kept"),)
_FILTER: Final = Parameter("filter", "filter")
_NODE_META: Final = Parameter("node-meta", "texts", "supported", "key:value; given several times, all must be there")
_NEAR: Final = Parameter(
    "near",
    "text",
    "differs",
    "what is on that node comes first (_agent: this one, _ip: yours); no distances are known",
)
_TAGS: Final = Parameter("tag", "texts", "supported", "given several times, all must be there")
_MERGE: Final = Parameter("merge-central-config", "flag", "supported", "there is no central configuration to merge")
_PEER: Final = Parameter("peer", "text", "supported", "there are no cluster peerings, so nothing comes from a peer")
_CHOSEN: Final = (_FILTER, _NEAR, _NODE_META, _PEER)
_FORMAT: Final = Parameter("format", "text", "supported", "text: the status as a word, nothing else")
_EVENT_FILTER: Final = "a regular expression, of RE2's kind"


def _get(path: str, summary: str, view: Callable[[Call], Answer], *parameters: Parameter, **more: object) -> Endpoint:
    """A read that can block when it has a resource."""
    shared = EVERY + _READ + (_BLOCKING if "resource" in more else ())
    if _PEER in parameters:
        shared = tuple(one for one in shared if one.name != _PEER.name)
    row = Endpoint(method="GET", path=path, summary=summary, view=view, parameters=(*parameters, *shared), read=True)
    return msgspec.structs.replace(row, **more)


def _put(path: str, summary: str, **more: object) -> Endpoint:
    given = more.pop("parameters", ())
    assert isinstance(given, tuple)
    row = Endpoint(method="PUT", path=path, summary=summary, parameters=(*given, *EVERY), access="write")
    return msgspec.structs.replace(row, **more)


def _later(path: str, note: str) -> Endpoint:
    """Consul has it; here it is answered 501 and the reason."""
    return Endpoint(method="*", path=path, summary="", support="refused", note=note, statuses=(501,))


def _own(path: str, summary: str, view: View, *parameters: Parameter, **more: object) -> Endpoint:
    """A read of what the agent itself knows: it has no index and cannot block."""
    row = Endpoint(method="GET", path=path, summary=summary, view=view, parameters=(*parameters, *EVERY))
    return msgspec.structs.replace(row, **more)


def _no(method: str, path: str, note: str) -> Endpoint:
    """Consul has it; here it can have no meaning, and is answered 501 and the reason."""
    return Endpoint(method=method, path=path, summary="", support="refused", note=note, statuses=(501,), access="write")


def _no_acls(path: str) -> Endpoint:
    """Part of the ACL system: refused in the words and with the status by which clients know that it is off."""
    note = "ACL support disabled; a registry has one token or none"
    return Endpoint(method="*", path=path, summary="", support="refused", note=note, statuses=(401,))


@functools.cache
def _description() -> bytes:
    return bodies.encode(description(TABLE))


def _openapi(_call: Call) -> Answer:
    return Answer(body=_description())


_NOT_YET: Final = "not yet"
_ONE_PLACE: Final = "every node is at the same place, the origin: the registry serves one site"

TABLE: Final[tuple[Endpoint, ...]] = (
    # --- the agent ------------------------------------------------------------------------------------------------
    Endpoint(
        method="GET",
        path="/v1/agent/self",
        summary="what the agent says of itself",
        view=about.agent_self,
        parameters=EVERY,
        answers=shapes.AgentSelf,
        support="differs",
        note="DebugConfig and xDS are empty; Version is that of the API, and names Homeport after a plus",
    ),
    _put(
        "/v1/agent/service/register",
        "register a service with its checks",
        view=services.register,
        takes=shapes.ServiceDefinition,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        parameters=(
            Parameter("replace-existing-checks", "flag", "differs", "always so: a registration is the whole of it"),
        ),
        support="differs",
        note="checks: TTL, HTTP, TCP; other kinds, sidecar proxies and Connect are a 400 with the reason",
    ),
    _put("/v1/agent/service/deregister/{service ID}", "remove a service", view=services.deregister),
    _put(
        "/v1/agent/service/deregister/{service ID}",
        "the same, for clients of old",
        view=services.deregister,
        method="GET",
    ),
    _put(
        "/v1/agent/check/register",
        "add a check to this node or to a service on it",
        view=services.register_check,
        takes=shapes.AgentCheckDefinition,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        support="differs",
        note="the kinds of checks that services may have; a later registration of the service replaces its checks",
    ),
    _put("/v1/agent/check/deregister/{check ID}", "remove a check", view=services.deregister_check),
    _put(
        "/v1/agent/check/pass/{check ID}",
        "report a TTL check passing",
        view=services.report("passing"),
        parameters=_NOTE,
    ),
    _put(
        "/v1/agent/check/warn/{check ID}",
        "report a TTL check warning",
        view=services.report("warning"),
        parameters=_NOTE,
    ),
    _put(
        "/v1/agent/check/fail/{check ID}",
        "report a TTL check critical",
        view=services.report("critical"),
        parameters=_NOTE,
    ),
    _put(
        "/v1/agent/check/update/{check ID}",
        "report a TTL check's status and output",
        view=services.update,
        takes=shapes.CheckReport,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
    ),
    _own(
        "/v1/agent/services",
        "the services of this node by ID",
        agent_services.services,
        _FILTER,
        answers=dict[str, shapes.AgentService],
        rows=shapes.AgentService,
    ),
    _own(
        "/v1/agent/service/{service ID}",
        "one service of this node, with a hash of it",
        agent_services.service,
        *_BLOCKING,
        resource=agent_services.one_node,
        answers=shapes.HashedAgentService,
    ),
    _put(
        "/v1/agent/service/maintenance/{service ID}",
        "put a service in maintenance, or back",
        view=agent_services.maintenance,
        parameters=(Parameter("enable", "flag"), Parameter("reason", "text")),
    ),
    _own(
        "/v1/agent/checks",
        "the checks of this node's services by CheckID",
        agent_services.checks,
        _FILTER,
        answers=dict[str, shapes.Check],
        rows=shapes.Check,
    ),
    _own(
        "/v1/agent/health/service/id/{service ID}",
        "the health of one service: 200, 429, 503 or 404",
        agent_services.health_by_id,
        _FORMAT,
        answers=shapes.AgentHealth,
        statuses=(200, 404, 429, 503),
    ),
    _own(
        "/v1/agent/health/service/name/{service name}",
        "the health of all services of a name: 200, 429, 503 or 404",
        agent_services.health_by_name,
        _FORMAT,
        answers=list[shapes.AgentHealth],
        statuses=(200, 404, 429, 503),
    ),
    _own(
        "/v1/agent/members",
        "the members of the cluster",
        about.members,
        Parameter("wan", "flag"),
        Parameter("segment", "text", "refused", "there are no network segments"),
        answers=list[shapes.Member],
        support="differs",
        note="there is one, this registry; its ports are Consul's, nothing listens on Serf's",
    ),
    _put(
        "/v1/agent/force-leave/{node}",
        "make a member leave",
        view=about.force_leave,
        support="differs",
        note="there is no other member: always a 500, or a 400 for this one",
    ),
    _own(
        "/v1/agent/metrics",
        "the registry's numbers",
        about.metrics,
        Parameter("format", "text", "supported", "prometheus: the page of /metrics"),
        answers=shapes.Metrics,
        support="differs",
        note="the names of /metrics; counters are since the front opened, not of the last 10 s",
    ),
    _own(
        "/v1/agent/monitor",
        "the log, line by line, as it is written",
        monitor.monitor,
        Parameter("loglevel", "text", "differs", "no finer than the process itself logs; the first line says"),
        Parameter("logjson", "flag"),
        access="write",
    ),
    _no("PUT", "/v1/agent/leave", "there is no cluster to leave; stop the registry's process"),
    _no("PUT", "/v1/agent/reload", "there is no configuration to read anew; restart the registry's process"),
    _no("PUT", "/v1/agent/join/{address}", "there is no cluster to join; registries do not gossip"),
    _put(
        "/v1/agent/maintenance",
        "put this node in maintenance with all that is on it, or back",
        view=agent_services.node_maintenance,
        parameters=(Parameter("enable", "flag"), Parameter("reason", "text")),
    ),
    _no_acls("/v1/agent/token/{}"),
    _later("/v1/agent/{}", _NOT_YET),
    # --- the catalogue --------------------------------------------------------------------------------------------
    _put(
        "/v1/catalog/register",
        "register a node, a service on it, and checks of either",
        view=registering.register,
        takes=writes.Registration,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        answers=bool,
        support="differs",
        note="Kind, Proxy and Connect are a 400; a check that the registry runs itself is not to be told its status",
    ),
    _put(
        "/v1/catalog/deregister",
        "remove a service, a check, or a node with all that is on it",
        view=registering.deregister,
        takes=writes.Deregistration,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        answers=bool,
    ),
    _own("/v1/catalog/datacenters", "the datacenters", about.datacenters, answers=list[str], access="open"),
    _get(
        "/v1/catalog/nodes",
        "every node",
        catalog.nodes,
        *_CHOSEN,
        resource=catalog.all_nodes,
        answers=list[shapes.Node],
        rows=shapes.Node,
        support="differs",
        note="nodes that nobody registered are there as long as something is on them; the agent's own always is",
    ),
    _get(
        "/v1/catalog/services",
        "every service with its tags",
        catalog.services,
        _FILTER,
        _NODE_META,
        resource=catalog.all_services,
        answers=dict[str, list[str]],
        rows=shapes.ServiceNode,
        support="differs",
        note="the service consul is this registry; it stands in this API alone, not in DNS",
    ),
    _get(
        "/v1/catalog/service/{service name}",
        "the instances of a service, each with its node in one row",
        catalog.service,
        _TAGS,
        _MERGE,
        *_CHOSEN,
        resource=catalog.one_service,
        answers=list[shapes.ServiceNode],
        rows=shapes.ServiceNode,
    ),
    _get(
        "/v1/catalog/connect/{service name}",
        "the mesh-capable instances of a service",
        catalog.none_of_them,
        *_CHOSEN,
        resource=catalog.nothing,
        answers=list[shapes.ServiceNode],
        rows=shapes.ServiceNode,
        support="differs",
        note="there are none: there is no service mesh of Consul's kind",
    ),
    _get(
        "/v1/catalog/gateway-services/{gateway}",
        "the services behind a gateway",
        catalog.none_of_them,
        resource=catalog.nothing,
        answers=list[shapes.ServiceNode],
        support="differs",
        note="there are none: there are no gateways",
    ),
    _get(
        "/v1/catalog/node/{node}",
        "a node and what is on it by ID",
        catalog.node,
        _FILTER,
        _MERGE,
        resource=catalog.one_node,
        answers=shapes.NodeServices | None,
        rows=shapes.Service,
    ),
    _get(
        "/v1/catalog/node-services/{node}",
        "a node and the list of what is on it",
        catalog.node_services,
        _FILTER,
        _MERGE,
        resource=catalog.one_node,
        answers=shapes.NodeServiceList,
        rows=shapes.Service,
    ),
    _later("/v1/catalog/{}", _NOT_YET),
    # --- health ---------------------------------------------------------------------------------------------------
    _get(
        "/v1/health/node/{node}",
        "the checks of a node and of all that is on it",
        catalog.node_checks,
        _FILTER,
        resource=catalog.one_node,
        answers=list[shapes.Check],
        rows=shapes.Check,
        support="differs",
        note="the agent's own node alone has a serfHealth check, which passes",
    ),
    _get(
        "/v1/health/checks/{service name}",
        "the checks of a service's instances",
        catalog.service_checks,
        *_CHOSEN,
        resource=catalog.one_service,
        answers=list[shapes.Check],
        rows=shapes.Check,
    ),
    _get(
        "/v1/health/service/{service name}",
        "the instances of a service with their checks",
        catalog.health,
        Parameter("passing", "flag"),
        _TAGS,
        _MERGE,
        Parameter("sg", "text", "refused", "there are no sameness groups"),
        *_CHOSEN,
        resource=catalog.one_service,
        answers=list[shapes.HealthEntry],
        rows=shapes.HealthEntry,
        support="differs",
        note="a service being drained shows a critical _service_draining check",
    ),
    _get(
        "/v1/health/connect/{service name}",
        "the mesh-capable instances of a service",
        catalog.none_of_them,
        Parameter("passing", "flag"),
        _TAGS,
        _MERGE,
        *_CHOSEN,
        resource=catalog.nothing,
        answers=list[shapes.HealthEntry],
        rows=shapes.HealthEntry,
        support="differs",
        note="there are none: there is no service mesh of Consul's kind",
    ),
    _get(
        "/v1/health/ingress/{service name}",
        "the ingress gateways of a service",
        catalog.none_of_them,
        Parameter("passing", "flag"),
        _TAGS,
        *_CHOSEN,
        resource=catalog.nothing,
        answers=list[shapes.HealthEntry],
        rows=shapes.HealthEntry,
        support="differs",
        note="there are none: there are no gateways",
    ),
    _get(
        "/v1/health/state/{state}",
        "every check in a state, or with any every check",
        catalog.checks_in_state,
        *_CHOSEN,
        resource=catalog.all_checks,
        answers=list[shapes.Check],
        rows=shapes.Check,
        support="differs",
        note="the agent's own node alone has a serfHealth check, which passes",
    ),
    _later("/v1/health/{}", _NOT_YET),
    # --- keys -----------------------------------------------------------------------------------------------------
    _get(
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
    _put(
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
    _put(
        "/v1/kv/{key}",
        "delete a key, or with recurse all under it",
        view=kv.delete,
        method="DELETE",
        answers=bool,
        parameters=(Parameter("recurse", "flag"), Parameter("cas", "number")),
    ),
    # --- sessions -------------------------------------------------------------------------------------------------
    _put(
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
    _put("/v1/session/destroy/{session}", "end a session", view=sessions.destroy, answers=bool),
    _put(
        "/v1/session/renew/{session}", "start a session's TTL anew", view=sessions.renew, answers=list[shapes.Session]
    ),
    _get(
        "/v1/session/info/{session}",
        "a session",
        sessions.info,
        resource=sessions.one,
        answers=list[shapes.Session],
    ),
    _get(
        "/v1/session/node/{node}",
        "the sessions of a node",
        sessions.of_node,
        resource=sessions.node,
        answers=list[shapes.Session],
    ),
    _get(
        "/v1/session/list",
        "every session",
        sessions.all_of_them,
        resource=sessions.everything,
        answers=list[shapes.Session],
    ),
    # --- transactions ---------------------------------------------------------------------------------------------
    _put(
        "/v1/txn",
        "operations on keys, nodes, services and checks, all at one index or none",
        view=txn.transaction,
        takes=list[writes.TxnOperation],
        body_bytes_max=HTTP_BODY_BYTES_MAX,
        answers=shapes.TxnOutcome,
        statuses=(200, 409),
        parameters=_READ[:1] + _READ[1:2],
        support="differs",
        note="what the registry runs itself (checks registered with it) is read and removed, not set",
    ),
    # --- status ---------------------------------------------------------------------------------------------------
    Endpoint(
        method="GET",
        path="/v1/status/leader",
        summary="the leader's address",
        view=about.leader,
        parameters=EVERY,
        answers=str,
        access="open",
        support="differs",
        note="this registry's own address: it leads itself",
    ),
    _own("/v1/status/peers", "the servers of the quorum: this one", about.peers, answers=list[str], access="open"),
    _later("/v1/status/{}", _NOT_YET),
    # --- events ---------------------------------------------------------------------------------------------------
    _put(
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
    _get(
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
    # --- prepared queries -----------------------------------------------------------------------------------------
    _put(
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
    _get(
        "/v1/query",
        "every query",
        queries.every,
        resource=queries.everything,
        answers=list[Query],
    ),
    _get(
        "/v1/query/{query ID}",
        "a query",
        queries.one,
        resource=queries.resource,
        answers=list[Query],
    ),
    _put(
        "/v1/query/{query ID}",
        "put another in its place",
        view=queries.update,
        takes=Query,
        body_bytes_max=HTTP_BODY_BYTES_MAX,
    ),
    _put("/v1/query/{query ID}", "delete a query", view=queries.delete, method="DELETE"),
    _get(
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
    _get(
        "/v1/query/{query ID or name}/explain",
        "the query that answers to a name, filled in for it",
        queries.explain,
        answers=queries.Explained,
    ),
    # --- coordinates ----------------------------------------------------------------------------------------------
    _get(
        "/v1/coordinate/nodes",
        "where every node is",
        coordinates.nodes,
        Parameter("segment", "text", "refused", "there are no network segments"),
        resource=catalog.all_nodes,
        answers=list[coordinates.NodeCoordinate],
        support="differs",
        note=_ONE_PLACE,
    ),
    _get(
        "/v1/coordinate/node/{node}",
        "where a node is",
        coordinates.node,
        Parameter("segment", "text", "refused", "there are no network segments"),
        resource=catalog.one_node,
        answers=list[coordinates.NodeCoordinate],
        support="differs",
        note=_ONE_PLACE,
    ),
    _own(
        "/v1/coordinate/datacenters",
        "where the servers are, by datacenter",
        coordinates.datacenters,
        answers=list[coordinates.DatacenterCoordinates],
        support="differs",
        note=_ONE_PLACE,
    ),
    _no("PUT", "/v1/coordinate/update", "coordinates cannot be set: nothing here measures or uses them"),
    # --- the registry as a whole ----------------------------------------------------------------------------------
    _own(
        "/v1/operator/raft/configuration",
        "the servers of the quorum: this one",
        about.raft_configuration,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=shapes.RaftConfiguration,
    ),
    _own(
        "/v1/operator/autopilot/health",
        "whether the store takes writes",
        about.autopilot_health,
        answers=shapes.AutopilotHealth,
    ),
    _own(
        "/v1/operator/usage",
        "how many nodes, services and instances there are",
        about.usage,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=shapes.OperatorUsage,
    ),
    _own(
        "/v1/snapshot",
        "the whole store as a file",
        snapshots.save,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=bytes,
        access="write",
        support="differs",
        note="a backup of this registry, as `homeport backup` writes it; not in Consul's format",
    ),
    _put(
        "/v1/snapshot",
        "put a snapshot in the place of everything",
        view=snapshots.restore,
        takes=STREAM,
        body_bytes_max=RESTORE_BYTES_MAX,
        support="differs",
        note="one of this registry; it is verified first, and then every connection is closed, this one last",
    ),
    # --- what Consul has and this registry has not ----------------------------------------------------------------
    _later("/v1/operator/{}", _NOT_YET),
    _no_acls("/v1/acl/{}"),
    _later("/v1/connect/{}", "there is no service mesh of Consul's kind"),
    _later("/v1/config", "there are no config entries"),
    _later("/v1/config/{}", "there are no config entries"),
    _later("/v1/peering/{}", "there are no cluster peerings"),
    _later("/v1/internal/{}", "internal to Consul"),
    # --- Homeport's own -------------------------------------------------------------------------------------------
    Endpoint(method="GET", path="/healthz", summary="does the process answer", view=about.healthz, access="open"),
    Endpoint(
        method="GET",
        path="/readyz",
        summary="may requests be sent here",
        parameters=(Parameter("writable", "flag", note="503 also while nothing can be written"),),
        view=about.readyz,
        access="open",
    ),
    Endpoint(
        method="GET",
        path="/v1/openapi.json",
        summary="this API as an OpenAPI 3.1 description",
        view=_openapi,
        answers=dict[str, object],
        access="open",
        support="differs",
        note="Homeport's own; Consul has none",
    ),
    Endpoint(
        method="GET",
        path="/sd/prometheus",
        summary="every instance as a target, for Prometheus's HTTP service discovery",
        view=prometheus_sd.targets,
        parameters=(
            Parameter("service", "texts", "supported", "given several times, any of them"),
            Parameter("tag", "texts", "supported", "given several times, all must be there"),
            Parameter("passing", "flag"),
            _FILTER,
            Parameter("token", "text"),
        ),
        answers=list[prometheus_sd.TargetGroup],
        rows=shapes.HealthEntry,
    ),
    Endpoint(
        method="GET",
        path="/explain/{service name}",
        summary="why each instance of a service is in or out, in words",
        view=about.explain,
        parameters=(
            Parameter("id", "text", "supported", "one instance alone, by its service ID"),
            Parameter("token", "text"),
        ),
        answers=list[about.Told],
        statuses=(200, 404),
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        summary="numbers for Prometheus",
        view=exposition,
        parameters=(Parameter("token", "text"),),
    ),
)


# --- routing ----------------------------------------------------------------------------------------------------


class Match(msgspec.Struct, frozen=True):
    """The rows of a path by method, and what stood in place of its variable, still encoded."""

    rows: dict[str, Endpoint]
    variable: str


class Routes:
    """Finds the rows of a path: an exact one first, else the one with the longest beginning, then the longest end."""

    def __init__(self, table: tuple[Endpoint, ...]) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._beginnings: dict[str, dict[str, dict[str, Endpoint]]] = {}
        for row in table:
            beginning, brace, rest = row.path.partition("{")
            if brace:
                ends = self._beginnings.setdefault(beginning, {})
                rows = ends.setdefault(rest.partition("}")[2], {})
            else:
                rows = self._exact.setdefault(beginning, {})
            assert row.method not in rows, f"{row.name} stands twice in the table"
            rows[row.method] = row
        for beginning, ends in self._beginnings.items():
            self._beginnings[beginning] = dict(sorted(ends.items(), key=lambda end: -len(end[0])))
        self._levels_max = max((beginning.count("/") for beginning in self._beginnings), default=0)

    def match(self, path: str) -> Match | None:
        """Find the rows of a path as it came, nothing decoded or cleaned up in it: a key may hold what it likes."""
        rows = self._exact.get(path)
        if rows is not None:
            return Match(rows, "")
        found: Match | None = None
        at = 0
        for _ in range(self._levels_max):
            at = path.find("/", at) + 1
            if at == 0:
                break
            for end, rows in self._beginnings.get(path[:at], {}).items():
                if path.endswith(end):
                    found = Match(rows, path[at : len(path) - len(end)])
                    break
        return found
