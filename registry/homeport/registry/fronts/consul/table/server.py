"""Rows of the registry itself: status, coordinates, operation, what it has not, and what Homeport adds."""

from __future__ import annotations

from typing import Final

from homeport.registry.fronts import prometheus_sd
from homeport.registry.fronts.consul import about, catalog, coordinates, shapes, snapshots
from homeport.registry.fronts.consul.calls import STREAM, Endpoint, Parameter
from homeport.registry.fronts.consul.table.rows import ELSE, EVERY, FILTER, get, later, no, no_acls, own, put
from homeport.registry.fronts.metrics import exposition
from homeport.registry.transfers import RESTORE_BYTES_MAX

_ONE_PLACE: Final = "every node is at the same place, the origin: the registry serves one site"

SERVER: Final[tuple[Endpoint, ...]] = (
    # --- status -------------------------------------------------------------------------------------------------------
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
    own("/v1/status/peers", "the servers of the quorum: this one", about.peers, answers=list[str], access="open"),
    later("/v1/status/{}", ELSE),
    # --- coordinates --------------------------------------------------------------------------------------------------
    get(
        "/v1/coordinate/nodes",
        "where every node is",
        coordinates.nodes,
        Parameter("segment", "text", "refused", "there are no network segments"),
        resource=catalog.all_nodes,
        answers=list[coordinates.NodeCoordinate],
        support="differs",
        note=_ONE_PLACE,
    ),
    get(
        "/v1/coordinate/node/{node}",
        "where a node is",
        coordinates.node,
        Parameter("segment", "text", "refused", "there are no network segments"),
        resource=catalog.one_node,
        answers=list[coordinates.NodeCoordinate],
        support="differs",
        note=_ONE_PLACE,
    ),
    own(
        "/v1/coordinate/datacenters",
        "where the servers are, by datacenter",
        coordinates.datacenters,
        answers=list[coordinates.DatacenterCoordinates],
        support="differs",
        note=_ONE_PLACE,
    ),
    no("PUT", "/v1/coordinate/update", "coordinates cannot be set: nothing here measures or uses them"),
    # --- the registry as a whole --------------------------------------------------------------------------------------
    own(
        "/v1/operator/raft/configuration",
        "the servers of the quorum: this one",
        about.raft_configuration,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=shapes.RaftConfiguration,
    ),
    own(
        "/v1/operator/autopilot/health",
        "whether the store takes writes",
        about.autopilot_health,
        answers=shapes.AutopilotHealth,
    ),
    own(
        "/v1/operator/usage",
        "how many nodes, services and instances there are",
        about.usage,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=shapes.OperatorUsage,
    ),
    own(
        "/v1/snapshot",
        "the whole store as a file",
        snapshots.save,
        Parameter("stale", "flag", "supported", "answers are never stale"),
        answers=bytes,
        access="write",
        support="differs",
        note="a backup of this registry, as `homeport backup` writes it; not in Consul's format",
    ),
    put(
        "/v1/snapshot",
        "put a snapshot in the place of everything",
        view=snapshots.restore,
        takes=STREAM,
        body_bytes_max=RESTORE_BYTES_MAX,
        support="differs",
        note="one of this registry; it is verified first, and then every connection is closed, this one last",
    ),
    # --- what Consul has and this registry has not --------------------------------------------------------------------
    later("/v1/operator/{}", ELSE),
    no_acls("/v1/acl/{}"),
    later("/v1/connect/{}", "there is no service mesh of Consul's kind"),
    later("/v1/config", "there are no config entries"),
    later("/v1/config/{}", "there are no config entries"),
    later("/v1/peering/{}", "there are no cluster peerings"),
    later("/v1/internal/{}", "internal to Consul"),
    # --- Homeport's own -----------------------------------------------------------------------------------------------
    Endpoint(method="GET", path="/", summary="what this is, as text", view=about.root, access="open"),
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
        path="/sd/prometheus",
        summary="every instance as a target, for Prometheus's HTTP service discovery",
        view=prometheus_sd.targets,
        parameters=(
            Parameter("service", "texts", "supported", "given several times, any of them"),
            Parameter("tag", "texts", "supported", "given several times, all must be there"),
            Parameter("passing", "flag"),
            FILTER,
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
