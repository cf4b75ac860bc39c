"""Peers: the connected clients, what they watch and what they registered.

A peer is the same thing in process and on a connection; only its `Outlet` differs. Nothing here waits for a reader:
what an outlet cannot take stays in a bounded place (the watcher's buffer and history for keys, the catalogue itself
for services) and is sent when the outlet says that it is ready again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

from homeport.client.core import wire
from homeport.client.core.errors import LimitExceeded, NotFound
from homeport.client.core.messages import Event, KvEvents
from homeport.client.core.model import InstanceKey, KvEvent, Lost, ServiceEvent
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue, snapshot
from homeport.registry.core.limits import PAGE_BYTES, WATCHES_PER_CONNECTION_MAX
from homeport.registry.core.watches import Batch, Watcher
from homeport.registry.store.contract import Store


class Outgoing:
    """An event on its way to any number of peers; encoded once, by the first that needs bytes."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @cached_property
    def method(self) -> str:
        match self.event:
            case ServiceEvent():
                return "service"
            case KvEvents():
                return "kv"
            case Lost():
                return "lost"

    @cached_property
    def encoded(self) -> bytes:
        return wire.encode(self.event)


class Outlet(Protocol):
    """Where a peer's events go."""

    def ready(self) -> bool:
        """Whether it takes more now; when it does again after a no, it calls `Peer.flush`."""
        ...

    def send(self, watch: int, outgoing: Outgoing) -> None: ...

    def wake(self) -> None:
        """Call `Peer.flush` soon, from the loop."""
        ...


class ServiceWatch:
    """One peer following one service; `missed` are revisions it has not been sent, `applied` what it has acted on."""

    __slots__ = ("applied", "missed_from", "missed_to", "number", "peer", "service")

    def __init__(self, peer: Peer, number: int, service: str) -> None:
        self.peer = peer
        self.number = number
        self.service = service
        self.applied = 0
        self.missed_from = 0
        self.missed_to = 0


