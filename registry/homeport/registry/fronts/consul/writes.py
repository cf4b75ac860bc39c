"""The JSON that asks for writes to the catalogue, and for transactions, as types."""

from __future__ import annotations

import msgspec

from homeport.registry.fronts.consul import shapes
from homeport.registry.fronts.consul.bodies import go_name


class CheckTarget(msgspec.Struct, frozen=True, kw_only=True, rename=go_name, omit_defaults=True):
    """What a check that somebody else runs looks at: carried and shown, but for the deadline, which is kept here."""

    http: str = ""
    header: dict[str, list[str]] = {}
    method: str = ""
    body: str = ""
    disable_redirects: bool = False
    tls_server_name: str = msgspec.field(default="", name="TLSServerName")
    tls_skip_verify: bool = msgspec.field(default=False, name="TLSSkipVerify")
    tcp: str = ""
    tcp_use_tls: bool = msgspec.field(default=False, name="TCPUseTLS")
    udp: str = ""
    grpc: str = ""
    grpc_use_tls: bool = msgspec.field(default=False, name="GRPCUseTLS")
    os_service: str = ""
    interval: str | int = ""
    timeout: str | int = ""
    deregister_critical_service_after: str | int = ""


class CatalogCheck(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """A check of a node, or with a `service_id` of a service on it, that somebody else looks after."""

    node: str = ""
    check_id: str = ""
    name: str = ""
    notes: str = ""
    status: str = ""
    output: str = ""
    service_id: str = ""
    service_name: str = ""
    type: str = ""
    definition: CheckTarget = CheckTarget()
    modify_index: int = 0  # for a transaction's cas


class CatalogService(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """A service as registered with the catalogue."""

    id: str = ""
    service: str = ""
    tags: list[str] = []
    meta: dict[str, str] = {}
    address: str = ""
    port: int = 0
    tagged_addresses: dict[str, shapes.TaggedAddress] = {}
    weights: shapes.Weights | None = None
    enable_tag_override: bool = False
    modify_index: int = 0  # for a transaction's cas
    # Known, and refused where given.
    kind: str = ""
    socket_path: str = ""
    ports: list[object] = []
    proxy: dict[str, object] = {}
    connect: dict[str, object] = {}
    locality: dict[str, object] = {}
    namespace: str = ""
    partition: str = ""


class Registration(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """A node as registered with the catalogue, and what comes with it."""

    id: str = ""
    node: str = ""
    address: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] = {}
    node_meta: dict[str, str] = {}
    service: CatalogService | None = None
    check: CatalogCheck | None = None
    checks: list[CatalogCheck] = []
    skip_node_update: bool = False
    namespace: str = ""
    partition: str = ""
    locality: dict[str, object] = {}


class Deregistration(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """What to remove from the catalogue: a service or a check of a node, or the node with all that is on it."""

    node: str = ""
    datacenter: str = ""
    service_id: str = ""
    check_id: str = ""
    namespace: str = ""
    partition: str = ""


class TxnKvAsked(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """An operation on a key; the value is base64."""

    verb: str = ""
    key: str = ""
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""


class CatalogNode(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """A node in a transaction."""

    id: str = ""
    node: str = ""
    address: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] = {}
    meta: dict[str, str] = {}
    modify_index: int = 0  # for cas
    partition: str = ""


class TxnNodeAsked(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    verb: str = ""
    node: CatalogNode = CatalogNode()


class TxnServiceAsked(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    verb: str = ""
    node: str = ""
    service: CatalogService = CatalogService()


class TxnCheckAsked(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    verb: str = ""
    check: CatalogCheck = CatalogCheck()


class TxnOperation(msgspec.Struct, frozen=True, kw_only=True, rename=go_name):
    """One operation of a transaction: exactly one of these."""

    kv: TxnKvAsked | None = msgspec.field(default=None, name="KV")
    node: TxnNodeAsked | None = None
    service: TxnServiceAsked | None = None
    check: TxnCheckAsked | None = None
