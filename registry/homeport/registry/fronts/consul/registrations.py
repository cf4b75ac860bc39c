"""Consul's service definitions as instances: read once on the way in, and what only Consul's clients know kept beside.

An instance of this registry says everything that its other clients need. The rest (names and notes of checks, tagged
addresses, tag override) rides in `extra["consul"]`, which the others carry unread. A check's name is its CheckID.
"""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import ProtocolError
from homeport.client.core.model import (
    DEREGISTER_AFTER_S_MIN,
    OUTPUT_BYTES_MAX,
    TTL_S_MIN,
    Check,
    Instance,
    State,
    Status,
)
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord, Entry
from homeport.registry.fronts.consul.answers import Refusal
from homeport.registry.fronts.consul.durations import parse_duration
from homeport.registry.fronts.consul.shapes import CheckDefinition, ServiceDefinition, TaggedAddress

EXTRA: Final = "consul"  # under which name our part rides with an instance
# The CheckIDs that stand for maintenance: whoever tells such a check sets that state.
NODE_MAINTENANCE: Final = "_node_maintenance"
SERVICE_MAINTENANCE: Final = "_service_maintenance:"  # and the service's ID
CHECK_TIMEOUT_S: Final = 10.0  # Consul's default
CHECK_INTERVAL_S_MIN: Final = 1.0  # shorter ones are raised to this, as in Consul
_TARGETS: Final = {"alias": "AliasService or AliasNode"}
_INITIAL: Final[dict[str, Status]] = {
    "": "critical",
    "passing": "passing",
    "warning": "warning",
    "critical": "critical",
}

# What is known and not done: given a value, it is refused with these words.
_CHECKS_REFUSED: Final[dict[str, str]] = {
    "args": "script checks are remote code execution, so there are none",
    "script": "script checks are remote code execution, so there are none",
    "docker_container_id": "script checks are remote code execution, so there are none",
    "shell": "script checks are remote code execution, so there are none",
    "udp": "nothing says whether a datagram arrived; use HTTP, TCP, GRPC or TTL",
    "h2ping": "a ping is answered below the service, whatever its state; use GRPC or HTTP",
    "os_service": "this registry looks over the network, not at a machine's services; use HTTP, TCP, GRPC or TTL",
    "proxy_http": "checks go to the service itself",
    "proxy_grpc": "checks go to the service itself",
}
# What only checks of some kinds can heed: given to another, it would be a promise that nobody keeps.
_PROBES: Final = frozenset({"http", "tcp", "grpc"})
_CHECKS_FITTING: Final[dict[str, frozenset[str]]] = {
    "header": frozenset({"http"}),
    "method": frozenset({"http"}),
    "body": frozenset({"http"}),
    "disable_redirects": frozenset({"http"}),
    "tcp_use_tls": frozenset({"tcp"}),
    "grpc_use_tls": frozenset({"grpc"}),
    "tls_skip_verify": _PROBES,
    "tls_server_name": _PROBES,
    "success_before_passing": _PROBES,
    "failures_before_warning": _PROBES,
    "failures_before_critical": _PROBES,
}
_SERVICES_REFUSED: Final[dict[str, str]] = {
    "kind": "there is no service mesh of Consul's kind, only typical services",
    "socket_path": "services have an address and a port",
    "ports": "services have one port; more go in TaggedAddresses",
    "proxy": "there is no service mesh of Consul's kind",
    "locality": "use Meta",
}


class CheckDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Consul's clients know of a check beyond how it is run."""

    name: str = ""
    notes: str = ""
    kind: str = ""  # of a check that others look after: what they call it, and what it looks at
    definition: dict[str, object] = {}


class Details(msgspec.Struct, frozen=True, omit_defaults=True):
    """What they know of a service, or of a node, whose tagged addresses have no ports; `checks` by CheckID."""

    checks: dict[str, CheckDetails] = {}
    address_given: bool = True  # else the node's address stands in for it
    enable_tag_override: bool = False
    tagged_addresses: dict[str, tuple[str, int]] = {}
    weight_warning: int = 1
    maintenance_reason: str = ""
    node_id: str = ""  # of a node that was registered with one


_NO_DETAILS: Final = Details()


