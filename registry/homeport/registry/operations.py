"""The operations: what every request does to the store and the catalogue, whoever asks and however it came.

Each handler decides at once and commits at most one transaction, so writes of one connection apply in the order in
which they arrive. Handlers that only read answer without waiting; the others return a future, or what `results.py` has.
Here is the table of them all, and those of the connection, lookups, leases, watches and copies of the whole. What is
done to one registration is in `registrations.py`, what to users' keys in `kv.py`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import (
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
    KvGet,
    KvList,
    KvPut,
    KvTxn,
    Leased,
    LeaseGrant,
    LeaseRevoke,
    Notice,
    Ping,
    Pong,
    Register,
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
from homeport.client.core.model import InstanceKey, validate_name
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.explaining import Beside, explain
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
from homeport.registry.core.pages import services_page
from homeport.registry.doubts import Doubts
from homeport.registry.kv import Kv
from homeport.registry.peers import Peer, Peers
from homeport.registry.queries import Queries
from homeport.registry.registrations import Registrations
from homeport.registry.results import Encoded
from homeport.registry.sessions import Sessions
from homeport.registry.store.answers import ttl_s
from homeport.registry.store.contract import Store
from homeport.registry.transfers import Transfers

_WAIT_APPLIED_S_MAX: Final = 30.0  # a drain that has waited longer must not wait for one slow follower

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
        self.registrations = Registrations(store, doubts, node)
        self.kv = Kv(store)
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
            Register: self.registrations.register,
            Renew: self.renew,
            Deregister: self.registrations.deregister,
            SetState: self.registrations.set_state,
            ReportCheck: self.registrations.report_check,
            WaitApplied: self.wait_applied,
            Resolve: self.resolve,
            Services: self.services,
            Explain: self.explain,
            KvGet: self.kv.get,
            KvPut: self.kv.put,
            KvDelete: self.kv.delete,
            KvList: self.kv.list,
            KvTxn: self.kv.txn,
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

    def renew(self, request: Renew, peer: Peer) -> Renewed | Coroutine[Any, Any, Renewed]:
        if len(request.leases) > RENEW_LEASES_MAX:
            raise LimitExceeded(
                f"{len(request.leases)} leases in one renewal; allowed: {RENEW_LEASES_MAX}",
                limit="RENEW_LEASES_MAX",
                allowed=RENEW_LEASES_MAX,
            )
        if request.moved:
            self.registrations.moved(request.leases, peer)
        renewed = list(map(self.store.lease_renew, request.leases))
        known = tuple([one for one in renewed if not isinstance(one, asyncio.Future)])
        return Renewed(known) if len(known) == len(renewed) else self._renewed(renewed)

    async def _renewed(self, renewed: list[float | asyncio.Future[float]]) -> Renewed:
        """Leases were moved here: whoever asks another replica next shall find one that knows of it."""
        ttls_s = await asyncio.gather(*map(ttl_s, renewed))
        return Renewed(tuple(ttls_s), self.store.mvcc.revision)

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
        page, more = services_page(self.catalogue.tags(), request.after)
        return ServiceList(self.catalogue.index, page, more)

    def explain(self, request: Explain, _peer: Peer) -> Explained:
        key = (request.node, request.id)
        found = explain(self.catalogue, key, self._beside(key))
        if found is None:
            raise NotFound(f"there is no instance {request.id!r} on node {request.node!r}")
        return Explained(*found)

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
