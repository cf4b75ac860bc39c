"""Fans out what the registry says: one subscription per service, told to the workers that asked for the service.

What changes is encoded once for all of them. Endpoints stay known when the workers that asked are gone, since their
successors will ask again; names without any endpoint are forgotten with the last worker that asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import HomeportError
from homeport.client.core.model import InstanceKey, ServiceEvent
from homeport.client.core.snapshot import Snapshot
from homeport.client.last_known import LastKnown, confirmed, taken
from homeport.sidecar.channel import Channel, Ejected, Routes, Told, encode
from homeport.sidecar.core import limits
from homeport.sidecar.route_watch import RouteWatch
from homeport.sidecar.services import Discovery, Following

_log = logging.getLogger("homeport.sidecar")

UNSENT_BYTES_MAX: Final = 128 * 1024 * 1024  # a worker that far behind its endpoints is as good as dead


class Audience(Protocol):
    """A worker, as far as it is told something."""

    channel: Channel

    def kill(self) -> None: ...


class _Fan:
    """One service's subscription, and the workers that asked for it."""

    def __init__(self, service: str, subscription: Following) -> None:
        self.service = service
        self.subscription = subscription
        self.stop_listening: Callable[[], None] = lambda: None
        self.workers: set[Audience] = set()
        self.standing = (False, False)  # live, held: as last told
        self.known_told = False  # whether anybody was told who is there
        self.ejected: dict[InstanceKey, float] = {}  # by any worker, and until when: for workers that come later

    def told(self, event: ServiceEvent | None) -> Told:
        """What to tell of an event; None: only how things stand."""
        subscription = self.subscription
        self.standing = (subscription.live, subscription.held)
        return Told(
            service=self.service,
            known=subscription.known,
            revision=subscription.revision,
            live=subscription.live,
            held=subscription.held,
            age_s=subscription.age_s(),
            changed=event.changed if event is not None else (),
            removed=event.removed if event is not None else (),
        )

    def whole(self) -> Told:
        """Everything there is."""
        self.known_told = self.subscription.known
        standing = self.told(None)
        changed = tuple(self.subscription.instances.values())
        return Told(
            service=standing.service,
            known=standing.known,
            revision=standing.revision,
            live=standing.live,
            held=standing.held,
            age_s=standing.age_s,
            snapshot=True,
            changed=changed,
        )


