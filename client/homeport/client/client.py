"""The client: one link to a registry, kept up, with everything that should survive its loss on top of it.

`async with Client("host:8300") as client:` starts connecting and never fails for want of a registry; each call waits
for a link as long as its own timeout allows. Watches and registrations follow the client from link to link.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol, Self, TypeVar

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import (
    Closed,
    ConnectionLost,
    HomeportError,
    InvalidArgument,
    RegistryError,
    RequestError,
    Unavailable,
    again,
)
from homeport.client.core.limits import CALL_S, CAUGHT_UP_S, RENEWED_S, REOPEN_S, RESOLVED_MAX, ROUND_S, SETTLED_S
from homeport.client.core.messages import (
    Applied,
    CancelWatch,
    Deregister,
    Event,
    KvGet,
    KvList,
    KvTxn,
    Ping,
    Renew,
    Renewed,
    Request,
    Resolve,
    Services,
    Stats,
    Watching,
    WatchKv,
    WatchService,
    Welcome,
)
from homeport.client.core.model import TTL_S_DEFAULT, Check, Instance, Lost, ServiceEvent, validate_name
from homeport.client.kv import Kv
from homeport.client.randomness import own_rng
from homeport.client.registration import Registration
from homeport.client.renewals import Renewals
from homeport.client.rpc import StreamTransport
from homeport.client.subscription import Feed, Subscription
from homeport.client.transport import Link, Transport

_log = logging.getLogger("homeport.client")

R = TypeVar("R")

ADDRESS_DEFAULT: Final = "127.0.0.1:8300"
_PING_S: Final = 5.0  # how often a silent link is asked whether it is alive
_BEHIND_S: Final = 0.02  # between two looks whether a replica has caught up
_PONG_S: Final = 5.0  # and how long it may take to say so: a paused registry is noticed within ten seconds
_ID_RANGE: Final = 1 << 32  # of what makes an id unique that has no port to do so
# Asking these twice is as good as asking once, so a broken link only means asking the next one.
_REPEATABLE: Final = (KvGet, KvList, Ping, Renew, Resolve, Services, Stats)

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Watch(Protocol):
    """Whoever has a watch open on the present link."""

    def event(self, event: Event) -> None: ...
    def unlinked(self) -> None: ...


class Client:
    """A registry's client; an async context manager, for use on one event loop.

    Args:
        addresses: where registries are, "host:port" or "unix:/path", tried in turn; default 127.0.0.1:8300.
        transport: instead of addresses, any way to open links.
        token: what to present to the registry.
        name: how this client calls itself, for the registry's listings.
        rng: the source of jitter.

    Raises:
        InvalidArgument: an address is malformed.
    """

    def __init__(
        self,
        *addresses: str,
        transport: Transport | None = None,
        token: str = "",
        name: str = "",
        rng: Rng | None = None,
    ) -> None:
        if addresses and transport is not None:
            raise InvalidArgument("give addresses or a transport, not both")
        self._transports: list[Transport] = (
            [transport]
            if transport is not None
            else [StreamTransport(address, token=token, name=name) for address in addresses or (ADDRESS_DEFAULT,)]
        )
        self._rng: Rng = rng or own_rng()
        self._forks = _forks
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        self._relinked: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = ""  # why it cannot be used any more
        self._error: HomeportError | None = None
        self._failures: deque[HomeportError] = deque(maxlen=len(self._transports))  # one each, since the last link
        self._refusal: RequestError | None = None  # what a registry said, while none of them lets this client in
        self._numbers = count(1)  # of watches, never used twice, so that a late event finds nobody
        self._feeds: dict[str, Feed] = {}
        self._resolved: dict[str, Subscription] = {}  # what `resolve` follows, least recently asked for first
        self._watches: dict[int, _Watch | Feed] = {}
        self._heard = False
        self.link_epoch = 0  # how many links there have been
        self._left_at: deque[float] = deque()  # when links were given up for another registry, lately
        self.store_id = ""  # of the history that the last link showed: what revisions known here belong to
        self._seen = 0  # the newest revision of it that anything here has shown
        self.kv = Kv(self)
        self.renewals = Renewals(self._renew, self._rng)

    async def start(self) -> None:
        """Start connecting; the same as entering the context."""
        if self._task is not None or self._closed:
            raise Closed("a client starts once")
        self._task = asyncio.create_task(self._run(), name="homeport client")

    async def close(self) -> None:
        """Close the link; calls under way fail with `ConnectionLost`, later ones with `Closed`. Idempotent."""
        self._closed = self._closed or "this client is closed"
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        link, self._link = self._link, None
        self._end()
        if link is not None:
            await link.close()

    def _end(self) -> None:
        """There will be no link any more: tell everyone who waits for one, or for what it would bring."""
        self._linked.set()
        for relinked in self._relinked:
            relinked.set()
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            watch.unlinked()
        for feed in tuple(self._feeds.values()):
            feed.end(Closed(self._closed))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def welcome(self) -> Welcome | None:
        """What the registry said of itself, while connected."""
        return self._link.welcome if self._link is not None else None

    # --- calls --------------------------------------------------------------------------------------------------

    async def call(self, request: Request[R], *, timeout_s: float = CALL_S) -> R:
        """Ask the registry anything of `homeport.client.core.messages`.

        Raises:
            RequestError: the registry refuses; the message says why and what is allowed. At once, if what it
                refuses is this client (`Unauthorized`), which goes on trying in the background.
            Unavailable: no answer within `timeout_s`; `ConnectionLost` if a write may have happened all the same.
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        sent = False
        garbled = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    link = await self._wait_link()
                    sent = True
                    try:
                        result = await link.call(request)
                        self._seen = max(self._seen, getattr(result, "revision", 0))
                        return result
                    except ConnectionLost as lost:
                        # Once more at most where it may be this very answer that breaks links, all others' with it.
                        garbled += bool(lost.details.get("garbled"))
                        if garbled > 1 or not _repeatable(request):
                            raise
                    if self._link is link:  # it knows that it is lost, and tells in a moment
                        await self._lost.wait()
        except TimeoutError:
            if sent and not _repeatable(request):
                raise ConnectionLost(f"{request.method}: no answer within {timeout_s} s") from None
            reason = f": {self._error.message}" if self._error is not None and self._link is None else ""
            raise Unavailable(f"{request.method}: no registry answered within {timeout_s} s{reason}") from None

    async def _renew(self, request: Renew) -> Renewed:
        """Renew, at another registry if this one is slow to answer: it may stand still, and no other know of it yet."""
        late = Unavailable(f"a renewal was not answered within {RENEWED_S} s")
        timer = asyncio.get_running_loop().call_later(RENEWED_S, self.go_elsewhere, self.link_epoch, late)
        try:
            return await self.call(request)
        finally:
            timer.cancel()

    async def _wait_link(self) -> Link:
        while True:
            self._expect_usable()
            if self._link is not None:
                return self._link
            if self._refusal is not None:
                raise again(self._refusal)
            await self._linked.wait()

    def _expect_usable(self) -> None:
        if self._forks != _forks:
            raise Closed("this client was made before a fork; make one in the child")
        if self._closed or self._task is None:
            raise Closed(self._closed or "this client was not started; use async with")

    async def wait_connected(self, timeout_s: float = CALL_S) -> bool:
        """Return whether there is a link, waiting for it up to `timeout_s`, also while a registry refuses this client.

        Raises:
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        try:
            async with asyncio.timeout(timeout_s):
                while self._link is None:
                    await self._linked.wait()
                    self._expect_usable()
        except TimeoutError:
            pass
        return self.connected

    # --- services -----------------------------------------------------------------------------------------------

    def register(
        self,
        service: str,
        *,
        port: int = 0,
        id: str = "",  # noqa: A002 - the field's name everywhere else
        address: str = "127.0.0.1",
        node: str = "",
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        weight: int = 1,
        zone: str = "",
        version: str = "",
        ttl_s: float = TTL_S_DEFAULT,
        checks: Sequence[Check] = (),
        idle_timeout_s: float = 0.0,
    ) -> Registration:
        """Register an instance for as long as the returned registration is entered (or started).

        Args:
            id: unique per node; default `<service>-<host>-<port>`, with something random in place of port 0.
            ttl_s: how long the registry keeps it after the last renewal; 0: until deregistered.
            idle_timeout_s: how long this server keeps idle connections; proxies stay below it.

        Raises:
            InvalidArgument: a field is out of range.
        """
        instance = Instance(
            service=service,
            id=id or f"{service}-{socket.gethostname()}-{port or f'{self._rng.randrange(_ID_RANGE):08x}'}",
            node=node,
            address=address,
            port=port,
            tags=tuple(tags),
            meta=dict(meta or {}),
            weight=weight,
            zone=zone,
            version=version,
            ttl_s=ttl_s,
            checks=tuple(checks),
            idle_timeout_s=idle_timeout_s,
        )
        return Registration(self, instance, self._rng)

    async def deregister(self, id: str, *, node: str = "") -> bool:  # noqa: A002
        """Deregister an instance, whoever registered it; False if there was none."""
        return (await self.call(Deregister(id=id, node=node))).applied

    async def services(self) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of its instances."""
        services: dict[str, tuple[str, ...]] = {}
        page = await self.call(Services())
        while page.more:
            services |= page.services
            page = await self.call(Services(after=next(reversed(page.services))))
        return services | page.services

    async def resolve(self, service: str, *, passing: bool = True, timeout_s: float = CALL_S) -> tuple[Instance, ...]:
        """The instances of a service that can take traffic, or with `passing=False` all of them.

        The first call opens a watch, which stays until a thousand other services were asked for since; later calls
        answer from memory, also while no registry can be reached.

        Raises:
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            Unavailable: the registry has not said anything about the service within `timeout_s`.
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        subscription = self._resolved.pop(service, None) or await self._first_resolved(service, timeout_s)
        self._resolved[service] = subscription
        if len(self._resolved) > RESOLVED_MAX:
            self._resolved.pop(next(iter(self._resolved))).close()
        instances = subscription.instances.values()
        return tuple([instance for instance in instances if instance.available] if passing else instances)

    async def _first_resolved(self, service: str, timeout_s: float) -> Subscription:
        """Follow a service for `resolve`, once it is known."""
        subscription = self.subscribe(service)
        try:
            if not subscription.known:
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._wait_link()
                        await subscription.wait_known(timeout_s)
                except TimeoutError:
                    pass
            if not subscription.known:
                reason = f": {self._error.message}" if self._error is not None and self._link is None else ""
                raise Unavailable(f"nothing is known of service {service!r} after {timeout_s} s{reason}")
        except BaseException:
            subscription.close()
            raise
        meanwhile = self._resolved.pop(service, None)
        if meanwhile is not None:
            meanwhile.close()
        return subscription

    def subscribe(self, service: str) -> Subscription:
        """Follow a service; all subscriptions of one service share one watch.

        Raises:
            InvalidArgument: no service can have this name.
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        feed = self._feeds.get(service)
        if feed is None:
            validate_name("service", service)
            feed = self._feeds[service] = Feed(service, asyncio.get_running_loop().time, self._feed_idle)
            if self._link is not None:
                self._open_feed(self._link, feed)
            elif self._refusal is not None:
                feed.fail(self._refusal)
        return Subscription(feed)

    async def watch(self, service: str) -> AsyncIterator[ServiceEvent]:
        """Yield the instances of a service as a snapshot, then every change.

        Raises:
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            Closed: this client was closed, or not started.
        """
        subscription = self.subscribe(service)
        try:
            async for event in subscription.events():
                yield event
        finally:
            subscription.close()

    # --- watches on the present link ----------------------------------------------------------------------------

    def _open_feed(self, link: Link, feed: Feed) -> None:
        watch = next(self._numbers)
        feed.linked(watch)
        self._watches[watch] = feed
        opening = asyncio.ensure_future(link.call(WatchService(watch=watch, service=feed.view.service)))
        opening.add_done_callback(lambda opened: self._feed_opened(link, feed, watch, opened))

    def _feed_opened(self, link: Link, feed: Feed, watch: int, opened: asyncio.Future[Watching]) -> None:
        error = None if opened.cancelled() else opened.exception()
        if error is None or isinstance(error, ConnectionLost):  # then the next link will do
            return
        if self._watches.pop(watch, None) is None or feed.watch != watch:
            return
        _log.error("the watch of service %r was refused: %s", feed.view.service, error)
        if isinstance(error, RegistryError):
            feed.unlinked()
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen_feed, link, feed)
        else:
            feed.fail(error if isinstance(error, HomeportError) else HomeportError(f"the watch failed: {error!r}"))

    def _reopen_feed(self, link: Link, feed: Feed) -> None:
        if self._link is link and not feed.watch and self._feeds.get(feed.view.service) is feed:
            self._open_feed(link, feed)

    def _feed_idle(self, feed: Feed) -> None:
        if self._feeds.get(feed.view.service) is feed:
            del self._feeds[feed.view.service]
        if feed.watch:
            self.close_watch(feed.watch)

    async def open_key_watch(
        self, key: bytes, prefix: bool, start_revision: int, store_id: str, watch: _Watch
    ) -> tuple[int, Watching]:
        """Open a key watch on the present link, or the next; return its number. For `Kv.watch`.

        Raises:
            RequestError: the registry refuses the watch, or this client.
            ConnectionLost: the link broke, or the registry did not answer in time.
            Closed: this client is closed, or was not started.
        """
        link = await self._wait_link()
        number = next(self._numbers)
        self._watches[number] = watch
        request = WatchKv(watch=number, key=key, prefix=prefix, start_revision=start_revision, store_id=store_id)
        try:
            async with asyncio.timeout(CALL_S):
                return number, await link.call(request)
        except TimeoutError:
            self.close_watch(number, link)
            raise ConnectionLost(f"{request.method}: no answer within {CALL_S} s") from None
        except HomeportError:
            self._watches.pop(number, None)  # there is none
            raise
        except BaseException:  # cancelled: it may be open, or be so any moment
            self.close_watch(number, link)
            raise

    def close_watch(self, number: int, link: Link | None = None) -> None:
        """Close a watch of the present link, if it still is and is the one (if any) that is named."""
        if self._watches.pop(number, None) is not None and self._link is not None and link in (None, self._link):
            closing = asyncio.ensure_future(self._link.call(CancelWatch(watch=number)))
            closing.add_done_callback(_forget)

    # --- Receiver: what the link tells --------------------------------------------------------------------------

    def event(self, watch: int, event: Event) -> None:
        self._heard = True
        if not isinstance(event, Lost):
            self._seen = max(self._seen, event.revision)
        target = self._watches.get(watch)
        if isinstance(target, Feed):
            applied = target.take(event)
            if applied is not None and self._link is not None:
                self._link.notify(Applied(watch=watch, revision=applied))
        elif target is not None:
            target.event(event)

    def closed(self, error: HomeportError) -> None:
        self._error = error
        # At once, and not when `_run` gets its turn: who waits for a link must not be given this one again.
        self._link = None
        self._linked.clear()
        self._lost.set()

    def go_elsewhere(self, epoch: int, error: HomeportError) -> None:
        """Give up link number `epoch`, if there are other registries, because of what this one cannot do now.

        Each is left once in `ROUND_S`: when none of them can, the link that is there can still be read from.
        """
        if self._link is None or self.link_epoch != epoch:
            return
        now = asyncio.get_running_loop().time()
        while self._left_at and now - self._left_at[0] > ROUND_S:
            self._left_at.popleft()
        if len(self._left_at) < len(self._transports) > 1:
            self._left_at.append(now)
            self.closed(error)

    # --- the link's life ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._rng)
        for transport in self._in_turn():
            self._lost.clear()
            try:
                link = await transport.connect(self)
                await self._caught_up(link)
            except Closed as error:  # a registry in this process, and it will not come back
                self._closed = self._closed or error.message
                self._end()
                return
            except HomeportError as error:
                self._not_linked(error)
                _log.info("%s", error)
                await asyncio.sleep(backoff.next_s())
                continue
            except Exception as error:  # noqa: BLE001 - a transport's defect must not end this task for good
                self._not_linked(Unavailable(f"no link could be opened: {error!r}"))
                _log.exception("opening a link failed by a defect")
                await asyncio.sleep(backoff.next_s())
                continue
            linked_at = loop.time()
            self._failures.clear()
            self._refusal = None
            self._link = link
            self.store_id = link.welcome.store_id
            self.link_epoch += 1
            for feed in tuple(self._feeds.values()):
                self._open_feed(link, feed)
            self._linked.set()
            for relinked in self._relinked:
                relinked.set()
            await self._until_lost(link)
            self._link = None
            self._linked.clear()
            await link.close()
            watches, self._watches = self._watches, {}
            for watch in watches.values():
                watch.unlinked()
            _log.info("the link is lost: %s", self._error)
            if loop.time() - linked_at >= SETTLED_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _caught_up(self, link: Link) -> None:
        """Return when the registry shows all that this client has seen: a replica may be a moment behind another.

        Raises:
            Unavailable: it is too far behind; the link is closed.
        """
        if link.welcome.store_id != self.store_id:
            self._seen = 0
        revision = link.welcome.revision
        try:
            async with asyncio.timeout(CAUGHT_UP_S):
                while revision < self._seen:
                    await asyncio.sleep(_BEHIND_S)
                    revision = (await link.call(Ping())).revision
        except TimeoutError:
            await link.close()
            raise Unavailable(f"the registry is at revision {revision}, others were at {self._seen} already") from None
        except BaseException:
            await link.close()
            raise

    def _not_linked(self, error: HomeportError) -> None:
        """An attempt failed; if every registry has failed since the last link and one refuses this client, say so."""
        self._error = error
        self._failures.append(error)
        if len(self._failures) == len(self._transports):
            self._refusal = next((e for e in self._failures if isinstance(e, RequestError)), None)
        if self._refusal is not None:
            self._linked.set()  # wakes those who wait now, and no one later
            self._linked.clear()
            for feed in tuple(self._feeds.values()):
                if not feed.view.known:
                    feed.fail(self._refusal)

    def _in_turn(self) -> Iterator[Transport]:
        while True:
            yield from self._transports

    async def _until_lost(self, link: Link) -> None:
        """Return when the link is gone, or does not answer."""
        while not self._lost.is_set():
            self._heard = False
            try:
                async with asyncio.timeout(_PING_S):
                    await self._lost.wait()
            except TimeoutError:
                if not self._heard and not await self._answers(link):
                    return

    async def _answers(self, link: Link) -> bool:
        try:
            async with asyncio.timeout(_PONG_S):
                await link.call(Ping())
        except (TimeoutError, Unavailable) as error:
            self._error = ConnectionLost(f"the registry does not answer: {str(error) or 'timeout'}")
            return False
        except HomeportError as error:  # too busy, say: whatever it answers, it lives
            _log.info("a ping was refused: %s", error)
        return True

    async def wait_relinked(self, epoch: int, timeout_s: float) -> bool:
        """Return whether there is another link than number `epoch`, waiting for one up to `timeout_s`.

        Raises:
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        if self._link is not None and self.link_epoch != epoch:
            return True
        relinked = asyncio.Event()
        self._relinked.add(relinked)
        try:
            async with asyncio.timeout(timeout_s):
                await relinked.wait()
        except TimeoutError:
            pass
        finally:
            self._relinked.discard(relinked)
        self._expect_usable()
        return self._link is not None and self.link_epoch != epoch


def _repeatable(request: Request[Any]) -> bool:
    return isinstance(request, _REPEATABLE) or (isinstance(request, KvTxn) and request.only_reads)


def _forget(done: asyncio.Future[Any]) -> None:
    """A watch could not be closed: the link is gone, or the watch was never opened. Either way there is none."""
    if not done.cancelled() and done.exception() is not None:
        _log.debug("a watch was not closed: %s", done.exception())
