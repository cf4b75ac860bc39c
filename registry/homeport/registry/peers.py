"""Peers: the connected clients, what they watch and what they registered.

A peer is the same thing in process and on a connection; only its `Outlet` differs. Nothing here waits for a reader:
what an outlet cannot take stays in a bounded place (the watcher's buffer and history for keys, the catalogue itself
for services) and is sent when the outlet says that it is ready again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

from homeport.client.core import wire
from homeport.client.core.errors import LimitExceeded, NotFound
from homeport.client.core.messages import Event, KvEvents
from homeport.client.core.model import InstanceKey, KvEvent, Lost, ServiceEvent
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.limits import PAGE_BYTES, WATCHES_PER_CONNECTION_MAX
from homeport.registry.core.pages import snapshot
from homeport.registry.core.watches import Batch, Watcher
from homeport.registry.store.contract import Store


class Outgoing:
    """An event on its way to any number of peers; encoded once, by the first that needs bytes."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @cached_property
    def head(self) -> bytes:
        """What stands before the watch's number on the wire."""
        match self.event:
            case ServiceEvent():
                return wire.told("service")
            case KvEvents():
                return wire.told("kv")
            case Lost():
                return wire.told("lost")

    @cached_property
    def encoded(self) -> bytes:
        return wire.encode(self.event)


class Outlet(Protocol):
    """Where a peer's events go."""

    def ready(self) -> bool:
        """Whether it takes more now; when it does again after a no, it calls `Peer.flush`."""
        ...

    def send(self, watch: int, outgoing: Outgoing) -> None:
        """Send, ready or not."""
        ...

    def deliver(self, watch: int, outgoing: Outgoing) -> bool:
        """Send if it is ready, and say whether it was."""
        ...

    def wake(self) -> None:
        """Call `Peer.flush` soon, from the loop."""
        ...


class NoOutlet:
    """A client without a connection of its own: nothing is sent to it, and its going away means nothing."""

    def ready(self) -> bool:
        return False

    def send(self, watch: int, outgoing: object) -> None:
        raise AssertionError("nobody watches through this")

    def deliver(self, watch: int, outgoing: object) -> bool:
        raise AssertionError("nobody watches through this")

    def wake(self) -> None:
        raise AssertionError("nobody watches through this")


class ServiceWatch:
    """One peer following one service; `missed` are revisions it has not been sent, `applied` what it has acted on."""

    __slots__ = ("applied", "missed_from", "missed_to", "number", "pages", "peer", "service")

    def __init__(self, peer: Peer, number: int, service: str) -> None:
        self.peer = peer
        self.number = number
        self.service = service
        self.applied = 0
        self.missed_from = 0
        self.missed_to = 0
        self.pages: deque[Outgoing] = deque()  # of a snapshot under way

    def offer(self, outgoing: Outgoing) -> None:
        """Send an event now, or remember that it was missed and send a snapshot later."""
        outlet = self.peer.outlet
        if not self.peer.waits(self.number) and outlet.ready() and len(outgoing.encoded) <= PAGE_BYTES:
            outlet.send(self.number, outgoing)
            return
        assert isinstance(outgoing.event, ServiceEvent)
        revision = outgoing.event.revision
        # Before its first snapshot has begun nothing is missed: the snapshot will hold it.
        if self.pages or not self.peer.waits(self.number) or self.missed_from:
            self.missed_from = self.missed_from or revision
            self.missed_to = revision
        self.peer.wake(self.number)

    def pump(self, catalogue: Catalogue) -> None:
        """Send a snapshot, or the rest of one, as far as the outlet takes it."""
        outlet = self.peer.outlet
        if not self.pages:
            if self.missed_from:
                lost = Lost(from_revision=self.missed_from, to_revision=self.missed_to)
                outlet.send(self.number, Outgoing(lost))
                self.missed_from = self.missed_to = 0
            self.pages.extend(_snapshot(catalogue, self.service))
        while self.pages:
            if not outlet.ready():
                self.peer.wake(self.number)
                return
            outlet.send(self.number, self.pages.popleft())
        if self.missed_from:
            self.peer.wake(self.number)