class FanOut:
    """What is known of every service that any worker has asked for.

    Args:
        client: Where services are looked up; None when there is no registry.
        path: The file of last known endpoints, if there is to be one.
        tell_routes: Called with every change of a document of routes; None: nobody needs to know.
    """

    def __init__(
        self, client: Discovery | None, path: Path | None, rng: Rng, tell_routes: Callable[[Routes], None] | None
    ) -> None:
        self._client = client
        self._fans: dict[str, _Fan] = {}
        self._tell_routes = tell_routes
        keys = client.kv if client is not None and tell_routes is not None else None
        self._route_watch = RouteWatch(keys, rng, self._routed) if keys is not None else None
        self._last_known = LastKnown(path, self._taken) if path is not None and client is not None else None

    async def start(self) -> None:
        """Begin with what an earlier process knew; return when the registry has confirmed it, or has had its time."""
        if self._client is None:
            return
        if self._last_known is not None:
            await self._recall(self._client, self._last_known)
        if self._route_watch is not None:
            self._route_watch.start()
            await self._route_watch.read()

    async def _recall(self, client: Discovery, last_known: LastKnown) -> None:
        last = last_known.load()
        if last is not None:
            followed = []
            for known in last.services[: limits.SERVICES_MAX]:
                fan = self._follow(known.service, client)
                fan.subscription.recall(known.instances, known.revision, max(0.0, time.time() - known.confirmed_at_s))
                followed.append(fan.subscription)
            if self._route_watch is not None:
                self._route_watch.recall(last.routes, last.store_id)
                self._route_watch.start()
            await confirmed(followed)
        last_known.start()

    def leave_file(self) -> None:
        """The file is a successor's from now on."""
        if self._last_known is not None:
            self._last_known.stop()

    async def close(self) -> None:
        """Save what is known, and follow nothing any more."""
        if self._route_watch is not None:
            self._route_watch.stop()
        if self._last_known is not None:
            await self._last_known.close()
        for fan in self._fans.values():
            fan.stop_listening()
            fan.subscription.close()
        self._fans.clear()

    def subscribe(self, worker: Audience, service: str) -> None:
        """A worker asks for a service: tell it what is known, now and whenever that changes."""
        fan = self._fans.get(service)
        if fan is None:
            if self._client is None:  # what stands nowhere is nowhere
                nobody = Told(service, known=True, revision=0, live=False, held=False, age_s=0.0, snapshot=True)
                worker.channel.send(nobody)
                return
            try:
                fan = self._follow(service, self._client)
            except HomeportError as error:
                _log.error("service %r cannot be followed: %s", service, error)
                return
        fan.workers.add(worker)
        if fan.subscription.known:
            worker.channel.send(fan.whole())
            now = asyncio.get_running_loop().time()
            fan.ejected = {key: until_s for key, until_s in fan.ejected.items() if until_s > now}
            for key, until_s in fan.ejected.items():
                worker.channel.send(Ejected(service, key, until_s - now))

    def unsubscribe(self, worker: Audience, service: str) -> None:
        """A worker asks for a service no more."""
        fan = self._fans.get(service)
        if fan is not None:
            fan.workers.discard(worker)
            self._forget_if_idle(fan)

    def forget(self, worker: Audience) -> None:
        """A worker is gone."""
        for fan in list(self._fans.values()):
            if worker in fan.workers:
                fan.workers.discard(worker)
                self._forget_if_idle(fan)

    def eject(self, worker: Audience, news: Ejected, everyone: Iterable[Audience]) -> None:
        """One worker's experience is everyone's, also of those to come."""
        for other in everyone:
            if other is not worker:
                other.channel.send(news)
        fan = self._fans.get(news.service)
        if fan is not None and news.key in fan.subscription.instances:
            fan.ejected[news.key] = asyncio.get_running_loop().time() + news.lasts_s

    def tell_standing(self) -> None:
        """Tell of services which the registry has stopped or begun to confirm; the client makes no event of that."""
        for fan in self._fans.values():
            if fan.standing != (fan.subscription.live, fan.subscription.held):
                self._tell(fan, fan.told(None))

    def _taken(self, now_s: float) -> Snapshot:
        subscriptions = {service: fan.subscription for service, fan in self._fans.items()}
        routes = {each.service: each.document for each in self.documents() if each.document is not None}
        return taken(self._client.store_id if self._client is not None else "", subscriptions, routes, now_s)

    def documents(self) -> list[Routes]:
        """All documents of routes, for a worker that starts."""
        if self._route_watch is None:
            return []
        return [Routes(service, *found) for service, found in self._route_watch.documents.items()]

    def _routed(self, service: str, document: bytes | None, revision: int) -> None:
        if self._tell_routes is not None:
            self._tell_routes(Routes(service, document, revision))
        if self._last_known is not None:
            self._last_known.changed()

    def _follow(self, service: str, client: Discovery) -> _Fan:
        fan = self._fans[service] = _Fan(service, client.subscribe(service))

        def changed(event: ServiceEvent) -> None:
            for key in event.removed:
                fan.ejected.pop(key, None)
            # A first word that nobody is there looks like no change, and is news all the same: the whole, empty set.
            self._tell(fan, fan.told(event) if fan.known_told and not event.snapshot else fan.whole())
            if self._last_known is not None:
                self._last_known.changed()

        fan.stop_listening = fan.subscription.listen(changed)
        return fan

    def _tell(self, fan: _Fan, told: Told) -> None:
        frame = encode(told)
        for worker in fan.workers:
            worker.channel.send_encoded(frame)
            if worker.channel.unsent_bytes > UNSENT_BYTES_MAX:
                _log.error("a worker takes in nothing any more: replacing it")
                worker.kill()

    def _forget_if_idle(self, fan: _Fan) -> None:
        if not fan.workers and not fan.subscription.instances:
            del self._fans[fan.service]
            fan.stop_listening()
            fan.subscription.close()
