"""The watches of one client: which of them are open on the present link, and who is told what they deliver.

Watches of services are feeds, shared by all who follow the same service, and are opened again on every link. Watches of
keys belong to whoever opened them, who is told when the link is lost and asks for another.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Any, Protocol

from homeport.client.connection import Connection
from homeport.client.core.errors import Closed, ConnectionLost, HomeportError, RegistryError, RequestError
from homeport.client.core.limits import CALL_S, REOPEN_S
from homeport.client.core.messages import Applied, CancelWatch, Event, Watching, WatchKv, WatchService
from homeport.client.core.model import validate_name
from homeport.client.subscription import Feed
from homeport.client.transport import Link

_log = logging.getLogger("homeport.client")


class Watch(Protocol):
    """Whoever has a watch open on the present link."""

    def event(self, event: Event) -> None: ...
    def unlinked(self) -> None: ...


class Watches:
    """Follows the connection that is given to it before anything else is asked."""

    connection: Connection

    def __init__(self) -> None:
        self._numbers = count(1)  # of watches, never used twice, so that a late event finds nobody
        self._feeds: dict[str, Feed] = {}
        self._open: dict[int, Watch | Feed] = {}

    # --- services -----------------------------------------------------------------------------------------------

    def feed(self, service: str) -> Feed:
        """The feed of a service, opened if there is none.

        Raises:
            InvalidArgument: no service can have this name.
        """
        feed = self._feeds.get(service)
        if feed is None:
            validate_name("service", service)
            feed = self._feeds[service] = Feed(service, asyncio.get_running_loop().time, self._feed_idle)
            if self.connection.link is not None:
                self._open_feed(self.connection.link, feed)
            elif self.connection.refusal is not None:
                feed.fail(self.connection.refusal)
        return feed

    def _open_feed(self, link: Link, feed: Feed) -> None:
        watch = next(self._numbers)
        feed.linked(watch)
        self._open[watch] = feed
        opening = asyncio.ensure_future(link.call(WatchService(watch=watch, service=feed.view.service)))
        opening.add_done_callback(lambda opened: self._feed_opened(link, feed, watch, opened))

    def _feed_opened(self, link: Link, feed: Feed, watch: int, opened: asyncio.Future[Watching]) -> None:
        error = None if opened.cancelled() else opened.exception()
        if error is None or isinstance(error, ConnectionLost):  # then the next link will do
            return
        if self._open.pop(watch, None) is None or feed.watch != watch:
            return
        _log.error("the watch of service %r was refused: %s", feed.view.service, error)
        if isinstance(error, RegistryError):
            feed.unlinked()
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen_feed, link, feed)
        else:
            feed.fail(error if isinstance(error, HomeportError) else HomeportError(f"the watch failed: {error!r}"))

    def _reopen_feed(self, link: Link, feed: Feed) -> None:
        if self.connection.link is link and not feed.watch and self._feeds.get(feed.view.service) is feed:
            self._open_feed(link, feed)

    def _feed_idle(self, feed: Feed) -> None:
        if self._feeds.get(feed.view.service) is feed:
            del self._feeds[feed.view.service]
        if feed.watch:
            self.close(feed.watch)

    # --- keys ---------------------------------------------------------------------------------------------------

    async def open_keys(
        self, key: bytes, prefix: bool, start_revision: int, store_id: str, watch: Watch
    ) -> tuple[int, Watching]:
        """Open a key watch on the present link, or the next; return its number.

        Raises:
            RequestError: the registry refuses the watch, or this client.
            ConnectionLost: the link broke, or the registry did not answer in time.
            Closed: this client is closed, or was not started.
        """
        link = await self.connection.wait_link()
        number = next(self._numbers)
        self._open[number] = watch
        request = WatchKv(watch=number, key=key, prefix=prefix, start_revision=start_revision, store_id=store_id)
        try:
            async with asyncio.timeout(CALL_S):
                return number, await link.call(request)
        except TimeoutError:
            self.close(number, link)
            raise ConnectionLost(f"{request.method}: no answer within {CALL_S} s") from None
        except HomeportError:
            self._open.pop(number, None)  # there is none
            raise
        except BaseException:  # cancelled: it may be open, or be so any moment
            self.close(number, link)
            raise

    def close(self, number: int, link: Link | None = None) -> None:
        """Close a watch of the present link, if it still is and is the one (if any) that is named."""
        present = self.connection.link
        if self._open.pop(number, None) is not None and present is not None and link in (None, present):
            closing = asyncio.ensure_future(present.call(CancelWatch(watch=number)))
            closing.add_done_callback(_forget)

    # --- Follower: what the connection tells --------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        for feed in tuple(self._feeds.values()):
            self._open_feed(link, feed)

    def event(self, watch: int, event: Event) -> None:
        target = self._open.get(watch)
        if isinstance(target, Feed):
            applied = target.take(event)
            if applied is not None and self.connection.link is not None:
                self.connection.link.notify(Applied(watch=watch, revision=applied))
        elif target is not None:
            target.event(event)

    def unlinked(self) -> None:
        watches, self._open = self._open, {}
        for watch in watches.values():
            watch.unlinked()

    def refused(self, error: RequestError) -> None:
        for feed in tuple(self._feeds.values()):
            if not feed.view.known:
                feed.fail(error)

    def ended(self, error: Closed) -> None:
        for feed in tuple(self._feeds.values()):
            feed.end(error)


def _forget(done: asyncio.Future[Any]) -> None:
    """A watch could not be closed: the link is gone, or the watch was never opened. Either way there is none."""
    if not done.cancelled() and done.exception() is not None:
        _log.debug("a watch was not closed: %s", done.exception())
