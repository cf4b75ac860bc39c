"""The registry: one object that owns the store, its views, the health checks and the fronts, and nothing else global.

async with Registry() as registry:                 # opens no port
    at = await registry.serve(rpc="127.0.0.1:0")   # until asked to
    client = registry.client()                     # in process
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final, Self

import aiohttp
import msgspec

from homeport.client import Client
from homeport.client.core.errors import Closed, InvalidArgument
from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.txn import Change
from homeport.registry.direct import DirectLink, DirectTransport
from homeport.registry.fronts.http import HttpFront
from homeport.registry.fronts.rpc import RpcFront
from homeport.registry.health.probes import Prober
from homeport.registry.health.scheduler import Scheduler
from homeport.registry.operations import Operations
from homeport.registry.peers import Peer, Peers
from homeport.registry.statuses import StatusWriter
from homeport.registry.store.embedded import EmbeddedStore

OFF: Final = "off"  # the address of a front that is not served


class At(msgspec.Struct, frozen=True):
    """Where the fronts listen: "host:port" or "unix:/path", None for those that are off."""

    http: str | None = None
    rpc: str | None = None
    rpc_unix: str | None = None


class Registry:
    """A service registry in this process; an async context manager.

    Args:
        data_dir: where to keep the journal, so that everything survives a restart; None keeps it in memory.
        node: this machine's name in registrations that give none; default: the host name.
        token: what clients must present in their hello; empty: anyone may.
        rng: the only source of randomness; default: seeded by the system.
        now: the clock, seconds; default: the loop's.
        connector_factory: how HTTP checks connect; default: ordinary TCP.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        node: str = "",
        token: str = "",
        rng: random.Random | None = None,
        now: Callable[[], float] | None = None,
        connector_factory: Callable[[], aiohttp.BaseConnector] | None = None,
    ) -> None:
        self._data_dir = None if data_dir is None else os.fspath(data_dir)
        self.node = node or socket.gethostname()
        self._token = token
        self._rng = rng or random.Random()
        self._now = now
        self._connector_factory = connector_factory
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: set[DirectLink] = set()

    async def start(self) -> None:
        """Start; the same as entering the context.

        Raises:
            JournalError: the data directory cannot be used; the message says why and what to do.
        """
        assert self._loop is None, "a registry starts once"
        loop = self._loop = asyncio.get_running_loop()
        now = self._now or loop.time
        self.store = EmbeddedStore(now=now, rng=self._rng, data_dir=self._data_dir)
        await self.store.start()
        self.catalogue = Catalogue()
        self.peers = Peers(self.store, self.catalogue)
        server = f"homeport/{version('homeport')}"
        self.operations = Operations(
            self.store, self.catalogue, self.peers, node=self.node, server=server, token=self._token
        )
        self._statuses = StatusWriter(self.store, self.catalogue)
        self._prober = Prober(self._connector_factory)
        self._scheduler = Scheduler(self._prober.probe, self._statuses.report, now=now, rng=self._rng)
        self._rpc = RpcFront(self.operations, self._peer_lost)
        self._http = HttpFront(self.operations, rng=self._rng)
        for event in self.catalogue.load(self.store.mvcc):
            for instance in event.changed:
                self._scheduler.put(instance, self.catalogue.statuses(instance.key))
        self.store.listen(self._revision)  # nothing was awaited since the store started, so nothing was missed
        self._started = True

    async def close(self) -> None:
        """Stop gracefully: fronts first, so that nobody is left waiting; then checks and the store. Idempotent."""
        if not self._started:
            return
        self._started = False
        await self._http.close()
        await self._rpc.close()
        for link in tuple(self._links):
            link.lost()
        await self._scheduler.close()
        await self._prober.close()
        self._statuses.close()
        await self.store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def serve(self, *, http: str = OFF, rpc: str | Sequence[str] = OFF) -> At:
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
        return At(at_http, at_rpc, at_unix)

    def client(self, *, name: str = "") -> Client:
        """A client in this process, for use on this loop; enter or `start` it like any other."""
        if self._loop is None or not self._started:
            raise Closed("the registry is not running")
        return Client(transport=DirectTransport(self.operations, self._loop, self._links), name=name, rng=self._rng)

    # --- what happens -------------------------------------------------------------------------------------------

    def _revision(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A revision is durable: the catalogue, the prober and the followers take it in, in that order."""
        if not any(change.key.startswith((keys.INSTANCES, keys.CHECKS)) for change in changes):
            self.catalogue.revision = revision
            return
        events = self.catalogue.apply(revision, changes)
        for event in events:
            for key in event.removed:
                self._scheduler.remove(key)
        for event in events:
            for instance in event.changed:
                self._scheduler.put(instance, self.catalogue.statuses(instance.key))
        self.peers.publish(events)

    def _peer_lost(self, peer: Peer) -> None:
        """The connection that registered instances broke: find out at once how they are."""
        for key, lease in peer.registered.items():
            if self._stands(key, lease):
                self._scheduler.probe_now(key)

    def _stands(self, key: InstanceKey, lease: int) -> bool:
        entry = self.catalogue.find(*key)
        return entry is not None and entry.lease == lease


def _checked(address: str, *, unix: bool) -> str:
    if unix and address.startswith("unix:/"):
        return address
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65_535):
        allowed = "host:port, unix:/path" if unix else "host:port"
        raise InvalidArgument(f"address {address!r}; allowed: {allowed} or {OFF}", field="address")
    return address
