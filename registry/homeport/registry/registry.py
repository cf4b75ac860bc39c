"""The registry: one object that owns the store, its views, the health checks and the fronts, and nothing else global.

async with Registry() as registry:                 # opens no port
    at = await registry.serve(rpc="127.0.0.1:0")   # until asked to
    client = registry.client()                     # in process
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final, Self

import msgspec

from homeport.client import Client
from homeport.client.core.errors import Closed, HomeportError, InvalidArgument, Unavailable
from homeport.client.core.model import InstanceKey, ServiceEvent
from homeport.client.randomness import own_rng
from homeport.registry.core import keys
from homeport.registry.core.catalogue import OWN, Catalogue
from homeport.registry.core.explaining import Beside
from homeport.registry.core.locality import host_of
from homeport.registry.core.txn import Change
from homeport.registry.direct import DirectLink, DirectTransport
from homeport.registry.doubts import Doubts
from homeport.registry.fronts.consul.registrations import details_of
from homeport.registry.fronts.dns.front import DnsFront
from homeport.registry.fronts.dns.settings import DnsSettings
from homeport.registry.fronts.http import HttpFront
from homeport.registry.fronts.rpc import RpcFront
from homeport.registry.health.duties import Duties
from homeport.registry.health.probes import Call, Prober
from homeport.registry.health.scheduler import Scheduler
from homeport.registry.operations import Operations
from homeport.registry.peers import Peers
from homeport.registry.reaping import Reaping
from homeport.registry.sessions import Sessions
from homeport.registry.statuses import StatusWriter
from homeport.registry.store.backups import install_backup, verify_backup
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd import EtcdStore
from homeport.registry.store.etcd_address import link as way_to_etcd
from homeport.registry.store.etcd_address import parse as parse_etcd
from homeport.registry.store.journal import FILE_NAME
from homeport.registry.threads import RegistryThread, ThreadsafeTransport
from homeport.registry.transfers import remove

_log = logging.getLogger("homeport.registry")

OFF: Final = "off"  # the address of a front that is not served


class At(msgspec.Struct, frozen=True):
    """Where the fronts listen: "host:port" or "unix:/path", None for those that are off; several with commas."""

    http: str | None = None
    rpc: str | None = None
    rpc_unix: str | None = None
    dns: str | None = None


class Registry:
    """A service registry in this process; an async context manager.

    Args:
        data_dir: where to keep the journal, so that everything survives a restart; None keeps it in memory.
        store: an etcd cluster to share with other replicas in place of a data directory, `etcd://host:port,...`
            (docs/cluster.md); needs `homeport[etcd]`.
        node: this machine's name in registrations that give none; default: the host name.
        token: what clients must present in their hello; empty: anyone may.
        rng: the only source of randomness; default: seeded by the system.
        now: the clock, seconds; default: the loop's.
        guard: whether instances whose leases end all at once are kept a while, as stale (docs/operations.md); off in
            tests that want to see many expire.
        http_access_log: whether to log every HTTP request, on the logger `homeport.registry.http.access`.
        dns: how DNS is answered; default: under `homeport`, with TTLs of 0 and no recursors.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        store: str = "",
        node: str = "",
        token: str = "",
        rng: random.Random | None = None,
        now: Callable[[], float] | None = None,
        guard: bool = True,
        http_access_log: bool = False,
        dns: DnsSettings | None = None,
    ) -> None:
        if store and data_dir is not None:
            raise InvalidArgument("give a data directory or a store, not both", field="store")
        self._data_dir = None if data_dir is None else os.fspath(data_dir)
        self._etcd = parse_etcd(store) if store else None
        self.node: str = node or socket.gethostname()
        self._token = token
        self._rng = rng or own_rng()
        self._now = now
        self._guard = guard
        self._http_access_log = http_access_log
        self._dns_settings = dns or DnsSettings()
        self._started = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[DirectLink, None] = {}
        self._calls: dict[str, Call] = {}
        self._at = At()
        self._restoring: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start; the same as entering the context.

        Raises:
            JournalError: the data directory cannot be used; the message says why and what to do.
            RegistryError: the etcd cluster does not answer, or refuses.
        """
        assert self._loop is None, "a registry starts once"
        self._loop = asyncio.get_running_loop()
        await self._start()

    async def _start(self, backup: str | None = None) -> None:
        """Build everything over the store; `backup` is what a store without a data directory starts from."""
        assert self._loop is not None
        now = self._now or self._loop.time
        self.store: EmbeddedStore | EtcdStore = self._make_store(now, backup)
        await self.store.start()
        try:
            self._build(now)
        except BaseException:
            await self.store.close()
            raise
        self._started = True

    def _build(self, now: Callable[[], float]) -> None:
        """Everything over a store that has started."""
        self.catalogue: Catalogue = Catalogue()
        self.peers: Peers = Peers(self.store, self.catalogue)
        self._doubts = Doubts(self.store, self.catalogue, self._doubted, now=now, guard=self._guard)
        self._sessions = Sessions(self.store, self.catalogue, self._rng)
        self.operations: Operations = Operations(
            self.store,
            self.catalogue,
            self.peers,
            self._sessions,
            self._doubts,
            node=self.node,
            server=f"homeport/{version('homeport')}",
            token=self._token,
            restore=self._restore_soon,
            beside=self._beside,
        )
        self._statuses = StatusWriter(self.store, self.catalogue, self._doubts)
        self._prober = Prober(self._calls)
        self._scheduler = Scheduler(self._prober.probe, self._statuses.report, now=now, rng=self._rng)
        self._duties = Duties(self.store, self.catalogue, self._scheduler, self._statuses)
        self._reaping = Reaping(self.operations, self._duties.in_charge, now=now)
        self._rpc = RpcFront(self.operations, self._duties.peer_lost)
        self._http = HttpFront(self.operations, rng=self._rng, access_log=self._http_access_log)
        self._dns = DnsFront(self.operations, self._dns_settings, rng=self._rng)
        self.catalogue.load(self.store.mvcc)
        self._duties.look_after()
        self._duties.start()
        self.store.listen(self._revision)  # nothing was awaited since the store started, so nothing was missed
        self._doubts.start()
        self._sessions.start()
        self._reaping.start()

    def _make_store(self, now: Callable[[], float], backup: str | None) -> EmbeddedStore | EtcdStore:
        at = self._etcd
        if at is None:
            return EmbeddedStore(now=now, rng=self._rng, data_dir=self._data_dir, backup=backup)
        store = EtcdStore(way_to_etcd(at), now=now, rng=self._rng, prefix=at.prefix, host=socket.gethostname())
        store.when_cut_off(lambda: self._rpc.dismiss("etcd's quorum is lost here: another replica may have it"))
        return store

    async def close(self) -> None:
        """Stop gracefully: fronts first, so that nobody is left waiting; then checks and the store.

        Idempotent. Cancelling the call does not stop the closing.
        """
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._restoring is not None:
            await asyncio.gather(self._restoring, return_exceptions=True)
        if self._started:
            await self._stop()

    async def _stop(self) -> None:
        self._started = False
        self._duties.stop()
        await self._http.close()
        await self._dns.close()
        await self._rpc.close()
        for link in tuple(self._links):
            link.lost()
        await self._sessions.close()
        await self._reaping.close()
        await self._scheduler.close()
        await self._prober.close()
        self._statuses.close()
        self._doubts.close()
        await self.store.close()

    async def restore(self, path: str) -> None:
        """Put a backup in the place of everything, as a history of its own.

        Every connection is closed; the fronts come back at the addresses they had.

        Raises:
            JournalError: the file is not a whole backup (nothing has changed then), or cannot be put in place.
        """
        await asyncio.get_running_loop().run_in_executor(None, verify_backup, path)
        await self._restore(path)

    def _restore_soon(self, path: str) -> None:
        if self._etcd is not None:
            remove(path)
            raise InvalidArgument("a backup cannot be put in the place of a store shared by replicas", field="store")

        async def restore() -> None:
            try:
                await self._restore(path)
            except HomeportError:
                _log.exception("the backup could not be put in place")
            finally:
                remove(path)

        self._restoring = asyncio.ensure_future(restore())

    async def _restore(self, path: str) -> None:
        await asyncio.sleep(0)  # let the answer to whoever asked for this leave first
        at = self._at
        await self._stop()
        loop = asyncio.get_running_loop()
        try:
            if self._data_dir is not None:
                store_id = f"{self._rng.randrange(1 << 64):016x}"
                target = os.path.join(self._data_dir, FILE_NAME)
                await loop.run_in_executor(None, install_backup, path, target, store_id)
        finally:
            await self._start(backup=path if self._data_dir is None else None)
            await self.serve(
                http=at.http or OFF,
                rpc=[address for address in (at.rpc, at.rpc_unix) if address],
                dns=at.dns.split(",") if at.dns else OFF,
            )
        _log.warning("a backup was restored: store %s at revision %d", self.store.store_id, self.store.mvcc.revision)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def serve(self, *, http: str = OFF, rpc: str | Sequence[str] = OFF, dns: str | Sequence[str] = OFF) -> At:
        """Open the fronts named by an address ("host:port", "unix:/path" for rpc; port 0: a free one; "off").

        Returns:
            The actual addresses.

        Raises:
            InvalidArgument: an address is malformed.
            OSError: an address cannot be bound; those opened before stay open until `close`.
        """
        if not self._started:
            raise Closed("the registry is not running")
        at_rpc: str | None = None
        at_unix: str | None = None
        for address in [rpc] if isinstance(rpc, str) else rpc:
            if address == OFF:
                continue
            bound = await self._rpc.listen(_checked(address, unix=True))
            if bound.startswith("unix:"):
                at_unix = bound
            else:
                at_rpc = bound
        at_http = None if http == OFF else await self._http.listen(_checked(http, unix=False))
        dns_addresses = [_checked(one, unix=False) for one in ([dns] if isinstance(dns, str) else dns) if one != OFF]
        at_dns = [await self._dns.listen(address) for address in dns_addresses]
        at = At(at_http, at_rpc, at_unix, ",".join(at_dns) or None)
        here = self._at
        self._at = At(at.http or here.http, at.rpc or here.rpc, at.rpc_unix or here.rpc_unix, at.dns or here.dns)
        return at

    def client(self, *, name: str = "") -> Client:
        """A client in this process, for use on this loop; enter or `start` it like any other."""
        if self._loop is None or not self._started:
            raise Closed("the registry is not running")
        return Client(
            transport=DirectTransport(self._running_operations, self._loop, self._links), name=name, rng=self._rng
        )

    def client_threadsafe(self, *, name: str = "") -> Client:
        """A client in this process for use on any one loop, also in another thread; each call costs two hops."""
        if self._loop is None or not self._started:
            raise Closed("the registry is not running")
        direct = DirectTransport(self._running_operations, self._loop, self._links)
        return Client(transport=ThreadsafeTransport(direct, self._loop), name=name)

    @classmethod
    def in_thread(cls, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> RegistryThread:
        """A registry with a loop and a thread of its own, a plain context manager; the arguments are `Registry`'s."""
        return RegistryThread(cls(data_dir, **options))

    def provide(self, name: str, call: Call) -> None:
        """Provide the coroutine that checks of kind "call" and this `call` name await, in place of the one before.

        It returns None (passing), a status, or a status with words for it; what it raises is critical. One that takes
        longer than the check's timeout is cancelled. Names outlive the process, coroutines do not: until it is
        provided again, such a check is critical.
        """
        self._calls[name] = call

    def _running_operations(self) -> Operations:
        if self._closed:
            raise Closed("the registry was closed")
        if not self._started:
            raise Unavailable("the registry is being restored")
        return self.operations

    def _beside(self, key: InstanceKey) -> Beside:
        """What an explanation says beyond the catalogue."""
        entry, node = self.catalogue.find(*key), self.catalogue.find(key[0], "")
        if entry is None:
            return Beside()
        now = self._reaping.now()
        return Beside(
            lease_left_s=self.store.lease_remaining_s(entry.lease) if entry.lease else None,
            kept_s=entry.kept_until - now,
            deregistered_in_s=self._reaping.reaper.left_s(key, now),
            looked=self._scheduler.looked(key) if self._duties.in_charge(entry) else None,
            machine=host_of(entry.registered) if self._duties.is_elsewhere(entry) else "",
            reason=details_of(entry.registered).maintenance_reason,
            node_reason=details_of(node.registered).maintenance_reason if node is not None else "",
        )

    # --- what happens -------------------------------------------------------------------------------------------

    def _revision(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision is durable: the catalogue, the followers and the prober take it in, in that order."""
        concerned = False
        for change in changes:
            if change.key.startswith(OWN):
                concerned = True
            elif change.key.startswith(keys.LEASES) and change.kv is not None and change.prev is not None:
                self._duties.moved(keys.lease_number(change.key))
        if not concerned:
            self.catalogue.revision = revision
            return
        self._publish(self.catalogue.apply(revision, changes))
        self._duties.look_after()  # which may have news of its own to tell, of what was just told

    def _publish(self, events: list[ServiceEvent]) -> None:
        """The catalogue has just taken something in that looks different now."""
        self._dns.follow(events)
        self.peers.publish(events)

    def _doubted(self, events: list[ServiceEvent]) -> None:
        """What no revision says made something look different."""
        self._duties.look_again(self.catalogue.looked_at.keys)
        self._publish(events)
        self._http.look_different(events)


def _checked(address: str, *, unix: bool) -> str:
    if unix and address.startswith("unix:/"):
        return address
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        allowed = "host:port, unix:/path" if unix else "host:port"
        raise InvalidArgument(f"address {address!r}; allowed: {allowed} or {OFF}", field="address")
    return address