def details_of(instance: Instance) -> Details:
    """What Consul's clients said of an instance; nothing, if others registered it, whatever they wrote there."""
    data = instance.extra.get(EXTRA)
    if data is None:
        return _NO_DETAILS
    try:
        return wire.decode(Details, data)
    except ProtocolError:
        return _NO_DETAILS


def told_details(record: CheckRecord) -> CheckDetails | None:
    """What Consul's clients said of a check that they look after; None: the registry itself found it."""
    data = record.extra.get(EXTRA)
    if data is None:
        return None
    try:
        return wire.decode(CheckDetails, data)
    except ProtocolError:
        return CheckDetails()


def check_id(instance: Instance, name: str) -> str:
    """How Consul's clients call a check: as they named it, else by a name that is unique on the node."""
    return name if name in details_of(instance).checks else f"service:{instance.id}:{name}"


def check_status(catalogue: Catalogue, entry: Entry, check: Check) -> Status:
    """The status of a check now."""
    record = catalogue.checks.one(entry.registered.key, check.name)
    if record is not None:
        return record.status
    return "critical" if check.kind == "ttl" else check.initial


def to_instance(
    definition: ServiceDefinition, *, node: str, node_address: str, state: State, maintenance_reason: str = ""
) -> Instance:
    """The instance that a definition describes.

    Raises:
        Refusal: 400; something is missing, contradicts itself, or is not supported.
    """
    if not definition.name:
        raise Refusal(400, "Missing service name")
    _refuse_given(definition, _SERVICES_REFUSED)
    if any(value is not False for value in definition.connect.values()):  # an empty SidecarService asks for one, too
        raise Refusal(400, "Invalid service: Connect is not supported: there is no service mesh of Consul's kind")
    for name in ("namespace", "partition"):
        if getattr(definition, name) not in ("", "default"):
            raise Refusal(400, f"Invalid service: {name.capitalize()} is not supported: there is only the default one")
    weights = definition.weights
    if weights is not None and not (1 <= weights.passing <= 65_535 and 0 <= weights.warning <= 65_535):
        raise Refusal(400, "Invalid service: Weights.Passing must be 1 to 65535 and Weights.Warning 0 to 65535")
    id_ = definition.id or definition.name
    defined = [*([definition.check] if definition.check and _is_given(definition.check) else []), *definition.checks]
    checks: list[Check] = []
    details: dict[str, CheckDetails] = {}
    for number, check in enumerate(defined, 1):
        default = f"service:{id_}" if len(defined) == 1 else f"service:{id_}:{number}"
        name = check.check_id or check.id or default
        if name in details:
            raise _invalid(f"CheckID {name!r} is used twice")
        ours, known = to_check(check, name)
        checks.append(ours)
        details[name] = msgspec.structs.replace(known, name=check.name or f"Service '{definition.name}' check")
    beside = Details(
        checks=details,
        address_given=bool(definition.address),
        enable_tag_override=definition.enable_tag_override,
        tagged_addresses={
            name: (tagged.address, tagged.port) for name, tagged in sorted(definition.tagged_addresses.items())
        },
        weight_warning=1 if weights is None else weights.warning,
        maintenance_reason=maintenance_reason,
    )
    return Instance(
        service=definition.name,
        id=id_,
        node=node,
        address=definition.address or node_address,
        port=definition.port,
        tags=tuple(definition.tags),
        meta=definition.meta,
        weight=1 if weights is None else weights.passing,
        checks=tuple(checks),
        state=state,
        extra={EXTRA: wire.encode(beside)},
    )


def tagged_addresses(details: Details) -> dict[str, TaggedAddress]:
    return {name: TaggedAddress(address, port) for name, (address, port) in details.tagged_addresses.items()}


def _is_given(check: CheckDefinition) -> bool:
    return check != CheckDefinition()


def to_check(check: CheckDefinition, name: str) -> tuple[Check, CheckDetails]:
    """The check that a definition describes, and what goes beside it.

    Raises:
        Refusal: 400; something is missing, contradicts itself, or is not supported.
    """
    ours = _to_check(check, name)
    after_s = duration_s("DeregisterCriticalServiceAfter", check.deregister_critical_service_after)
    ours = msgspec.structs.replace(ours, deregister_after_s=reap_after_s(after_s))
    return ours, CheckDetails(check.name or name, check.notes)