class Peer:
    """One connected client."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.registered: dict[InstanceKey, int] = {}  # what came through this connection, with its lease
        self.services: dict[int, ServiceWatch] = {}
        self.keys: dict[int, tuple[Watcher, int]] = {}  # with the length of what to cut off the keys
        self._behind: dict[int, None] = {}

    def expect_free(self, number: int) -> None:
        """Raise unless another watch may be opened under this number."""
        if number in self.services or number in self.keys:
            raise LimitExceeded(f"watch {number} is open already on this connection", limit="watch", allowed=1)
        if len(self.services) + len(self.keys) >= WATCHES_PER_CONNECTION_MAX:
            raise LimitExceeded(
                f"this connection has {WATCHES_PER_CONNECTION_MAX} watches already",
                limit="WATCHES_PER_CONNECTION_MAX",
                allowed=WATCHES_PER_CONNECTION_MAX,
            )

    def wake_keys(self, number: int) -> None:
        """A key watch has something to take."""
        self._behind[number] = None
        self.outlet.wake()

    def wake_service(self, watch: ServiceWatch) -> None:
        self._behind[watch.number] = None
        self.outlet.wake()

    def flush(self, catalogue: Catalogue) -> None:
        """Send what waits, as far as the outlet takes it."""
        while self._behind and self.outlet.ready():
            number = next(iter(self._behind))
            del self._behind[number]
            watch = self.services.get(number)
            if watch is not None:
                self._send_snapshot(watch, catalogue)
            elif number in self.keys:
                self._pump(number, *self.keys[number])

    def _send_snapshot(self, watch: ServiceWatch, catalogue: Catalogue) -> None:
        if watch.missed_from:
            lost = Lost(from_revision=watch.missed_from, to_revision=watch.missed_to)
            self.outlet.send(watch.number, Outgoing(lost))
            watch.missed_from = watch.missed_to = 0
        service = catalogue.services.get(watch.service)
        for event in snapshot(service, watch.service, catalogue.revision):
            self.outlet.send(watch.number, Outgoing(event))

    def _pump(self, number: int, watcher: Watcher, cut: int) -> None:
        while watcher.pending:
            if not self.outlet.ready():
                self._behind[number] = None
                return
            item = watcher.take()
            match item:
                case Lost():
                    self.outlet.send(number, Outgoing(item))
                case Batch():
                    if item.shared is None:
                        item.shared = tuple(_pages(item, cut))
                    for outgoing in item.shared:  # type: ignore[attr-defined]  # it is ours: a tuple of Outgoing
                        self.outlet.send(number, outgoing)
                case None:
                    if watcher.pending:  # more history to look through, after others had their turn
                        self.wake_keys(number)
                    return


def _pages(batch: Batch, cut: int) -> Iterable[Outgoing]:
    """One revision as events no longer than a page."""
    page: list[KvEvent] = []
    size = 0
    for change in batch.changes:
        kv = change.kv
        grown = size + len(change.key) + (len(kv.value) if kv else 0)
        if page and grown > PAGE_BYTES:
            yield Outgoing(KvEvents(batch.revision, tuple(page), more=True))
            page, grown = [], grown - size
        size = grown
        page.append(KvEvent(change.key[cut:], kv.value if kv else None, batch.revision, kv.lease if kv else 0))
    yield Outgoing(KvEvents(batch.revision, tuple(page)))


class Peers:
    """All of them, and who follows what."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue
        self._following: dict[str, dict[ServiceWatch, None]] = {}
        self._waiting: dict[str, list[tuple[int, asyncio.Future[bool]]]] = {}
        self.watches = 0

    def follow(self, peer: Peer, number: int, service: str) -> None:
        """Send the peer a snapshot of the service, and its changes from then on."""
        peer.expect_free(number)
        watch = peer.services[number] = ServiceWatch(peer, number, service)
        self._following.setdefault(service, {})[watch] = None
        self.watches += 1
        peer.wake_service(watch)

    def follow_keys(self, peer: Peer, number: int, key: bytes, end: bytes | None, start_revision: int) -> None:
        """Send the peer the changes of a range of user keys from `start_revision` on."""
        peer.expect_free(number)
        watcher = self._store.watch(key, end, start_revision, lambda: peer.wake_keys(number))
        peer.keys[number] = (watcher, len(keys.USER))
        self.watches += 1

    def cancel(self, peer: Peer, number: int) -> None:
        """End a watch.

        Raises:
            NotFound: the peer has no watch of that number.
        """
        if number in peer.services:
            self._unfollow(peer.services.pop(number))
        elif number in peer.keys:
            peer.keys.pop(number)[0].close()
        else:
            raise NotFound(f"there is no watch {number} on this connection", watch=number)
        self.watches -= 1

    def leave(self, peer: Peer) -> None:
        """The peer is gone: forget its watches."""
        for number in [*peer.services, *peer.keys]:
            self.cancel(peer, number)

    def publish(self, events: Iterable[ServiceEvent]) -> None:
        """Tell the followers of each service what changed."""
        for event in events:
            outgoing = Outgoing(event)
            for watch in tuple(self._following.get(event.service, ())):
                peer = watch.peer
                if watch.number in peer._behind:
                    if watch.missed_from:
                        watch.missed_to = event.revision
                elif peer.outlet.ready() and len(outgoing.encoded) <= PAGE_BYTES:
                    peer.outlet.send(watch.number, outgoing)
                else:
                    watch.missed_from = watch.missed_from or event.revision
                    watch.missed_to = event.revision
                    peer.wake_service(watch)

    def applied(self, peer: Peer, number: int, revision: int) -> None:
        """A follower has acted on everything up to a revision."""
        watch = peer.services.get(number)
        if watch is not None and revision > watch.applied:
            watch.applied = revision
            self._check_waiting(watch.service)

    async def wait_applied(self, service: str, revision: int, timeout_s: float) -> bool:
        """Return whether every follower of the service acted on `revision` within `timeout_s`."""
        if self._all_applied(service, revision):
            return True
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = (revision, done)
        self._waiting.setdefault(service, []).append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                return await done
        except TimeoutError:
            return False
        finally:
            waiting = self._waiting[service]
            waiting.remove(entry)
            if not waiting:
                del self._waiting[service]

    def _all_applied(self, service: str, revision: int) -> bool:
        return all(watch.applied >= revision for watch in self._following.get(service, ()))

    def _check_waiting(self, service: str) -> None:
        for revision, done in self._waiting.get(service, ()):
            if not done.done() and self._all_applied(service, revision):
                done.set_result(True)

    def _unfollow(self, watch: ServiceWatch) -> None:
        following = self._following[watch.service]
        del following[watch]
        if not following:
            del self._following[watch.service]
        self._check_waiting(watch.service)
