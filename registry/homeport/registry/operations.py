"""The operations: what every request does to the store and the catalogue, whoever asks and however it came.

Each handler decides at once and commits at most one transaction, so writes of one connection apply in the order in
which they arrive. Handlers that only read answer without waiting; the others return a future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import (
    CasFailed,
    InvalidArgument,
    LeaseGone,
    LimitExceeded,
    NotFound,
    Unauthorized,
)
from homeport.client.core.messages import (
    PROTOCOL_VERSION,
    Applied,
    BackupChunk,
    BackupOpen,
    BackupOpened,
    BackupRead,
    CancelWatch,
    Deregister,
    Done,
    Hello,
    KvDelete,
    KvFound,
    KvGet,
    KvList,
    KvPage,
    KvPut,
    KvWritten,
    Leased,
    LeaseGrant,
    LeaseRevoke,
    Notice,
    Ping,
    Pong,
    Register,
    Registered,
    Renew,
    Renewed,
    ReportCheck,
    Request,
    Resolve,
    Resolved,
    RestoreCommit,
    RestoreWrite,
    ServiceList,
    Services,
    SetState,
    Stats,
    StatsReport,
    WaitApplied,
    Watching,
    WatchKv,
    WatchService,
    Welcome,
)
from homeport.client.core.model import OUTPUT_BYTES_MAX, Instance, InstanceKey, KeyValue, validate_instance
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue, CheckRecord, Entry
from homeport.registry.core.limits import (
    CONNECTION_CALLS_MAX,
    KEY_BYTES_MAX,
    PAGE_BYTES,
    RENEW_LEASES_MAX,
    TXN_OPS_MAX,
    VALUE_BYTES_MAX,
    WATCHES_PER_CONNECTION_MAX,
)
from homeport.registry.core.txn import (
    Compare,
    Delete,
    DeleteResult,
    EndLease,
    Op,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from homeport.registry.peers import Peer, Peers
from homeport.registry.store.contract import Store
from homeport.registry.store.embedded import lease_put
from homeport.registry.transfers import Transfers

A = TypeVar("A")

_RACES_MAX: Final = 16  # times a registration is decided anew because another of the same id came first
_PAGE_ENTRIES: Final = 4096  # of a list: a page of small ones is a few hundred microseconds of work
_ENTRY_BYTES: Final = 64  # what an entry weighs besides its key and value
_WAIT_APPLIED_S_MAX: Final = 30.0  # a drain that has waited longer must not wait for one slow follower
_OWN_OPS_MAX: Final = 4 * TXN_OPS_MAX  # a registration with its checks and their leases

LIMITS: Final[dict[str, int]] = {
    "frame_bytes": wire.FRAME_BYTES_MAX,
    "key_bytes": KEY_BYTES_MAX,
    "value_bytes": VALUE_BYTES_MAX,
    "page_bytes": PAGE_BYTES,
    "txn_ops": TXN_OPS_MAX,
    "renew_leases": RENEW_LEASES_MAX,
    "watches_per_connection": WATCHES_PER_CONNECTION_MAX,
    "calls_per_connection": CONNECTION_CALLS_MAX,
}


class Encoded:
    """A result that is encoded already, and decoded only for a caller in this process."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: type[Any], data: bytes) -> None:
        self.kind = kind
        self.data = data

    def decoded(self) -> Any:
        return wire.decode(self.kind, self.data)


class Commit(Generic[A]):
    """A transaction to commit, and what its outcome says to whoever asked: for handlers that need nothing else."""

    __slots__ = ("shape", "txn")

    def __init__(self, txn: Txn, shape: Callable[[TxnResult], A]) -> None:
        self.txn = txn
        self.shape = shape  # may raise a HomeportError, which is then the answer


