"""What the registry speaks of: instances, their checks, keys and events.

Everything here is an immutable value, shared freely between an embedded registry and its clients, stored as
MessagePack and sent as MessagePack or JSON. Fields with a default may be absent on the wire; unknown fields are
ignored, so that a release talks to its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import msgspec

from homeport.client.core.errors import InvalidArgument

Status = Literal["passing", "warning", "critical", "maintenance"]
State = Literal["up", "draining", "maintenance"]
CheckKind = Literal["ttl", "http", "tcp", "grpc", "alias", "call"]
Mark = Literal["", "unwritten", "stale"]

TTL_S_DEFAULT: Final = 10.0
TTL_S_MIN: Final = 0.5  # below this, renewals at a third of the TTL drown in ordinary scheduling noise
TTL_S_MAX: Final = 86_400.0  # a day, as in Consul: what lives longer does not need a lease
INTERVAL_S_DEFAULT: Final = 5.0
INTERVAL_S_MIN: Final = 0.05
TIMEOUT_S_DEFAULT: Final = 2.0
NAME_BYTES_MAX: Final = 512  # names become segments of one 4 KiB key, percent-encoded up to three times as long
TAGS_MAX: Final = 64
TAG_BYTES_MAX: Final = 512
EXTRA_BYTES_MAX: Final = 16_384  # what a front keeps with an instance: some definitions and notes
META_MAX: Final = 64
META_BYTES_MAX: Final = 4096
CHECKS_MAX: Final = 16
CHECK_BODY_BYTES_MAX: Final = 4096  # an instance with all its checks stays far below a value's limit
DEREGISTER_AFTER_S_MIN: Final = 60.0  # as in Consul: a restart must not cost a registration
OUTPUT_BYTES_MAX: Final = 4096  # as Consul caps it

# How bad a status is; the worst of an instance's checks is the instance's.
SEVERITY: Final[dict[Status, int]] = {"passing": 0, "warning": 1, "critical": 2, "maintenance": 3}


class FrozenDict(dict[Any, Any]):
    """A dict that cannot change: an in-process client shares it with the registry itself."""

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("this mapping belongs to an immutable value; build a new value with msgspec.structs.replace")

    if not TYPE_CHECKING:  # to type checkers it is a dict, whose overloads no single signature can stand for
        __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse


# The default itself, and what every empty mapping becomes: it is by identity that encoders know what to leave out.
_EMPTY: Final = FrozenDict()


def _frozen(mapping: dict[str, Any]) -> FrozenDict:
    """It, if it cannot change, else a copy that cannot."""
    return (mapping if isinstance(mapping, FrozenDict) else FrozenDict(mapping)) if mapping else _EMPTY


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How the registry learns whether an instance is well.

    `kind` says which of the target fields count: `http` probes `url`, `tcp` connects to `address`, `grpc` asks the
    server at `address` by the standard health protocol, `ttl` waits for the service to report within `ttl_s`, `alias`
    takes over the status of another instance or of a node, `call` awaits a coroutine of the registry's own process
    (see `Registry.provide`). Where the registry looks itself (not `ttl`, `alias`), statuses change only after
    `passing_after`, `warning_after` or `critical_after` results in a row, from the first result on.
    """

    name: str
    kind: CheckKind
    url: str = ""  # http: "http://host:port/path", https too
    method: str = "GET"
    headers: dict[str, str] = _EMPTY
    body: str = ""  # http: what is sent
    redirects: bool = True  # http: whether they are followed; else they are critical like all that is not 2xx
    output_bytes_max: int = OUTPUT_BYTES_MAX  # http: how much of the answer is kept
    address: str = ""  # tcp, grpc: "host:port"
    grpc_service: str = ""  # grpc: the service to ask for; empty: the server as a whole
    tls: bool = False  # tcp, grpc: whether the connection is encrypted
    tls_verify: bool = True  # https and tls: whether the certificate must be valid
    tls_name: str = ""  # https and tls: whose certificate it must be; empty: that of the host connected to
    alias_node: str = ""  # alias: the node of the instance; empty: this instance's own
    alias_id: str = ""  # alias: the instance; empty: the node itself
    call: str = ""  # call: the name that the coroutine was provided under
    ttl_s: float = 0.0  # ttl: longest silence
    interval_s: float = INTERVAL_S_DEFAULT
    timeout_s: float = TIMEOUT_S_DEFAULT
    passing_after: int = 2
    warning_after: int = 0  # results worse than passing that make it at least a warning; 0: as many as critical_after
    critical_after: int = 2
    initial: Status = "critical"  # until the first verdict
    deregister_after_s: float = 0.0  # critical for longer than this, the instance is deregistered; 0: never

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "headers", _frozen(self.headers))