class KeyWatch:
    """One peer following a range of users' keys."""

    __slots__ = ("number", "outlet", "peer", "watcher")

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer = peer
        self.outlet = peer.outlet
        self.number = number
        self.watcher: Watcher | None = None

    def wake(self) -> None:
        self.peer.wake(self.number)

    def push(self, batch: Batch) -> bool:
        """Send a batch now if nothing is in the way."""
        outlet = self.outlet
        shared = _pages_of(batch)
        if len(shared) == 1:
            return outlet.deliver(self.number, shared[0])
        if not outlet.ready():
            return False
        for outgoing in shared:
            outlet.send(self.number, outgoing)
        return True

    def pump(self, _catalogue: Catalogue) -> None:
        """Send what waits, as far as the outlet takes it."""
        watcher, outlet = self.watcher, self.peer.outlet
        assert watcher is not None
        while watcher.pending:
            if not outlet.ready():
                self.peer.wake(self.number)
                return
            item = watcher.take()
            match item:
                case Lost():
                    outlet.send(self.number, Outgoing(item))
                case Batch():
                    for outgoing in _pages_of(item):
                        outlet.send(self.number, outgoing)
                case None:
                    if watcher.pending:  # more history to look through, after others had their turn
                        self.peer.wake(self.number)
                    return


class Peer:
    """One connected client."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.registered: dict[InstanceKey, int] = {}  # what came through this connection, with its lease
        self.watches: dict[int, ServiceWatch | KeyWatch] = {}
        self._behind: dict[int, None] = {}  # the watches that have something to send, in turn

    def expect_free(self, number: int) -> None:
        """Raise unless another watch may be opened under this number."""
        if number in self.watches:
            raise LimitExceeded(f"watch {number} is open already on this connection", limit="watch", allowed=1)
        if len(self.watches) >= WATCHES_PER_CONNECTION_MAX:
            raise LimitExceeded(
                f"this connection has {WATCHES_PER_CONNECTION_MAX} watches already",
                limit="WATCHES_PER_CONNECTION_MAX",
                allowed=WATCHES_PER_CONNECTION_MAX,
            )

    def waits(self, number: int) -> bool:
        """Whether a watch has something to send that must go first."""
        return number in self._behind

    def wake(self, number: int) -> None:
        """A watch has something to send."""
        self._behind[number] = None
        self.outlet.wake()

    def flush(self, catalogue: Catalogue) -> None:
        """Send what waits, as far as the outlet takes it, each watch in its turn."""
        for number in tuple(self._behind):
            if not self.outlet.ready():
                return
            del self._behind[number]
            watch = self.watches.get(number)
            if watch is not None:
                watch.pump(catalogue)


def _snapshot(catalogue: Catalogue, name: str) -> list[Outgoing]:
    """A service's snapshot, encoded once for all who ask before it changes."""
    service = catalogue.services.get(name)
    if service is None:
        return [Outgoing(event) for event in snapshot(None, name, catalogue.revision)]
    return service.answer("snapshot", lambda it: [Outgoing(event) for event in snapshot(it, name, it.index)])


def _pages_of(batch: Batch) -> tuple[Outgoing, ...]:
    """A batch as events, made once for all its readers."""
    if batch.shared is None:
        batch.shared = tuple(_pages(batch, len(keys.USER)))
    return batch.shared  # type: ignore[return-value]  # it is ours


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
        watch = peer.watches[number] = ServiceWatch(peer, number, service)
        self._following.setdefault(service, {})[watch] = None
        self.watches += 1
        peer.wake(number)

    def follow_keys(self, peer: Peer, number: int, key: bytes, end: bytes | None, start_revision: int) -> None:
        """Send the peer the changes of a range of user keys from `start_revision` on."""
        peer.expect_free(number)
        watch = KeyWatch(peer, number)
        watch.watcher = self._store.watch(key, end, start_revision, watch.wake)
        watch.watcher.push = watch.push
        peer.watches[number] = watch
        self.watches += 1

    def cancel(self, peer: Peer, number: int) -> None:
        """End a watch.

        Raises:
            NotFound: the peer has no watch of that number.
        """
        match peer.watches.pop(number, None):
            case ServiceWatch() as watch:
                self._unfollow(watch)
            case KeyWatch(watcher=Watcher() as watcher):
                watcher.close()
            case _:
                raise NotFound(f"there is no watch {number} on this connection", watch=number)
        self.watches -= 1

    def leave(self, peer: Peer) -> None:
        """The peer is gone: forget its watches."""
        for number in tuple(peer.watches):
            self.cancel(peer, number)

    def publish(self, events: Iterable[ServiceEvent]) -> None:
        """Tell the followers of each service what changed."""
        for event in events:
            outgoing = Outgoing(event)
            for watch in tuple(self._following.get(event.service, ())):
                watch.offer(outgoing)

    def applied(self, peer: Peer, number: int, revision: int) -> None:
        """A follower has acted on everything up to a revision."""
        watch = peer.watches.get(number)
        if isinstance(watch, ServiceWatch) and revision > watch.applied:
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
