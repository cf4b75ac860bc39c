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
    # Known, and refused where given: taking them without acting on them would be a lie.
    body: str = ""
    disable_redirects: bool = False
    tls_server_name: str = ""
    tls_skip_verify: bool = False
    tcp_use_tls: bool = False
    args: list[str] = []
    script: str = ""
    docker_container_id: str = ""
    shell: str = ""
    udp: str = ""
    grpc: str = ""
    grpc_use_tls: bool = False
    h2ping: str = ""
    alias_node: str = ""
    alias_service: str = ""
    os_service: str = ""
    proxy_http: str = ""
    proxy_grpc: str = ""
    output_max_size: int = 0


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


class CheckReport(_Sent, frozen=True, kw_only=True):
    """A ttl check's status, as its service sees it."""

    status: str = ""
    output: str = ""


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
    definition: dict[str, str] = {}
    create_index: int = 1
    modify_index: int = 1


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


class AgentSelf(_Shown, frozen=True, kw_only=True):
    """What clients ask an agent about itself before anything else."""

    config: dict[str, str | bool]
    coord: dict[str, float] = {}
    member: dict[str, str | int | dict[str, str]]
    meta: dict[str, str] = {}
    stats: dict[str, dict[str, str]] = {}
