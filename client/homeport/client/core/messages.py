"""The operations of the registry: one typed request per method, one typed result per request.

Both transports share this table. In process, a request is handed over as it is; over a connection, `wire` turns it
into MessagePack-RPC: `method` is the class attribute, `params` an array that holds the request as one map. The same
page in prose, for other languages: docs/rpc.md.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Generic, TypeVar

import msgspec

from homeport.client.core.model import Instance, KeyValue, KvEvent, Lost, ServiceEvent, State, Status
from homeport.client.core.txn import Compare, Op, Response, writes

PROTOCOL_VERSION: Final = 1

R = TypeVar("R")


class Request(msgspec.Struct, Generic[R], frozen=True, omit_defaults=True):
    """A question whose answer is an `R`."""

    method: ClassVar[str] = ""


class Notice(msgspec.Struct, frozen=True):
    """Something said without waiting for an answer."""

    method: ClassVar[str] = ""


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


# --- the connection ---------------------------------------------------------------------------------------------


class Welcome(_Answer, frozen=True, omit_defaults=True):
    """Who answered: `store_id` names the history, so a restart without data is never taken for the same one."""

    version: int
    server: str
    node: str
    store_id: str
    revision: int
    limits: dict[str, int]


class Hello(Request[Welcome], frozen=True, omit_defaults=True):
    """The first request of every connection; anything else before it is refused."""

    method = "hello"
    version: int = PROTOCOL_VERSION
    token: str = ""
    client: str = ""


class Pong(_Answer, frozen=True, omit_defaults=True):
    """The registry lives, and shows this revision."""

    revision: int


class Ping(Request[Pong], frozen=True, omit_defaults=True):
    """Is anybody there, and at which revision?"""

    method = "ping"


# --- services ---------------------------------------------------------------------------------------------------


class Registered(_Answer, frozen=True, omit_defaults=True):
    """The registration stands at `revision`; `lease` (0 without a TTL) proves ownership in later calls."""

    lease: int
    ttl_s: float
    create_revision: int
    revision: int


class Register(Request[Registered], frozen=True, omit_defaults=True):
    """Register an instance, or replace the registration of the same node and id.

    A replacement gets a lease of its own, which ends the say of whoever registered before. Whoever holds the `lease`
    already and registers the very same again keeps it, renewed, and nothing is written. With `expect_free`, nobody
    else's registration is replaced: that is `LeaseGone`.
    """

    method = "register"
    instance: Instance
    lease: int = 0
    expect_free: bool = False


class Renewed(_Answer, frozen=True, omit_defaults=True):
    """Per lease asked for, in that order, its TTL in seconds, or 0.0 if it is gone.

    `revision` is that of the store, if one of them was another replica's until now; else 0.
    """

    ttls_s: tuple[float, ...]
    revision: int = 0


class Renew(Request[Renewed], frozen=True, omit_defaults=True):
    """Renew leases; writes nothing and costs the same however many there are."""

    method = "renew"
    leases: tuple[int, ...]


class Done(_Answer, frozen=True, omit_defaults=True):
    """`applied` says whether anything changed; a stale owner's late call is a no-op that says so."""

    applied: bool
    revision: int


class Deregister(Request[Done], frozen=True, omit_defaults=True):
    """Remove an instance; with `lease`, only if that lease still is the one that registered it."""

    method = "deregister"
    id: str
    node: str = ""  # empty: the registry's own node
    lease: int = 0


class SetState(Request[Done], frozen=True, omit_defaults=True):
    """Set an instance `up`, `draining` or in `maintenance`; with `lease`, only as its owner."""

    method = "set_state"
    id: str
    state: State
    node: str = ""
    lease: int = 0


class WaitApplied(Request[Done], frozen=True, omit_defaults=True):
    """Answer when every live watcher of the service has applied `revision`, or after `timeout_s` (`applied=False`)."""

    method = "wait_applied"
    service: str
    revision: int
    timeout_s: float


class ReportCheck(Request[Done], frozen=True, omit_defaults=True):
    """Report the status of a `ttl` check, which also starts its TTL anew."""

    method = "report_check"
    id: str
    check: str
    status: Status
    node: str = ""
    output: str = ""


