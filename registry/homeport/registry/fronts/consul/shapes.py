"""The JSON that Consul's clients read and write, as types: field for field what they expect to find."""

from __future__ import annotations

import msgspec

from homeport.registry.fronts.consul.bodies import go_name

# --- what clients send ------------------------------------------------------------------------------------------


class _Sent(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    pass


class CheckDefinition(_Sent, frozen=True, kw_only=True):
    """A check as registered; durations are Go's, or nanoseconds."""

    check_id: str = ""
    id: str = ""
    name: str = ""
    notes: str = ""
    status: str = ""
    ttl: str | int = ""
    http: str = ""
    method: str = ""
    header: dict[str, list[str]] = {}
    tcp: str = ""
    interval: str | int = ""
    timeout: str | int = ""
    success_before_passing: int = 0
    failures_before_warning: int = 0
    failures_before_critical: int = 0
    deregister_critical_service_after: str | int = ""
    body: str = ""
    disable_redirects: bool = False
    tls_server_name: str = ""
    tls_skip_verify: bool = False
    tcp_use_tls: bool = False
    grpc: str = ""
    grpc_use_tls: bool = False
    alias_node: str = ""
    alias_service: str = ""
    output_max_size: int = 0
    # Known, and refused where given: taking them without acting on them would be a lie.
    args: list[str] = []
    script: str = ""
    docker_container_id: str = ""
    shell: str = ""
    udp: str = ""
    h2ping: str = ""
    os_service: str = ""
    proxy_http: str = ""
    proxy_grpc: str = ""


class TaggedAddress(msgspec.Struct, frozen=True, rename=go_name):
    """An address of a service for those who come by a certain way."""

    address: str = ""
    port: int = 0


class Weights(msgspec.Struct, frozen=True, rename=go_name):
    passing: int = 1
    warning: int = 1


class ServiceDefinition(_Sent, frozen=True, kw_only=True):
    """A service as registered with the agent."""

    id: str = ""
    name: str = ""
    tags: list[str] = []
    meta: dict[str, str] = {}
    address: str = ""
    port: int = 0
    tagged_addresses: dict[str, TaggedAddress] = {}
    weights: Weights | None = None
    enable_tag_override: bool = False
    check: CheckDefinition | None = None
    checks: list[CheckDefinition] = []
    # Known, and refused where given.
    kind: str = ""
    socket_path: str = ""
    ports: list[object] = []
    proxy: dict[str, object] = {}
    connect: dict[str, object] = {}
    locality: dict[str, object] = {}
    namespace: str = ""
    partition: str = ""


class AgentCheckDefinition(CheckDefinition, frozen=True, kw_only=True):
    """A check as registered with the agent: of its node, or with a `service_id` of a service on it."""

    service_id: str = ""
    namespace: str = ""
    partition: str = ""


class CheckReport(_Sent, frozen=True, kw_only=True):
    """A ttl check's status, as its service sees it."""

    status: str = ""
    output: str = ""


class ServiceCheck(msgspec.Struct, frozen=True, rename=go_name):
    """A service's check that a session stands on."""

    id: str = ""
    namespace: str = ""


class SessionDefinition(_Sent, frozen=True, kw_only=True):
    """A session as asked for. `lock_delay` is a Go duration or nanoseconds, fewer than a thousand of which are seconds;
    checks that are not named at all are serfHealth, those named as an empty list are none.
    """

    name: str = ""
    node: str = ""
    lock_delay: str | int | float | None = None
    behavior: str = ""
    ttl: str = ""
    checks: list[str] | None = None
    node_checks: list[str] | None = None
    service_checks: list[ServiceCheck] | None = None


# --- what clients are shown -------------------------------------------------------------------------------------


class _Shown(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    pass


class Node(_Shown, frozen=True, kw_only=True):
    id: str
    node: str
    address: str
    datacenter: str
    tagged_addresses: dict[str, str] = {}
    meta: dict[str, str] = {}
    create_index: int = 1
    modify_index: int = 1


class Service(_Shown, frozen=True, kw_only=True):
    kind: str = ""  # proxies and gateways have one; there are none, and filters ask for it all the same
    id: str
    service: str
    tags: tuple[str, ...]
    address: str
    tagged_addresses: dict[str, TaggedAddress]
    meta: dict[str, str]
    port: int
    weights: Weights
    enable_tag_override: bool
    create_index: int
    modify_index: int


class Check(_Shown, frozen=True, kw_only=True):
    node: str
    check_id: str
    name: str
    status: str
    notes: str
    output: str
    service_id: str
    service_name: str
    service_tags: tuple[str, ...]
    type: str
    interval: str = ""
    timeout: str = ""
    exposed_port: int = 0
    definition: dict[str, object] = {}
    create_index: int = 1
    modify_index: int = 1


class ServiceNode(_Shown, frozen=True, kw_only=True):
    """An instance and its node in one row."""

    id: str
    node: str
    address: str
    datacenter: str
    tagged_addresses: dict[str, str]
    node_meta: dict[str, str]
    service_kind: str = ""
    service_id: str
    service_name: str
    service_tags: tuple[str, ...]
    service_address: str
    service_tagged_addresses: dict[str, TaggedAddress]
    service_weights: Weights
    service_meta: dict[str, str]
    service_port: int
    service_socket_path: str = ""
    service_enable_tag_override: bool
    create_index: int
    modify_index: int


class NodeServices(_Shown, frozen=True, kw_only=True):
    """A node and what is on it by ID."""

    node: Node
    services: dict[str, Service]


class NodeServiceList(_Shown, frozen=True, kw_only=True):
    """A node, if there is one, and what is on it."""

    node: Node | None
    services: list[Service]


class HealthEntry(_Shown, frozen=True, kw_only=True):
    """An instance with the checks that decide about it."""

    node: Node
    service: Service
    checks: tuple[Check, ...]


class KvEntry(_Shown, frozen=True, kw_only=True):
    """A key; `value` is base64 in JSON, and null when empty."""

    lock_index: int
    key: str
    flags: int
    value: bytes | None
    create_index: int
    modify_index: int


class HeldKvEntry(KvEntry, frozen=True, kw_only=True):
    """A key that a session holds."""

    session: str


class TxnError(msgspec.Struct, frozen=True, rename=go_name):
    """What stood against a transaction, and which of its operations that was."""

    op_index: int
    what: str


class TxnKv(msgspec.Struct, frozen=True):
    kv: KvEntry = msgspec.field(name="KV")


class TxnNode(msgspec.Struct, frozen=True, rename=go_name):
    node: Node


class TxnService(msgspec.Struct, frozen=True, rename=go_name):
    service: Service


class TxnCheck(msgspec.Struct, frozen=True, rename=go_name):
    check: Check


class TxnOutcome(_Shown, frozen=True, kw_only=True):
    """What the operations showed, or what stood against them."""

    results: list[object] | None = None
    errors: list[TxnError] | None = None


class SessionId(msgspec.Struct, frozen=True, rename=go_name):
    id: str


class Session(_Shown, frozen=True, kw_only=True):
    """A session; `lock_delay` in nanoseconds."""

    id: str
    name: str
    node: str
    lock_delay: int
    behavior: str
    ttl: str
    node_checks: tuple[str, ...]
    service_checks: list[ServiceCheck] | None
    create_index: int
    modify_index: int


class Event(_Shown, frozen=True, kw_only=True):
    """An event; `payload` is base64 in JSON, and null when empty."""

    id: str
    name: str
    payload: bytes | None
    node_filter: str
    service_filter: str
    tag_filter: str
    version: int
    l_time: int


class AgentService(_Shown, frozen=True, kw_only=True, omit_defaults=True):
    """A service as its agent knows it; what it has none of is left out, as by Consul's agents."""

    kind: str = ""
    id: str
    service: str
    tags: tuple[str, ...]
    meta: dict[str, str]
    port: int
    address: str
    tagged_addresses: dict[str, TaggedAddress] = {}
    weights: Weights
    enable_tag_override: bool
    datacenter: str


class HashedAgentService(AgentService, frozen=True, kw_only=True):
    """The same with a hash of it, which changes when any of it does."""

    content_hash: str


class AgentHealth(_Shown, frozen=True, kw_only=True):
    """A service of the agent with its checks, and what they come to; both null if there is no such service."""

    aggregated_status: str
    service: AgentService | None
    checks: tuple[Check, ...] | None


class Member(_Shown, frozen=True, kw_only=True):
    """A member of the cluster, as Serf describes one; statuses and protocols are Serf's numbers."""

    name: str
    addr: str
    port: int
    tags: dict[str, str]
    status: int
    protocol_min: int = 1
    protocol_max: int = 5
    protocol_cur: int = 2
    delegate_min: int = 2
    delegate_max: int = 5
    delegate_cur: int = 4


class Gauge(_Shown, frozen=True, kw_only=True):
    """A number that goes up and down."""

    name: str
    value: float
    labels: dict[str, str]


class Counted(_Shown, frozen=True, kw_only=True):
    """A number that only grows; `rate` is per second."""

    name: str
    count: int
    rate: float
    sum: float
    min: float
    max: float
    mean: float
    stddev: float
    labels: dict[str, str]


class Metrics(_Shown, frozen=True, kw_only=True):
    """The agent's numbers; points and samples are kinds that this registry has none of."""

    timestamp: str
    gauges: tuple[Gauge, ...]
    points: tuple[Gauge, ...] = ()
    counters: tuple[Counted, ...]
    samples: tuple[Counted, ...] = ()


class RaftServer(_Shown, frozen=True, kw_only=True):
    """A server of the quorum."""

    id: str
    node: str
    address: str
    leader: bool = True
    protocol_version: str = "3"
    voter: bool = True


class AutopilotServer(_Shown, frozen=True, kw_only=True):
    """A server of the quorum, and how it is."""

    id: str
    name: str
    address: str
    version: str
    last_index: int
    healthy: bool
    serf_status: str = "alive"
    leader: bool = True
    last_contact: str = "0s"
    last_term: int = 1
    voter: bool = True


class AutopilotHealth(_Shown, frozen=True, kw_only=True):
    """Whether the quorum is well, and how many more servers it can lose."""

    healthy: bool
    failure_tolerance: int
    servers: tuple[AutopilotServer, ...]


class Usage(_Shown, frozen=True, kw_only=True):
    """How much is registered in one datacenter."""

    nodes: int
    services: int
    service_instances: int
    billable_service_instances: int
    connect_service_instances: dict[str, int]


class OperatorUsage(_Shown, frozen=True, kw_only=True):
    """The same by datacenter."""

    usage: dict[str, Usage]
    known_leader: bool  # as the header of other reads
    last_contact: int = 0  # answers are never stale


class RaftConfiguration(_Shown, frozen=True, kw_only=True):
    """Who takes part in the quorum."""

    servers: tuple[RaftServer, ...]
    index: int = 0  # there are no others to agree with on a configuration; of Consul's it is always 0 as well


class AgentVersion(_Shown, frozen=True, kw_only=True):
    """The version of the API, as Consul's agents tell theirs; Homeport is built from no commit and no FIPS module."""

    sha: str = msgspec.field(name="SHA", default="")
    human_version: str
    fips: str = msgspec.field(name="FIPS", default="")


class AgentSelf(_Shown, frozen=True, kw_only=True):
    """What clients ask an agent about itself before anything else."""

    config: dict[str, str | bool]
    debug_config: dict[str, str] = {}  # of Consul's own settings, of which there are none
    coord: dict[str, float] = {}
    member: Member
    meta: dict[str, str] = {}
    stats: dict[str, dict[str, str]]
    xds: dict[str, dict[str, list[str]]] = msgspec.field(name="xDS", default={})
