"""The operations: what every request does to the store and the catalogue, whoever asks and however it came.

Each handler decides at once and commits at most one transaction, so writes of one connection apply in the order in
which they arrive. Handlers that only read answer without waiting; the others return a future.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import (
    Busy,
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
    Explain,
    Explained,
    Hello,
    KvDelete,
    KvFound,
    KvGet,
    KvList,
    KvPage,
    KvPut,
    KvTxn,
    KvTxnDone,
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
from homeport.client.core.model import Instance, InstanceKey, KeyValue, validate_instance, validate_name
from homeport.client.core.txn import Nested
from homeport.registry.core import keys, user_txn
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.explaining import Beside, explain
from homeport.registry.core.health import capped
from homeport.registry.core.limits import (
    CONNECTION_CALLS_MAX,
    KEY_BYTES_MAX,
    PAGE_BYTES,
    RENEW_LEASES_MAX,
    TXN_KEYS_MAX,
    TXN_OPS_MAX,
    VALUE_BYTES_MAX,
    WATCHES_PER_CONNECTION_MAX,
)
from homeport.registry.core.locality import as_asked
from homeport.registry.core.txn import (
    Compare,
    Delete,
    DeleteResult,
    EndLease,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from homeport.registry.core.user_txn import bare
from homeport.registry.doubts import Doubts
from homeport.registry.peers import Peer, Peers
from homeport.registry.queries import Queries
from homeport.registry.sessions import Sessions
from homeport.registry.store.answers import ttl_s
from homeport.registry.store.contract import Store, lease_put
from homeport.registry.transfers import Transfers

A = TypeVar("A")

_RACE_S: Final = 0.2  # when a call that was overtaken so often may come again
_RACES_MAX: Final = 16  # times a registration is decided anew because another of the same id came first
_OWN_CHECK: Final = "registry connect"  # the longest name of a check that the registry adds itself
_ECHO: Final = 100  # characters of what a client sent that an error repeats
_PAGE_ENTRIES: Final = 4096  # of a list: a page of small ones is a few hundred microseconds of work
_TAG_BYTES: Final = 5  # what a tag weighs besides its text
_ENTRY_BYTES: Final = 64  # what an entry weighs besides its key and value
_WAIT_APPLIED_S_MAX: Final = 30.0  # a drain that has waited longer must not wait for one slow follower
_OWN_OPS_MAX: Final = 4 * TXN_OPS_MAX  # a registration with its checks and their leases

LIMITS: Final[dict[str, int]] = {
    "frame_bytes": wire.FRAME_BYTES_MAX,
    "key_bytes": KEY_BYTES_MAX,
    "value_bytes": VALUE_BYTES_MAX,
    "page_bytes": PAGE_BYTES,
    "txn_ops": TXN_OPS_MAX,
    "txn_keys": TXN_KEYS_MAX,
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

    __slots__ = ("ops_max", "shape", "txn")

    def __init__(self, txn: Txn, shape: Callable[[TxnResult], A], ops_max: int = TXN_OPS_MAX) -> None:
        self.txn = txn
        self.shape = shape  # may raise a HomeportError, which is then the answer
        self.ops_max = ops_max


class Standing:
    """A registration at head: what it says, its lease, and the key it stands under."""

    __slots__ = ("create_revision", "instance", "key", "lease", "mod_revision")

    def __init__(self, kv: KeyValue) -> None:
        self.key = kv.key
        self.instance = wire.decode(Instance, kv.value)
        self.lease = kv.lease
        self.create_revision = kv.create_revision
        self.mod_revision = kv.mod_revision


class Operations:
    """The registry's answers to every request of `homeport.client.core.messages`."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        peers: Peers,
        sessions: Sessions,
        doubts: Doubts,
        *,
        node: str,
        server: str,
        token: str,
        restore: Callable[[str], None],
        beside: Callable[[InstanceKey], Beside],
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.peers = peers
        self.sessions = sessions
        self.doubts = doubts
        self.queries = Queries(store, catalogue, sessions, node)
        self.node = node
        self._server = server
        self.token = token
        self._beside = beside
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
            Explain: self.explain,
            KvGet: self.kv_get,
            KvPut: self.kv_put,
            KvDelete: self.kv_delete,
            KvList: self.kv_list,
            KvTxn: self.kv_txn,
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

    def table(self) -> dict[str, tuple[Callable[[bytes | msgspec.Raw], tuple[Any]], Callable[[Any, Peer], Any]]]:
        """For each method, what decodes its params and what answers it: for fronts that look it up at every call."""
        return {kind.method: (wire.params_decoder(kind), handler) for kind, handler in self._handlers.items()}

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
        if self.token and not hmac.compare_digest(request.token.encode(), self.token.encode()):
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
        key = instance.key
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._standing(key)
            if standing is not None and standing.lease == request.lease and self._says_the_same(standing, instance):
                if self._nothing_to_clear(instance) and (
                    not standing.lease or await ttl_s(self.store.lease_renew(standing.lease))
                ):
                    await self.store.barrier()
                    return self._registered(peer, instance, standing.lease, standing.create_revision)
                # Whoever set the state since meant it, and its owner has another call to say otherwise.
                instance = msgspec.structs.replace(instance, state=standing.instance.state)
            if request.expect_free and standing is not None and standing.lease != request.lease:
                raise LeaseGone(
                    f"another registration has taken the place of {instance.id!r}: {standing.instance.address}:"
                    f"{standing.instance.port}",
                    id=instance.id,
                )
            lease = self.store.new_lease() if instance.ttl_s else 0
            txn = self._registration(instance, lease, standing)
            result = await self.store.commit(txn, ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                put = result.responses[next(at for at, op in enumerate(txn.then) if _is_instance(op))]
                assert isinstance(put, PutResult)
                created = put.prev.create_revision if put.prev is not None else result.revision
                return self._registered(peer, instance, lease, created)
        raise LimitExceeded(
            f"instance {instance.id!r} was registered by others {_RACES_MAX} times meanwhile; is the id unique?",
            limit="races",
            allowed=_RACES_MAX,
        )

    def _completed(self, instance: Instance) -> Instance:
        """The registration as stored: with a node, without what only the registry may say."""
        instance = msgspec.structs.replace(
            instance, node=instance.node or self.node, status="passing", mark="", create_revision=0, mod_revision=0
        )
        validate_instance(instance)
        names = [check.name for check in instance.checks] + [_OWN_CHECK]
        derived = [keys.instance(instance.service, *instance.key), *(keys.check(*instance.key, name) for name in names)]
        if max(len(key) for key in derived) > KEY_BYTES_MAX:
            raise InvalidArgument(
                f"service, node, id and check names, percent-encoded, make a key longer than {KEY_BYTES_MAX} bytes",
                field="id",
            )
        return instance

    async def _decided(self, key: bytes) -> None:
        """Let what came before and writes the key be decided: what follows must see it."""
        while (decided := self.store.undecided(key)) is not None:
            await decided

    def _standing(self, key: InstanceKey) -> Standing | None:
        """The registration that stands under a node and id, or with an empty id the node's, as far as it is decided."""
        if not key[1]:
            node = self.store.at_head(keys.node(key[0]))
            return Standing(node[0]) if node else None
        found = self.store.at_head(keys.id_of(*key))
        if not found:
            return None
        registered = self.store.at_head(keys.instance(found[0].value.decode(), *key))
        return Standing(registered[0]) if registered else None

    def _records(self, key: InstanceKey) -> dict[str, KeyValue]:
        """The written statuses of an instance's checks, by name, as far as they are decided."""
        prefix = keys.checks_of(*key)
        return {keys.split(kv.key)[2]: kv for kv in self.store.at_head(prefix, keys.prefix_end(prefix))}

    def _says_the_same(self, standing: Standing, instance: Instance) -> bool:
        """Whether a registration says what stands already, but maybe for the state."""
        return msgspec.structs.replace(as_asked(standing.instance), state=instance.state) == as_asked(instance)

    def _nothing_to_clear(self, instance: Instance) -> bool:
        """Whether the registry found nothing besides the statuses of its checks: no refused connection, say."""
        found = {name for name, record in self._records(instance.key).items() if not _is_told(record)}
        return found <= {check.name for check in instance.checks}

    def _registered(self, peer: Peer, instance: Instance, lease: int, created: int) -> Registered:
        peer.registered[instance.key] = lease
        return Registered(lease, instance.ttl_s, created, self.store.mvcc.revision)

    def _registration(self, instance: Instance, lease: int, standing: Standing | None) -> Txn:
        """One transaction that puts an instance in place of whatever was registered under its node and id."""
        key = instance.key
        own = keys.instance(instance.service, *key)
        records = self._records(key)
        ops: list[Op] = []
        if lease:
            ops.append(lease_put(lease, instance.ttl_s))
        kept: set[str] = set()  # checks that go on as before, with the status they had
        if standing is None:
            unchanged = Compare(keys.id_of(*key), "version", "=", 0)
        else:
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            kept = {check.name for check in instance.checks if check in standing.instance.checks}
            if standing.key != own:
                ops.append(Delete(standing.key))
        ops.append(Put(own, wire.encode(instance), lease))
        ops.append(Put(keys.id_of(*key), instance.service.encode(), lease))
        written: set[str] = set()
        for check in instance.checks:
            record = records[check.name].value if check.name in kept and check.name in records else None
            if check.kind == "ttl":
                ops += self._ttl_check(instance, check.name, record or wire.encode(CheckRecord(check.initial)))
                written.add(check.name)
            elif record is not None:
                ops.append(Put(keys.check(*key, check.name), record, lease))
                written.add(check.name)
        for name, told in records.items():
            if name not in written and _is_told(told) and all(name != check.name for check in instance.checks):
                ops.append(Put(told.key, told.value, lease))
                written.add(name)
        # Last, when all that goes on has moved to other leases: what still hangs on the old ones goes with them.
        ops += self._end_checks(records, standing.lease if standing else 0, keep=written)
        if standing is not None and standing.lease:
            ops.append(EndLease(standing.lease))
        return Txn((unchanged,), tuple(ops))

    def _ttl_check(self, instance: Instance, name: str, record: bytes) -> list[Op]:
        """A ttl check's status, on a lease of its own whose end turns it critical."""
        ttl_s = next(check.ttl_s for check in instance.checks if check.name == name)
        lease = self.store.new_lease()
        return [lease_put(lease, ttl_s), Put(keys.check(*instance.key, name), record, lease)]

    def _end_checks(self, records: dict[str, KeyValue], lease: int, keep: set[str]) -> list[Op]:
        """Delete statuses but for `keep`, and the leases that ttl checks have of their own."""
        ops: list[Op] = []
        for name, record in records.items():
            if record.lease not in (0, lease):
                ops.append(EndLease(record.lease))
            if name not in keep:
                ops.append(Delete(record.key))
        return ops

    def renew(self, request: Renew, _peer: Peer) -> Renewed | Coroutine[Any, Any, Renewed]:
        if len(request.leases) > RENEW_LEASES_MAX:
            raise LimitExceeded(
                f"{len(request.leases)} leases in one renewal; allowed: {RENEW_LEASES_MAX}",
                limit="RENEW_LEASES_MAX",
                allowed=RENEW_LEASES_MAX,
            )
        renewed = list(map(self.store.lease_renew, request.leases))
        known = tuple([one for one in renewed if not isinstance(one, asyncio.Future)])
        return Renewed(known) if len(known) == len(renewed) else self._renewed(renewed)

    async def _renewed(self, renewed: list[float | asyncio.Future[float]]) -> Renewed:
        """Leases were moved here: whoever asks another replica next shall find one that knows of it."""
        ttls_s = await asyncio.gather(*map(ttl_s, renewed))
        return Renewed(tuple(ttls_s), self.store.mvcc.revision)

    async def deregister(self, request: Deregister, peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        peer.registered.pop(key, None)
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._owned(key, request.lease)
            if standing is None:
                break
            ops: list[Op] = [Delete(standing.key), Delete(keys.id_of(*key))]
            ops += self._end_checks(self._records(key), standing.lease, keep=set())
            if standing.lease:
                ops.append(EndLease(standing.lease))
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            result = await self.store.commit(Txn((unchanged,), tuple(ops)), ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                return Done(True, result.revision)
        else:
            raise _overtaken(request.id)
        await self.store.barrier()
        return Done(self.doubts.forget(key), self.store.mvcc.revision)

    async def set_state(self, request: SetState, _peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        revision = 0
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._owned(key, request.lease)
            if standing is None:
                break
            if standing.instance.state == request.state:
                revision = standing.mod_revision
                break
            new = msgspec.structs.replace(standing.instance, state=request.state)
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            result = await self.store.commit(Txn((unchanged,), (Put(standing.key, wire.encode(new), standing.lease),)))
            if result.succeeded:
                return Done(True, result.revision)
        else:
            raise _overtaken(request.id)
        await self.store.barrier()
        return Done(False, revision or self.store.mvcc.revision)

    def _owned(self, key: InstanceKey, lease: int) -> Standing | None:
        """The registration, if it stands and `lease` (0: anyone's) is the one that made it."""
        standing = self._standing(key)
        return None if standing is None or (lease and standing.lease != lease) else standing

    async def report_check(self, request: ReportCheck, _peer: Peer) -> Done:
        key = (request.node or self.node, request.id)
        await self._decided(_name(key))
        await self._decided(keys.check(*key, request.check))
        standing = self._standing(key)
        checks = standing.instance.checks if standing is not None else ()
        check = next((check for check in checks if check.name == request.check), None)
        if standing is None or check is None:
            what = "instance" if standing is None else f"check {request.check[:_ECHO]!r} on instance"
            raise NotFound(f"there is no {what} {request.id[:_ECHO]!r} on node {key[0][:_ECHO]!r}")
        if check.kind != "ttl":
            raise InvalidArgument(
                f"check {check.name!r} is of kind {check.kind}; only ttl checks are reported", field="check"
            )
        record = wire.encode(CheckRecord(request.status, capped(request.output)))
        old = self._records(key).get(check.name)
        if old is not None and await ttl_s(self.store.lease_renew(old.lease)) and old.value == record:
            await self.store.barrier()
            return Done(False, self.store.mvcc.revision)
        ops = self._ttl_check(standing.instance, check.name, record)
        if old is not None:
            ops.append(EndLease(old.lease))
        result = await self.store.commit(
            Txn((Compare(standing.key, "create", "=", standing.create_revision),), tuple(ops))
        )
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
        if request.offset < 0:
            raise InvalidArgument(f"offset is {request.offset}; allowed: 0 or more", field="offset")
        return Encoded(Resolved, self.catalogue.resolved(request.service, request.passing, request.offset))

    def services(self, request: Services, _peer: Peer) -> ServiceList:
        page: dict[str, tuple[str, ...]] = {}
        size = 0
        more = False
        for name, tags in self.catalogue.tags().items():
            if name <= request.after:
                continue
            size += len(name.encode()) + sum(len(tag.encode()) + _TAG_BYTES for tag in tags) + _ENTRY_BYTES
            if page and size > PAGE_BYTES:
                more = True
                break
            page[name] = tags
        return ServiceList(self.catalogue.index, page, more)

    def explain(self, request: Explain, _peer: Peer) -> Explained:
        key = (request.node, request.id)
        found = explain(self.catalogue, key, self._beside(key))
        if found is None:
            raise NotFound(f"there is no instance {request.id!r} on node {request.node!r}")
        return Explained(*found)

    # --- keys ---------------------------------------------------------------------------------------------------

    def kv_get(self, request: KvGet, _peer: Peer) -> KvFound | Coroutine[Any, Any, KvFound]:
        return self._newest(request) if request.newest else self._found(request)

    async def _newest(self, request: KvGet) -> KvFound:
        await self.store.barrier()
        return self._found(request)

    def _found(self, request: KvGet) -> KvFound:
        found = self.store.mvcc.get(keys.USER + request.key)
        return KvFound(self.store.mvcc.revision, None if found is None else bare(found))

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
        start = prefix if request.after is None else max(prefix, keys.USER + request.after + b"\0")
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
            entries.append(bare(kv))
        return KvPage(revision, tuple(entries), found.count > len(entries))

    def kv_txn(self, request: KvTxn, _peer: Peer) -> Commit[KvTxnDone]:
        asked = Nested(request.compare, request.then, request.orelse)

        def shape(result: TxnResult) -> KvTxnDone:
            done = user_txn.answered(asked, result)
            return KvTxnDone(result.revision, done.succeeded, done.responses)

        return Commit(user_txn.compiled(asked, self.store.mvcc), shape, user_txn.STORE_OPS_MAX)

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
        validate_name("service", request.service)
        self.peers.follow(peer, request.watch, request.service)
        return Watching(self.store.store_id, self.store.mvcc.revision)

    def watch_kv(self, request: WatchKv, peer: Peer) -> Watching:
        key = keys.USER + request.key
        if len(key) > KEY_BYTES_MAX:
            raise LimitExceeded(
                f"the key has {len(request.key)} bytes; allowed: {KEY_BYTES_MAX - len(keys.USER)}",
                limit="KEY_BYTES_MAX",
                allowed=KEY_BYTES_MAX - len(keys.USER),
            )
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
        return StatsReport(self.store.store_id, self.store.numbers() | counts | self.doubts.numbers())


def _is_told(record: KeyValue) -> bool:
    """Whether a status is of a check that others look after: it goes on, whoever registers the instance anew."""
    return bool(wire.decode(CheckRecord, record.value).extra)


def _is_instance(op: Op) -> bool:
    return isinstance(op, Put) and op.key.startswith(keys.INSTANCES)


def _written(result: TxnResult) -> KvWritten:
    return KvWritten(result.revision, 1)


def _check_cas(result: TxnResult, cas: int | None) -> None:
    if result.succeeded:
        return
    found = result.responses[0]
    assert isinstance(found, RangeResult)
    revision = found.entries[0].mod_revision if found.entries else 0
    raise CasFailed(f"the key is at revision {revision}, not {cas}", revision=revision)


def _name(key: InstanceKey) -> bytes:
    """The key that every registration of an instance, or with an empty id of a node, writes."""
    return keys.id_of(*key) if key[1] else keys.node(key[0])


def _overtaken(id: str) -> Busy:  # noqa: A002 - the field's name everywhere else
    return Busy(f"others changed {id[:_ECHO]!r} {_RACES_MAX} times meanwhile; try again", retry_after_s=_RACE_S)