class Instance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One running copy of a service, as registered; the last three fields are the registry's to say."""

    service: str
    id: str
    node: str = ""
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = _EMPTY
    weight: int = 1  # 0 to 65535; 0 takes no traffic while others are there
    zone: str = ""
    version: str = ""
    ttl_s: float = 0.0  # 0: no lease, stays until deregistered
    checks: tuple[Check, ...] = ()
    idle_timeout_s: float = 0.0  # how long the server keeps an idle connection; 0: unknown
    state: State = "up"
    extra: dict[str, bytes] = _EMPTY  # front name -> what only that front understands, carried unread by the others
    status: Status = "passing"
    # Why the registry that was asked says more than what is written, and others may not: "unwritten": it found this
    # while its store was read-only; "stale": its lease ended together with most others', so it is kept a while.
    mark: Mark = ""
    create_revision: int = 0
    mod_revision: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "meta", _frozen(self.meta))
        msgspec.structs.force_setattr(self, "extra", _frozen(self.extra))

    @property
    def key(self) -> InstanceKey:
        return (self.node, self.id)

    @property
    def available(self) -> bool:
        """Whether new traffic may be sent here: up, and no worse than warning."""
        return self.state == "up" and self.status in ("passing", "warning")


# An instance is known by (node, id): ids are unique per node, whatever service they belong to.
InstanceKey = tuple[str, str]


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key at one revision. `version` counts the writes since the key was last created; `lease` 0 means none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class KvSnapshot(msgspec.Struct, frozen=True):
    """Entries in key order, all as of `revision` of the history that `store_id` names."""

    revision: int
    entries: tuple[KeyValue, ...]
    store_id: str


class KvEvent(msgspec.Struct, frozen=True, gc=False):
    """A key was put (`value` present) or deleted (`value` None) at `revision`."""

    key: bytes
    value: bytes | None
    revision: int
    lease: int = 0


class ServiceEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a service watch delivers: first a snapshot, then deltas, each complete at `revision`."""

    service: str
    revision: int
    snapshot: bool = False  # then `changed` is the whole set
    changed: tuple[Instance, ...] = ()
    removed: tuple[InstanceKey, ...] = ()
    more: bool = False  # the next event belongs to the same step: act when it has come


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """Events of these revisions, both ends included, were not delivered and will not be."""

    from_revision: int
    to_revision: int


def validate_instance(instance: Instance) -> None:
    """Raise `InvalidArgument`, saying what is allowed, unless the registry would take this registration."""
    for field in ("service", "id", "node"):
        validate_name(field, getattr(instance, field))
    if not 0 <= instance.port <= 65_535:
        raise InvalidArgument(f"port is {instance.port}; allowed: 0 to 65535", field="port")
    if not 0 <= instance.weight <= 65_535:
        raise InvalidArgument(f"weight is {instance.weight}; allowed: 0 to 65535", field="weight")
    validate_ttl("ttl_s", instance.ttl_s, zero_allowed=True)
    if not 0 <= instance.idle_timeout_s < float("inf"):
        raise InvalidArgument("idle_timeout_s must be 0 (unknown) or a positive number", field="idle_timeout_s")
    if len(instance.tags) > TAGS_MAX:
        raise InvalidArgument(f"{len(instance.tags)} tags; allowed: at most {TAGS_MAX}", field="tags")
    for tag in instance.tags:
        if len(tag.encode()) > TAG_BYTES_MAX:
            raise InvalidArgument(
                f"a tag has {len(tag.encode())} bytes; allowed: at most {TAG_BYTES_MAX}", field="tags"
            )
    extra_bytes = sum(len(name.encode()) + len(data) for name, data in instance.extra.items())
    if extra_bytes > EXTRA_BYTES_MAX:
        raise InvalidArgument(f"extra has {extra_bytes} bytes; allowed: at most {EXTRA_BYTES_MAX}", field="extra")
    meta_bytes = sum(len(k.encode()) + len(v.encode()) for k, v in instance.meta.items())
    if len(instance.meta) > META_MAX or meta_bytes > META_BYTES_MAX:
        raise InvalidArgument(
            f"meta has {len(instance.meta)} entries and {meta_bytes} bytes; "
            f"allowed: at most {META_MAX} and {META_BYTES_MAX}",
            field="meta",
        )
    if len(instance.checks) > CHECKS_MAX:
        raise InvalidArgument(f"{len(instance.checks)} checks; allowed: at most {CHECKS_MAX}", field="checks")
    names = [check.name for check in instance.checks]
    if len(set(names)) != len(names):
        raise InvalidArgument(f"check names must differ within an instance, got {names}", field="checks")
    for check in instance.checks:
        validate_check(check)


def validate_check(check: Check) -> None:
    """Raise `InvalidArgument` unless the check could be run."""
    validate_name("check name", check.name)
    match check.kind:
        case "http":
            if not check.url.startswith(("http://", "https://")):
                raise _bad(check, "url must start with http:// or https://")
            if len(check.body.encode("utf-8", "replace")) > CHECK_BODY_BYTES_MAX:
                raise _bad(check, f"body may have at most {CHECK_BODY_BYTES_MAX} bytes")
        case "tcp" | "grpc":
            host, colon, port = check.address.rpartition(":")
            if not (colon and host and is_port(port)):
                raise _bad(check, "address must be host:port")
        case "ttl":
            validate_ttl(f"check {check.name!r}: ttl_s", check.ttl_s)
        case "alias":
            if not (check.alias_node or check.alias_id):
                raise _bad(check, "alias_id or alias_node must say what it is an alias of")
        case "call":
            if not check.call:
                raise _bad(check, "call must be the name that a coroutine was provided under")
    if check.kind not in ("ttl", "alias") and not INTERVAL_S_MIN <= check.interval_s <= TTL_S_MAX:
        raise _bad(check, f"interval_s is {check.interval_s}; allowed: {INTERVAL_S_MIN} to {TTL_S_MAX}")
    if not 0 < check.timeout_s <= 60:
        raise _bad(check, f"timeout_s is {check.timeout_s}; allowed: over 0 to 60")
    if not (1 <= check.passing_after <= 100 and 1 <= check.critical_after <= 100):
        raise _bad(check, "thresholds must be 1 to 100")
    if not 0 <= check.warning_after <= check.critical_after:
        raise _bad(check, "warning_after must be 0 (as critical_after) or 1 to critical_after")
    if not 1 <= check.output_bytes_max <= OUTPUT_BYTES_MAX:
        raise _bad(check, f"output_bytes_max must be 1 to {OUTPUT_BYTES_MAX}")
    if check.deregister_after_s and not DEREGISTER_AFTER_S_MIN <= check.deregister_after_s < float("inf"):
        raise _bad(check, f"deregister_after_s must be 0 (never) or at least {DEREGISTER_AFTER_S_MIN:g}")


def _bad(check: Check, why: str) -> InvalidArgument:
    return InvalidArgument(f"check {check.name!r}: {why}", field="checks")


def validate_ttl(field: str, ttl_s: float, *, zero_allowed: bool = False) -> None:
    """Raise `InvalidArgument` unless a lease may have this TTL."""
    if zero_allowed and ttl_s == 0:
        return
    if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:  # also refuses NaN
        zero = "0 (no lease) or " if zero_allowed else ""
        raise InvalidArgument(f"{field} is {ttl_s}; allowed: {zero}{TTL_S_MIN} to {TTL_S_MAX:.0f} seconds", field=field)


def is_port(text: str) -> bool:
    """Whether this is a port's number in decimal: `isdigit` alone also says yes to "²"."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65_535


def validate_name(field: str, name: str) -> None:
    """Raise `InvalidArgument` unless this can be the name of something."""
    """Raise `InvalidArgument` unless services, instances, nodes and checks may have this name."""
    if not name:
        raise InvalidArgument(f"{field} is empty; allowed: 1 to {NAME_BYTES_MAX} bytes of UTF-8", field=field)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} is not valid UTF-8 text", field=field) from None
    if size > NAME_BYTES_MAX:
        raise InvalidArgument(f"{field} has {size} bytes; allowed: at most {NAME_BYTES_MAX}", field=field)