class Resolved(_Answer, frozen=True, omit_defaults=True):
    """One page of a service's instances; pages of one answer carry the same `revision`, the service's own."""

    revision: int
    instances: tuple[Instance, ...]
    more: bool = False


class Resolve(Request[Resolved], frozen=True, omit_defaults=True):
    """The instances of a service: those that can take traffic, or with `passing=False` all of them."""

    method = "resolve"
    service: str
    passing: bool = True
    offset: int = 0


class ServiceList(_Answer, frozen=True, omit_defaults=True):
    """Services in the order of their names, with the tags their instances carry; `more` says that there are others."""

    revision: int
    services: dict[str, tuple[str, ...]]
    more: bool = False


class Services(Request[ServiceList], frozen=True, omit_defaults=True):
    """Every service whose name comes after `after`, a page at a time."""

    method = "services"
    after: str = ""


class Explained(_Answer, frozen=True, omit_defaults=True):
    """Whether an instance takes new traffic, and every reason in words, what decides first."""

    available: bool
    reasons: tuple[str, ...]


class Explain(Request[Explained], frozen=True, omit_defaults=True):
    """Why an instance is in or out of rotation; `NotFound` if there is none."""

    method = "explain"
    id: str
    node: str


# --- keys -------------------------------------------------------------------------------------------------------


class KvFound(_Answer, frozen=True, omit_defaults=True):
    """The entry, or None, as of `revision`."""

    revision: int
    entry: KeyValue | None = None


class KvGet(Request[KvFound], frozen=True, omit_defaults=True):
    """`newest`: at least as new as anything that any replica has acknowledged; without a quorum, `ReadOnly`."""

    method = "kv_get"
    key: bytes
    newest: bool = False


class KvWritten(_Answer, frozen=True, omit_defaults=True):
    """How many keys changed, and at which revision (the present one if none did)."""

    revision: int
    count: int


class KvPut(Request[KvWritten], frozen=True, omit_defaults=True):
    """Write a key. `cas` demands that its mod_revision be exactly that (0: that it be absent), else `CasFailed`."""

    method = "kv_put"
    key: bytes
    value: bytes
    cas: int | None = None
    lease: int = 0


class KvDelete(Request[KvWritten], frozen=True, omit_defaults=True):
    """Delete a key, or with `prefix` every key that starts with it."""

    method = "kv_delete"
    key: bytes
    prefix: bool = False
    cas: int | None = None


class KvPage(_Answer, frozen=True, omit_defaults=True):
    """Entries in key order as of `revision`; `more` says that a request with `after` and that revision goes on."""

    revision: int
    entries: tuple[KeyValue, ...]
    more: bool = False


class KvList(Request[KvPage], frozen=True, omit_defaults=True):
    """Entries whose key starts with `prefix`, after the key `after`, at `revision` (0: now); a page at a time."""

    method = "kv_list"
    prefix: bytes = b""
    after: bytes | None = None
    revision: int = 0
    keys_only: bool = False
    limit: int = 0


class KvTxnDone(_Answer, frozen=True, omit_defaults=True):
    """Whether the compares held, and what each operation of the branch that ran answered.

    `revision` is the store's after the transaction: the one of its writes, if it wrote anything.
    """

    revision: int
    succeeded: bool
    responses: tuple[Response, ...] = ()


class KvTxn(Request[KvTxnDone], frozen=True, omit_defaults=True):
    """If all compares hold run `then`, else `orelse`: all of it at one revision, or nothing.

    A key written twice is `InvalidArgument`. One that only reads sees all that was acknowledged to anyone before.
    """

    method = "kv_txn"
    compare: tuple[Compare, ...] = ()
    then: tuple[Op, ...] = ()
    orelse: tuple[Op, ...] = ()

    @property
    def only_reads(self) -> bool:
        """Whether asking twice is as good as asking once."""
        return not writes(self.then + self.orelse)


# --- leases -----------------------------------------------------------------------------------------------------


class Leased(_Answer, frozen=True, omit_defaults=True):
    """A lease is granted."""

    lease: int
    ttl_s: float
    revision: int


class LeaseGrant(Request[Leased], frozen=True, omit_defaults=True):
    method = "lease_grant"
    ttl_s: float


class LeaseRevoke(Request[Done], frozen=True, omit_defaults=True):
    """End a lease and delete its keys, in one revision."""

    method = "lease_revoke"
    lease: int


