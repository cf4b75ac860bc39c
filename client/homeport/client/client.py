"""The client: one link to a registry, kept up, with everything that should survive its loss on top of it.

`async with Client("host:8300") as client:` starts connecting and never fails for want of a registry; each call waits
for a link as long as its own timeout allows. Watches and registrations follow the client from link to link.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol, Self, TypeVar

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import Closed, ConnectionLost, HomeportError, InvalidArgument, Unavailable
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import (
    Applied,
    CancelWatch,
    Deregister,
    Event,
    KvGet,
    KvList,
    Ping,
    Renew,
    Request,
    Resolve,
    Services,
    Stats,
    Watching,
    WatchKv,
    WatchService,
    Welcome,
)
from homeport.client.core.model import TTL_S_DEFAULT, Check, Instance, ServiceEvent
from homeport.client.kv import Kv
from homeport.client.registration import Registration
from homeport.client.rpc import StreamTransport
from homeport.client.subscription import Feed, Subscription
from homeport.client.transport import Link, Transport

_log = logging.getLogger("homeport.client")

R = TypeVar("R")

ADDRESS_DEFAULT: Final = "127.0.0.1:8300"
_PING_S: Final = 5.0  # how often a silent link is asked whether it is alive
_PONG_S: Final = 5.0  # and how long it may take to say so: a paused registry is noticed within ten seconds
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
        self._rng: Rng = rng or random.Random()
        self._forks = _forks
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        self._relinked: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = ""  # why it cannot be used any more
        self._error: HomeportError | None = None
        self._numbers = count(1)  # of watches, never used twice, so that a late event finds nobody
        self._feeds: dict[str, Feed] = {}
        self._watches: dict[int, _Watch | Feed] = {}
        self._heard = False
        self.link_epoch = 0  # how many links there have been
        self.store_id = ""  # of the history that the last link showed: what revisions known here belong to
        self.kv = Kv(self)

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
        if link is not None:
            await link.close()
        self._linked.set()  # whoever waits for a link finds that there will be none
        for feed in self._feeds.values():
            feed.unlinked()
        for watch in tuple(self._watches.values()):
            watch.unlinked()

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
            RequestError: the registry refuses; the message says why and what is allowed.
            Unavailable: no answer within `timeout_s`; `ConnectionLost` if a write may have happened all the same.
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    link = await self._wait_link()
                    sent = True
                    try:
                        return await link.call(request)
                    except ConnectionLost:
                        if not isinstance(request, _REPEATABLE):
                            raise
                    if self._link is link:  # it knows that it is lost, and tells in a moment
                        await self._lost.wait()
        except TimeoutError:
            if sent and not isinstance(request, _REPEATABLE):
                raise ConnectionLost(f"{request.method}: no answer within {timeout_s} s") from None
            reason = f": {self._error.message}" if self._error is not None and self._link is None else ""
            raise Unavailable(f"{request.method}: no registry answered within {timeout_s} s{reason}") from None

    async def _wait_link(self) -> Link:
        while True:
            self._expect_usable()
            if self._link is not None:
                return self._link
            await self._linked.wait()

    def _expect_usable(self) -> None:
        if self._forks != _forks:
            raise Closed("this client was made before a fork; make one in the child")
        if self._closed or self._task is None:
            raise Closed(self._closed or "this client was not started; use async with")

    async def wait_connected(self, timeout_s: float = CALL_S) -> bool:
        """Return whether there is a link, waiting for it up to `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_link()
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
            id: unique per node; default `<service>-<host>-<port>`.
            ttl_s: how long the registry keeps it after the last renewal; 0: until deregistered.
            idle_timeout_s: how long this server keeps idle connections; proxies stay below it.

        Raises:
            InvalidArgument: a field is out of range.
        """
        instance = Instance(
            service=service,
            id=id or f"{service}-{socket.gethostname()}-{port}",
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

        The first call opens a watch that lasts as long as the client; later ones answer from memory, also while no
        registry can be reached.

        Raises:
            Unavailable: the registry has not said anything about the service within `timeout_s`.
        """
        feed = self._feeds.get(service)
        if feed is None or not feed.view.known:
            await self._wait_link_for(timeout_s)
            if not await self.subscribe(service).wait_known(timeout_s):
                raise Unavailable(f"nothing is known of service {service!r} after {timeout_s} s")
            feed = self._feeds[service]
        instances = feed.instances.values()
        return tuple([instance for instance in instances if instance.available] if passing else instances)

    async def _wait_link_for(self, timeout_s: float) -> None:
        if not await self.wait_connected(timeout_s):
            reason = f": {self._error.message}" if self._error is not None else ""
            raise Unavailable(f"no registry could be reached within {timeout_s} s{reason}")

    def subscribe(self, service: str) -> Subscription:
        """Follow a service; all subscriptions of one service share one watch.

        Raises:
            Closed: this client is closed, or was not started.
        """
        self._expect_usable()
        feed = self._feeds.get(service)
        if feed is None:
            feed = self._feeds[service] = Feed(service, asyncio.get_running_loop().time, self._feed_idle)
            if self._link is not None:
                self._open_feed(self._link, feed)
        return Subscription(feed)

    async def watch(self, service: str) -> AsyncIterator[ServiceEvent]:
        """Yield the instances of a service as a snapshot, then every change."""
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
        opening.add_done_callback(_note_failure)

    def _feed_idle(self, feed: Feed) -> None:
        del self._feeds[feed.view.service]
        if feed.watch:
            self.close_watch(feed.watch)

    async def open_key_watch(
        self, key: bytes, prefix: bool, start_revision: int, store_id: str, watch: _Watch
    ) -> tuple[int, Watching]:
        """Open a key watch on the present link, or the next; return its number. For `Kv.watch`."""
        link = await self._wait_link()
        number = next(self._numbers)
        self._watches[number] = watch
        request = WatchKv(watch=number, key=key, prefix=prefix, start_revision=start_revision, store_id=store_id)
        try:
            return number, await link.call(request)
        except BaseException:
            self._watches.pop(number, None)
            raise

    def close_watch(self, number: int) -> None:
        """Close a watch of the present link, if it still is."""
        if self._watches.pop(number, None) is not None and self._link is not None:
            closing = asyncio.ensure_future(self._link.call(CancelWatch(watch=number)))
            closing.add_done_callback(_note_failure)

    # --- Receiver: what the link tells --------------------------------------------------------------------------

    def event(self, watch: int, event: Event) -> None:
        self._heard = True
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

    # --- the link's life ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = Backoff(self._rng)
        for transport in self._in_turn():
            self._lost.clear()
            try:
                link = await transport.connect(self)
            except Closed as error:  # a registry in this process, and it will not come back
                self._closed = error.message
                self._linked.set()
                return
            except HomeportError as error:
                self._error = error
                _log.info("%s", error)
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
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
            await asyncio.sleep(backoff.next_s())

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
        except (TimeoutError, HomeportError) as error:
            self._error = ConnectionLost(f"the registry does not answer: {str(error) or 'timeout'}")
            return False
        return True

    async def wait_relinked(self, epoch: int, timeout_s: float) -> bool:
        """Return whether there is another link than number `epoch`, waiting for one up to `timeout_s`."""
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
        return self._link is not None and self.link_epoch != epoch


def _note_failure(done: asyncio.Future[Any]) -> None:
    """A watch could not be opened or closed; if the link is at fault, the next one will do."""
    if not done.cancelled() and done.exception() is not None and not isinstance(done.exception(), ConnectionLost):
        _log.error("a watch was refused: %s", done.exception())
