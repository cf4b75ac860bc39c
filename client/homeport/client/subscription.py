"""Subscriptions: the last known instances of a service, kept current by one watch however many ask for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Final

from homeport.client.core.errors import HomeportError, again
from homeport.client.core.messages import Event
from homeport.client.core.model import Instance, InstanceKey, ServiceEvent
from homeport.client.core.resolver import ServiceView

_log = logging.getLogger("homeport.client")

_QUEUE_MAX: Final = 256  # changes that an iterator's reader may be behind before they are folded into a snapshot

Changed = Callable[[ServiceEvent], None]


class Feed:
    """One service's view and its listeners; owned by the client, shared by its subscriptions."""

    def __init__(self, service: str, now: Callable[[], float], idle: Callable[[Feed], None]) -> None:
        self.view: ServiceView = ServiceView(service)
        self.instances: Mapping[InstanceKey, Instance] = self.view.instances
        self.live: bool = False
        self.watch: int = 0  # the number of its watch on the present link
        self.listeners: dict[object, Changed] = {}
        self.subscriptions: int = 0
        self.error: HomeportError | None = None  # why nothing more comes, unless the next link says otherwise
        self.waiting: dict[asyncio.Event, None] = {}  # set, each, after a change and when there is an error
        self._now = now
        self._idle = idle
        self._confirmed_at = now()
        self._timer: asyncio.TimerHandle | None = None

    def linked(self, watch: int) -> None:
        """A link is there, and the watch is being opened on it."""
        self.watch = watch
        self.error = None
        self.view.reconnected()

    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None:
        """Begin with what was known `age_s` seconds ago, unless the registry has spoken already."""
        if not self.view.known:
            self.view.recall(instances, revision)
            self.instances = self.view.instances
            self._confirmed_at = self._now() - age_s

    def unlinked(self) -> None:
        """The link is gone; what was known stays."""
        if self.live:
            self._confirmed_at = self._now()
        self.live = False
        self.watch = 0

    def take(self, event: Event) -> int | None:
        """Take in an event of the watch; return the revision to acknowledge, if any."""
        if not isinstance(event, ServiceEvent):
            return None  # Lost: a fresh snapshot follows, which says all there is to say
        changed = self.view.apply(event, self._now())
        if changed is None:
            return None
        self.live = True
        self._tell(changed)
        return self.view.revision

    def fail(self, error: HomeportError) -> None:
        """The watch was refused, or the client is closed; whoever waits is told, and what was known stays."""
        self.unlinked()
        self.error = error
        self._wake()

    def end(self, error: HomeportError) -> None:
        """The same, and nothing is held back any more: there is no clock to let go of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.fail(error)

    def age_s(self) -> float:
        return 0.0 if self.live else self._now() - self._confirmed_at

    def release(self) -> None:
        """One subscription less; the last one closes the feed."""
        self.subscriptions -= 1
        if self.subscriptions == 0:
            if self._timer is not None:
                self._timer.cancel()
            self._idle(self)

    def _tell(self, changed: ServiceEvent) -> None:
        self.instances = self.view.instances
        held_until = self.view.held_until
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if held_until is not None:
            delay_s = max(0.0, held_until - self._now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._let_go)
        for listener in tuple(self.listeners.values()):
            try:
                listener(changed)
            except Exception:  # noqa: BLE001 - whatever it is, the link and the other listeners must not suffer
                _log.exception("a listener to service %r failed", self.view.service)
        self._wake()

    def _wake(self) -> None:
        for waiting in self.waiting:
            waiting.set()

    def _let_go(self) -> None:
        self._timer = None
        changed = self.view.release(self._now())
        if changed is not None:
            self._tell(changed)


class Subscription:
    """The last known instances of one service; they stay when the registry is lost. Close it when done."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._open = True
        self._listening: dict[object, None] = {}
        self.service: str = feed.view.service
        feed.subscriptions += 1

    @property
    def instances(self) -> Mapping[InstanceKey, Instance]:
        """All known instances, whatever their status; `Instance.available` says which may take traffic."""
        return self._feed.instances

    @property
    def revision(self) -> int:
        return self._feed.view.revision

    @property
    def known(self) -> bool:
        """Whether the registry has ever said who is there."""
        return self._feed.view.known

    @property
    def live(self) -> bool:
        """Whether the registry confirms it right now."""
        return self._feed.live

    @property
    def held(self) -> bool:
        """Whether instances that a reconnected registry does not know (yet) are kept in use."""
        return self._feed.view.held_until is not None

    @property
    def error(self) -> HomeportError | None:
        """Why the registry tells nothing more, unless the next link says otherwise; None while it does."""
        return self._feed.error

    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None:
        """Begin with what an earlier process knew, `age_s` seconds ago; without effect once the registry has spoken.

        The registry's first answer replaces it, unless that is empty or under half of it: see `held`.
        """
        self._feed.recall(instances, revision, age_s)

    def age_s(self) -> float:
        """Seconds since the registry last confirmed what is known; 0.0 while it does."""
        return self._feed.age_s()

    def listen(self, changed: Changed) -> Callable[[], None]:
        """Call `changed`, synchronously, after each change of `instances`; return what stops that.

        The registry is told that a revision was acted upon once every listener has returned. A listener must neither
        block nor raise; what it raises all the same goes to the log.
        """
        token = object()
        self._feed.listeners[token] = changed
        self._listening[token] = None
        return lambda: self._forget(token)

    def _forget(self, token: object) -> None:
        self._listening.pop(token, None)
        self._feed.listeners.pop(token, None)

    async def wait_known(self, timeout_s: float) -> bool:
        """Return whether the registry has said who is there, waiting for it up to `timeout_s`.

        Raises:
            Closed: the client is closed.
            RequestError: the registry refused to tell.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_known()
        except TimeoutError:
            pass
        return self.known

    async def _wait_known(self) -> None:
        more = asyncio.Event()
        self._feed.waiting[more] = None
        try:
            while not self.known:
                if self._feed.error is not None:
                    raise again(self._feed.error)
                more.clear()
                await more.wait()
        finally:
            del self._feed.waiting[more]

    def close(self) -> None:
        """Let go, and tell its listeners nothing more. Idempotent."""
        if self._open:
            self._open = False
            for token in tuple(self._listening):
                self._forget(token)
            self._feed.release()

    async def events(self) -> AsyncIterator[ServiceEvent]:
        """What is known as a snapshot, then every change; a slow reader gets a fresh snapshot instead of a backlog.

        Raises:
            Closed: the client was closed.
            RequestError: the registry refuses to tell.
        """
        waiting: deque[ServiceEvent] = deque()
        more = asyncio.Event()

        def changed(event: ServiceEvent) -> None:
            if len(waiting) >= _QUEUE_MAX:
                waiting.clear()
                waiting.append(self._snapshot())
            else:
                waiting.append(event)

        await self._wait_known()
        stop = self.listen(changed)
        self._feed.waiting[more] = None
        try:
            yield self._snapshot()
            while True:
                while waiting:
                    yield waiting.popleft()
                if self._feed.error is not None:
                    raise again(self._feed.error)
                more.clear()
                await more.wait()
        finally:
            stop()
            del self._feed.waiting[more]

    def _snapshot(self) -> ServiceEvent:
        known = tuple(self.instances.values())
        return ServiceEvent(service=self.service, revision=self.revision, snapshot=True, changed=known)