class Operations:
    """The registry's answers to every request of `homeport.client.core.messages`."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        peers: Peers,
        *,
        node: str,
        server: str,
        token: str,
        restore: Callable[[str], None],
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.peers = peers
        self.node = node
        self._server = server
        self.token = token
        self._restore = restore  # puts a verified backup in the place of everything, soon, and removes the file
        self._transfers = Transfers(store)
        self._handlers: dict[type[Request[Any]], Callable[[Any, Peer], Any]] = {
            Hello: self.hello,
            Ping: self.ping,
            Register: self.register,
            Renew: self.renew,
            Deregister: self.deregister,
            SetState: self.set_state,
            ReportCheck: self.report_check,
            WaitApplied: self.wait_applied,
            Resolve: self.resolve,
            Services: self.services,
            KvGet: self.kv_get,
            KvPut: self.kv_put,
            KvDelete: self.kv_delete,
            KvList: self.kv_list,
            LeaseGrant: self.lease_grant,
            LeaseRevoke: self.lease_revoke,
            WatchService: self.watch_service,
            WatchKv: self.watch_kv,
            CancelWatch: self.cancel_watch,
            Stats: self.stats,
            BackupOpen: self.backup_open,
            BackupRead: self.backup_read,
            RestoreWrite: self.restore_write,
            RestoreCommit: self.restore_commit,
        }

    def handle(self, request: Request[Any], peer: Peer) -> Any:
        """Answer a request: its result, an `Encoded` one, a `Commit` to be carried out, or an awaitable of one.

        Raises:
            HomeportError: the request was refused; nothing changed.
        """
        return self._handlers[type(request)](request, peer)

    def leave(self, peer: Peer) -> None:
        """A peer is gone: forget what it watched and was handed."""
        self.peers.leave(peer)
        self._transfers.leave(peer)

    def notice(self, notice: Notice, peer: Peer) -> None:
        """Take note of what a peer said."""
        match notice:
            case Applied(watch=watch, revision=revision):
                self.peers.applied(peer, watch, revision)

    # --- the connection -----------------------------------------------------------------------------------------

    def hello(self, request: Hello, _peer: Peer) -> Welcome:
        if request.version != PROTOCOL_VERSION:
            raise InvalidArgument(f"version is {request.version}; allowed: {PROTOCOL_VERSION}", field="version")
        if self.token and request.token != self.token:
            raise Unauthorized("the token is missing or not accepted")
        return Welcome(
            version=PROTOCOL_VERSION,
            server=self._server,
            node=self.node,
            store_id=self.store.store_id,
            revision=self.store.mvcc.revision,
            limits=LIMITS,
        )

    def ping(self, _request: Ping, _peer: Peer) -> Pong:
        return Pong(self.store.mvcc.revision)

    # --- services -----------------------------------------------------------------------------------------------

    async def register(self, request: Register, peer: Peer) -> Registered:
        instance = self._completed(request.instance)
        for _ in range(_RACES_MAX):
            entry = self.catalogue.find(*instance.key)
            if entry is not None and self._stands(entry, instance, request.lease):
                if entry.lease:
                    self.store.lease_renew(entry.lease)
                return self._registered(entry, peer)
            lease = self.store.new_lease() if instance.ttl_s else 0
            result = await self.store.commit(self._registration(instance, lease, entry), ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                entry = self.catalogue.find(*instance.key)
                if entry is None or entry.lease != lease:
                    continue  # replaced or gone again before this answer: decide anew
                return self._registered(entry, peer)
        raise LimitExceeded(
            f"instance {instance.id!r} was registered by others {_RACES_MAX} times meanwhile; is the id unique?",
            limit="races",
            allowed=_RACES_MAX,
        )

    def _completed(self, instance: Instance) -> Instance:
        """The registration as stored: with a node, without what only the registry may say."""
        instance = msgspec.structs.replace(
            instance, node=instance.node or self.node, status="passing", create_revision=0, mod_revision=0
        )
        validate_instance(instance)
        return instance

    def _stands(self, entry: Entry, instance: Instance, lease: int) -> bool:
        """Whether this very registration is in force, owned by this caller, with nothing to clear up."""
        registered = msgspec.structs.replace(entry.registered, create_revision=0, mod_revision=0)
        return registered == instance and entry.lease == lease and not self._foreign_checks(entry)

    def _foreign_checks(self, entry: Entry) -> list[str]:
        defined = {check.name for check in entry.registered.checks}
        return [name for name in self.catalogue.check_names(entry.registered.key) if name not in defined]

    def _registered(self, entry: Entry, peer: Peer) -> Registered:
        instance = entry.registered
        peer.registered[instance.key] = entry.lease
        return Registered(entry.lease, instance.ttl_s, instance.create_revision, self.catalogue.revision)

    def _registration(self, instance: Instance, lease: int, entry: Entry | None) -> Txn:
        """One transaction that puts an instance in place of whatever was registered under its node and id."""
        node, id_ = instance.key
        own = keys.instance(instance.service, node, id_)
        ops: list[Op] = []
        if lease:
            ops.append(lease_put(lease, instance.ttl_s))
        kept: set[str] = set()  # checks that go on as before, with the status they had
        if entry is None:
            unchanged = Compare(keys.id_of(node, id_), "version", "=", 0)
        else:
            old = entry.registered
            standing = keys.instance(old.service, node, id_)
            unchanged = Compare(standing, "mod", "=", old.mod_revision)
            kept = {check.name for check in instance.checks if check in old.checks}
            if standing != own:
                ops.append(Delete(standing))
        ops.append(Put(own, wire.encode(instance), lease))
        ops.append(Put(keys.id_of(node, id_), instance.service.encode(), lease))
        standing_records = {name: self.catalogue.check_record(instance.key, name) for name in kept}
        written = {check.name for check in instance.checks if check.kind == "ttl" or standing_records.get(check.name)}
        for check in instance.checks:
            record = standing_records.get(check.name)
            if check.kind == "ttl":
                ops += self._ttl_check(instance, check.name, record or CheckRecord(check.initial))
            elif record is not None:
                ops.append(Put(keys.check(node, id_, check.name), wire.encode(record), lease))
        # Last, when all that goes on has moved to other leases: what still hangs on the old ones goes with them.
        ops += self._end_checks(instance.key, entry.lease if entry else 0, keep=written)
        if entry is not None and entry.lease:
            ops.append(EndLease(entry.lease))
        return Txn((unchanged,), tuple(ops))

    def _ttl_check(self, instance: Instance, name: str, record: CheckRecord) -> list[Op]:
        """A ttl check's status, on a lease of its own whose end turns it critical."""
        ttl_s = next(check.ttl_s for check in instance.checks if check.name == name)
        lease = self.store.new_lease()
        return [lease_put(lease, ttl_s), Put(keys.check(*instance.key, name), wire.encode(record), lease)]

    def _end_checks(self, key: InstanceKey, lease: int, keep: set[str]) -> list[Op]:
        """Delete an instance's statuses but for `keep`, and the leases that its ttl checks have of their own."""
        ops: list[Op] = []
        for name in self.catalogue.check_names(key):
            record = self.store.mvcc.get(keys.check(*key, name))
            if record is not None and record.lease not in (0, lease):
                ops.append(EndLease(record.lease))
            if name not in keep:
                ops.append(Delete(keys.check(*key, name)))
        return ops

    def renew(self, request: Renew, _peer: Peer) -> Renewed:
        if len(request.leases) > RENEW_LEASES_MAX:
            raise LimitExceeded(
                f"{len(request.leases)} leases in one renewal; allowed: {RENEW_LEASES_MAX}",
                limit="RENEW_LEASES_MAX",
                allowed=RENEW_LEASES_MAX,
            )
        renew = self.store.lease_renew
        return Renewed(tuple([renew(lease) for lease in request.leases]))

    async def deregister(self, request: Deregister, peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        peer.registered.pop(key, None)
        for _ in range(_RACES_MAX):
            entry = self._owned(key, request.lease)
            if entry is None:
                break
            old = entry.registered
            standing = keys.instance(old.service, *key)
            ops: list[Op] = [
                Delete(standing),
                Delete(keys.id_of(*key)),
                *self._end_checks(key, entry.lease, keep=set()),
            ]
            if entry.lease:
                ops.append(EndLease(entry.lease))
            unchanged = Compare(standing, "mod", "=", old.mod_revision)
            result = await self.store.commit(Txn((unchanged,), tuple(ops)), ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                return Done(True, result.revision)
        return Done(False, self.store.mvcc.revision)

    async def set_state(self, request: SetState, _peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        for _ in range(_RACES_MAX):
            entry = self._owned(key, request.lease)
            if entry is None or entry.registered.state == request.state:
                break
            old = entry.registered
            standing = keys.instance(old.service, *key)
            new = msgspec.structs.replace(old, state=request.state, create_revision=0, mod_revision=0)
            unchanged = Compare(standing, "mod", "=", old.mod_revision)
            result = await self.store.commit(Txn((unchanged,), (Put(standing, wire.encode(new), entry.lease),)))
            if result.succeeded:
                return Done(True, result.revision)
        return Done(False, self.store.mvcc.revision)

    def _owned(self, key: InstanceKey, lease: int) -> Entry | None:
        """The instance, if it is there and `lease` (0: anyone's) is the one that registered it."""
        entry = self.catalogue.find(*key)
        return None if entry is None or (lease and entry.lease != lease) else entry

    async def report_check(self, request: ReportCheck, _peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        entry = self.catalogue.find(*key)
        check = next((c for c in entry.registered.checks if c.name == request.check), None) if entry else None
        if entry is None or check is None:
            what = "instance" if entry is None else f"check {request.check!r} on instance"
            raise NotFound(f"there is no {what} {request.id!r} on node {key[0]!r}", id=request.id)
        if check.kind != "ttl":
            raise InvalidArgument(
                f"check {check.name!r} is of kind {check.kind}; only ttl checks are reported", field="check"
            )
        record = CheckRecord(request.status, request.output[:OUTPUT_BYTES_MAX])
        old = self.store.mvcc.get(keys.check(*key, check.name))
        if old is not None and self.store.lease_renew(old.lease) and old.value == wire.encode(record):
            return Done(False, self.store.mvcc.revision)
        standing = keys.instance(entry.registered.service, *key)
        same = Compare(standing, "create", "=", entry.registered.create_revision)
        ops = self._ttl_check(entry.registered, check.name, record)
        if old is not None:
            ops.append(EndLease(old.lease))
        result = await self.store.commit(Txn((same,), tuple(ops)))
        return Done(result.succeeded, result.revision)

    def wait_applied(self, request: WaitApplied, _peer: Peer) -> Awaitable[Done]:
        if not 0 <= request.timeout_s <= _WAIT_APPLIED_S_MAX:
            raise InvalidArgument(
                f"timeout_s is {request.timeout_s}; allowed: 0 to {_WAIT_APPLIED_S_MAX:.0f}", field="timeout_s"
            )

        async def wait() -> Done:
            done = await self.peers.wait_applied(request.service, request.revision, request.timeout_s)
            return Done(done, self.store.mvcc.revision)

        return asyncio.ensure_future(wait())

    def resolve(self, request: Resolve, _peer: Peer) -> Encoded:
        return Encoded(Resolved, self.catalogue.resolved(request.service, request.passing, request.offset))

    def services(self, _request: Services, _peer: Peer) -> ServiceList:
        return ServiceList(self.catalogue.index, self.catalogue.tags())

    # --- keys ---------------------------------------------------------------------------------------------------

    def kv_get(self, request: KvGet, _peer: Peer) -> KvFound:
        found = self.store.mvcc.get(keys.USER + request.key)
        return KvFound(self.store.mvcc.revision, None if found is None else _bare(found))

    def kv_put(self, request: KvPut, _peer: Peer) -> Commit[KvWritten]:
        if not request.key:
            raise InvalidArgument(f"the key is empty; allowed: 1 to {KEY_BYTES_MAX} bytes", field="key")
        key = keys.USER + request.key
        put = Put(key, request.value, request.lease)
        cas = request.cas
        if cas is None:
            return Commit(Txn(then=(put,)), _written)

        def shape(result: TxnResult) -> KvWritten:
            _check_cas(result, cas)
            return _written(result)

        return Commit(Txn((Compare(key, "mod", "=", cas),), (put,), (Range(key),)), shape)

    def kv_delete(self, request: KvDelete, _peer: Peer) -> Commit[KvWritten]:
        key = keys.USER + request.key
        if request.prefix and request.cas is not None:
            raise InvalidArgument("cas goes with one key, not with prefix", field="cas")
        demand = () if request.cas is None else (Compare(key, "mod", "=", request.cas),)
        end = keys.prefix_end(key) if request.prefix else None
        details = keys.USER_DETAILS + request.key
        also = Delete(details, keys.prefix_end(details) if request.prefix else None)

        def shape(result: TxnResult) -> KvWritten:
            _check_cas(result, request.cas)
            deleted = result.responses[0]
            assert isinstance(deleted, DeleteResult)
            return KvWritten(result.revision, len(deleted.prevs))

        return Commit(Txn(demand, (Delete(key, end), also), (Range(key),)), shape)

    def kv_list(self, request: KvList, _peer: Peer) -> KvPage:
        prefix = keys.USER + request.prefix
        start = prefix if request.after is None else keys.USER + request.after + b"\0"
        revision = request.revision or self.store.mvcc.revision
        most = request.limit or _PAGE_ENTRIES
        if request.limit < 0:
            raise InvalidArgument(f"limit is {request.limit}; allowed: 0 (a page) or more", field="limit")
        found = self.store.mvcc.range(
            Range(
                start,
                keys.prefix_end(prefix),
                revision,
                min(most, _PAGE_ENTRIES),
                keys_only=request.keys_only,
                uncounted=True,
            )
        )
        entries: list[KeyValue] = []
        size = 0
        for kv in found.entries:
            size += len(kv.key) + len(kv.value) + _ENTRY_BYTES
            if entries and size > PAGE_BYTES:
                break
            entries.append(_bare(kv))
        return KvPage(revision, tuple(entries), found.count > len(entries))

    # --- leases -------------------------------------------------------------------------------------------------

    async def lease_grant(self, request: LeaseGrant, _peer: Peer) -> Leased:
        lease = self.store.new_lease()
        result = await self.store.lease_grant(request.ttl_s, lease)
        return Leased(lease, request.ttl_s, result.revision)

    async def lease_revoke(self, request: LeaseRevoke, _peer: Peer) -> Done:
        if self.store.lease_remaining_s(request.lease) is None:
            raise LeaseGone(f"lease {request.lease:016x} does not exist", lease=request.lease)
        result = await self.store.lease_revoke(request.lease)
        return Done(True, result.revision)

    # --- backups ------------------------------------------------------------------------------------------------

    async def backup_open(self, _request: BackupOpen, peer: Peer) -> BackupOpened:
        revision = self.store.mvcc.revision
        await self._transfers.open(peer)
        return BackupOpened(self._transfers.size(peer), revision)

    def backup_read(self, request: BackupRead, peer: Peer) -> BackupChunk:
        if request.offset < 0:
            raise InvalidArgument(f"offset is {request.offset}; allowed: 0 or more", field="offset")
        return BackupChunk(self._transfers.read(peer, request.offset))

    def restore_write(self, request: RestoreWrite, peer: Peer) -> Done:
        self._transfers.write(peer, request.offset, request.data)
        return Done(True, self.store.mvcc.revision)

    async def restore_commit(self, _request: RestoreCommit, peer: Peer) -> Done:
        self._restore(await self._transfers.verified(peer))
        return Done(True, self.store.mvcc.revision)

    # --- watches ------------------------------------------------------------------------------------------------

    def watch_service(self, request: WatchService, peer: Peer) -> Watching:
        self.peers.follow(peer, request.watch, request.service)
        return Watching(self.store.store_id, self.store.mvcc.revision)

    def watch_kv(self, request: WatchKv, peer: Peer) -> Watching:
        key = keys.USER + request.key
        start = request.start_revision
        if start and request.store_id not in ("", self.store.store_id):
            raise NotFound(
                f"start_revision {start} belongs to store {request.store_id}; this is {self.store.store_id}",
                store_id=self.store.store_id,
            )
        self.peers.follow_keys(peer, request.watch, key, keys.prefix_end(key) if request.prefix else None, start)
        return Watching(self.store.store_id, self.store.mvcc.revision)

    def cancel_watch(self, request: CancelWatch, peer: Peer) -> Done:
        self.peers.cancel(peer, request.watch)
        return Done(True, self.store.mvcc.revision)

    # --- the registry itself ------------------------------------------------------------------------------------

    def stats(self, _request: Stats, _peer: Peer) -> StatsReport:
        instances = sum(len(service.entries) for service in self.catalogue.services.values())
        counts = {"services": len(self.catalogue.services), "instances": instances, "watches": self.peers.watches}
        return StatsReport(self.store.store_id, self.store.numbers() | counts)


def _bare(kv: KeyValue) -> KeyValue:
    """A user's entry without the prefix it is stored under."""
    return KeyValue(kv.key[len(keys.USER) :], kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _written(result: TxnResult) -> KvWritten:
    return KvWritten(result.revision, 1)


def _check_cas(result: TxnResult, cas: int | None) -> None:
    if result.succeeded:
        return
    found = result.responses[0]
    assert isinstance(found, RangeResult)
    revision = found.entries[0].mod_revision if found.entries else 0
    raise CasFailed(f"the key is at revision {revision}, not {cas}", revision=revision)