def _to_check(check: CheckDefinition, name: str) -> Check:
    _refuse_given(check, _CHECKS_REFUSED)
    alias = bool(check.alias_service or check.alias_node)
    targets = [kind for kind in ("ttl", "http", "tcp", "grpc") if getattr(check, kind)] + ["alias"] * alias
    if len(targets) != 1:
        given = " and ".join(_TARGETS.get(target, target.upper()) for target in targets) or "none"
        raise _invalid(f"one of TTL, HTTP, TCP, GRPC and AliasService or AliasNode must be provided, got {given}")
    initial = _INITIAL.get(check.status)
    if initial is None:
        raise _invalid(f"Status {check.status!r} must be 'passing', 'warning' or 'critical'")
    kind = targets[0]
    unfit = {
        field: "only " + ", ".join(sorted(fits)).upper() + " checks heed it"
        for field, fits in _CHECKS_FITTING.items()
        if kind not in fits
    }
    _refuse_given(check, unfit)
    if check.output_max_size and kind != "http":
        raise _invalid("OutputMaxSize is not supported but for HTTP checks: of others 4 KB are kept")
    if check.output_max_size < 0:
        raise _invalid("OutputMaxSize must be positive")
    if kind == "ttl":
        if check.interval:
            raise _invalid("Interval and TTL cannot both be specified")
        ttl_s = duration_s("TTL", check.ttl)
        return Check(name=name, kind="ttl", ttl_s=max(ttl_s, TTL_S_MIN) if ttl_s > 0 else ttl_s, initial=initial)
    interval_s = duration_s("Interval", check.interval)
    if kind == "alias":
        if interval_s:
            raise _invalid("Interval cannot be set for Alias checks")
        return Check(
            name=name, kind="alias", alias_node=check.alias_node, alias_id=check.alias_service, initial=initial
        )
    if interval_s <= 0:
        raise _invalid("Interval must be > 0 for HTTP, TCP and GRPC checks")
    critical_after = max(check.failures_before_critical, 1)
    if check.failures_before_warning > critical_after:
        raise _invalid("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
    common = Check(
        name=name,
        kind="tcp",
        tls_verify=not check.tls_skip_verify,
        tls_name=check.tls_server_name,
        interval_s=max(interval_s, CHECK_INTERVAL_S_MIN),
        timeout_s=duration_s("Timeout", check.timeout) or CHECK_TIMEOUT_S,
        passing_after=max(check.success_before_passing, 1),
        warning_after=max(check.failures_before_warning, 0),
        critical_after=critical_after,
        initial=initial,
    )
    if kind == "tcp":
        return msgspec.structs.replace(common, address=check.tcp, tls=check.tcp_use_tls)
    if kind == "grpc":
        address, _, service = check.grpc.partition("/")
        return msgspec.structs.replace(
            common, kind="grpc", address=address, grpc_service=service, tls=check.grpc_use_tls
        )
    return msgspec.structs.replace(
        common,
        kind="http",
        url=check.http,
        method=check.method or "GET",
        headers={header: ", ".join(values) for header, values in sorted(check.header.items())},
        body=check.body,
        redirects=not check.disable_redirects,
        output_bytes_max=min(check.output_max_size or OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX),
    )


def _invalid(why: str) -> Refusal:
    return Refusal(400, f"Invalid check: {why}")


def reap_after_s(asked_s: float) -> float:
    """How long a check may be critical before its service is deregistered, raised to what is possible; 0: for ever."""
    return max(asked_s, DEREGISTER_AFTER_S_MIN) if asked_s > 0 else 0.0


def duration_s(field: str, value: object) -> float:
    """A duration as text, or nanoseconds, as Go has it; 0 where not given."""
    if not isinstance(value, str):
        return float(value) / 1e9 if isinstance(value, int) else 0.0
    try:
        return parse_duration(value) if value else 0.0
    except ValueError as error:
        raise _invalid(f"{field}: {error}") from None


def _refuse_given(definition: CheckDefinition | ServiceDefinition, refused: dict[str, str]) -> None:
    for field, why in refused.items():
        if getattr(definition, field):
            names = {info.name: info.encode_name for info in msgspec.structs.fields(definition)}
            what = "check" if isinstance(definition, CheckDefinition) else "service"
            raise Refusal(400, f"Invalid {what}: {names[field]} is not supported: {why}")