# --- watches ----------------------------------------------------------------------------------------------------


class Watching(_Answer, frozen=True, omit_defaults=True):
    """The watch stands; its first event follows. `revision` is where the store is now."""

    store_id: str
    revision: int


class WatchService(Request[Watching], frozen=True, omit_defaults=True):
    """Deliver a service's instances (all of them, whatever their status): a snapshot, then deltas.

    `watch` is a number of the client's choosing, new for each watch of a connection. A connection that reads too
    slowly gets `Lost` and a fresh snapshot in place of the deltas it missed.
    """

    method = "watch_service"
    watch: int
    service: str


class WatchKv(Request[Watching], frozen=True, omit_defaults=True):
    """Deliver changes of a key, or of a prefix, from `start_revision` on (0: from now); what is lost is said."""

    method = "watch_kv"
    watch: int
    key: bytes
    prefix: bool = False
    start_revision: int = 0
    store_id: str = ""


class CancelWatch(Request[Done], frozen=True, omit_defaults=True):
    method = "cancel_watch"
    watch: int


class Applied(Notice, frozen=True, omit_defaults=True):
    """The client has acted on everything up to `revision`; a drain waits for this."""

    method = "applied"
    watch: int
    revision: int


# --- the registry itself ----------------------------------------------------------------------------------------


class StatsReport(_Answer, frozen=True, omit_defaults=True):
    """Numbers about the store, by name; all integers, units in the names."""

    store_id: str
    numbers: dict[str, int]


class Stats(Request[StatsReport], frozen=True, omit_defaults=True):
    method = "stats"


class BackupOpened(_Answer, frozen=True, omit_defaults=True):
    """A copy of `size` bytes is ready to be read; `revision` is what it holds."""

    size: int
    revision: int


class BackupOpen(Request[BackupOpened], frozen=True, omit_defaults=True):
    """Copy the whole store, consistent at one revision, to be read over this connection; one at a time."""

    method = "backup_open"


class BackupChunk(_Answer, frozen=True, omit_defaults=True):
    """Bytes of a copy."""

    data: bytes


class BackupRead(Request[BackupChunk], frozen=True, omit_defaults=True):
    """Read the copy from `offset` on, up to a page; empty at its end, which also drops it."""

    method = "backup_read"
    offset: int


class RestoreWrite(Request[Done], frozen=True, omit_defaults=True):
    """Hand over a piece of a backup at `offset`; 0 begins anew."""

    method = "restore_write"
    offset: int
    data: bytes


class RestoreCommit(Request[Done], frozen=True, omit_defaults=True):
    """Verify what was handed over, and put it in the place of everything the registry holds.

    The answer comes once it is verified; then every connection is closed, and the registry comes back under a new
    `store_id`.
    """

    method = "restore_commit"


class KvEvents(msgspec.Struct, frozen=True, omit_defaults=True):
    """A revision's changes to the keys that a watch asked for; with `more`, the next event belongs to it too."""

    revision: int
    events: tuple[KvEvent, ...]
    more: bool = False


# What a watch delivers.
Event = ServiceEvent | KvEvents | Lost

RESULTS: Final[dict[type[Request[Any]], type]] = {
    Hello: Welcome,
    Ping: Pong,
    Register: Registered,
    Renew: Renewed,
    Deregister: Done,
    SetState: Done,
    WaitApplied: Done,
    ReportCheck: Done,
    Resolve: Resolved,
    Services: ServiceList,
    KvGet: KvFound,
    KvPut: KvWritten,
    KvDelete: KvWritten,
    KvList: KvPage,
    KvTxn: KvTxnDone,
    LeaseGrant: Leased,
    LeaseRevoke: Done,
    WatchService: Watching,
    WatchKv: Watching,
    CancelWatch: Done,
    Explain: Explained,
    Stats: StatsReport,
    BackupOpen: BackupOpened,
    BackupRead: BackupChunk,
    RestoreWrite: Done,
    RestoreCommit: Done,
}
REQUESTS: Final[dict[str, type[Request[Any]]]] = {request.method: request for request in RESULTS}
NOTICES: Final[dict[str, type[Notice]]] = {Applied.method: Applied}
