"""A connection: one link to a registry, kept up, whichever registry of several it leads to at the moment.

Each call waits for a link as long as its own timeout allows. Links are opened in turn, with delays of decorrelated
jitter after each loss, and a link that falls silent is asked whether it lives. What should survive the loss of a link
is told of every link and every loss: it is the connection's `Follower`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import (
    Closed,
    ConnectionLost,
    HomeportError,
    RequestError,
    Unavailable,
    WrongLoop,
    again,
)
from homeport.client.core.limits import CALL_S, CAUGHT_UP_S, ROUND_S, SETTLED_S
from homeport.client.core.messages import (
    Event,
    KvGet,
    KvList,
    KvTxn,
    Ping,
    Renew,
    Request,
    Resolve,
    Services,
    Stats,
)
from homeport.client.core.model import Lost
from homeport.client.transport import Link, Transport

_log = logging.getLogger("homeport.client")

R = TypeVar("R")

_PING_S: Final = 5.0  # how often a silent link is asked whether it is alive
_PONG_S: Final = 5.0  # and how long it may take to say so: a paused registry is noticed within ten seconds
_BEHIND_S: Final = 0.02  # between two looks whether a replica has caught up
# Asking these twice is as good as asking once, so a broken link only means asking the next one.
_REPEATABLE: Final = (KvGet, KvList, Ping, Renew, Resolve, Services, Stats)

_WRONG_LOOP: Final = (
    "this client belongs to the event loop that started it: make one for each loop (each asyncio.run is another), and "
    "for threads homeport.client.blocking.Client"
)

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Follower(Protocol):
    """What hears of a connection's links; called synchronously, and must neither block nor raise."""

    def linked(self, link: Link) -> None:
        """There is a link."""
        ...

    def event(self, watch: int, event: Event) -> None:
        """A watch of the present link delivered something."""
        ...

    def unlinked(self) -> None:
        """The link is gone, and its watches with it."""
        ...

    def refused(self, error: RequestError) -> None:
        """Every registry has failed since the last link, and one refuses this client."""
        ...

    def ended(self, error: Closed) -> None:
        """There will be no link any more."""
        ...


class Connection:
    """Keeps a link; the `Receiver` of all its links.

    Attributes:
        link_epoch: how many links there have been.
        store_id: of the history that the last link showed: what revisions known here belong to.
        refusal: what a registry said, while none of them lets this client in.
        error: what the last link, or the last attempt to open one, ended with.
    """

    def __init__(self, transports: Sequence[Transport], rng: Rng, follower: Follower) -> None:
        self.transports: list[Transport] = list(transports)
        self.link: Link | None = None
        self.link_epoch: int = 0
        self.store_id: str = ""
        self.refusal: RequestError | None = None
        self.error: HomeportError | None = None
        self._rng = rng
        self._follower = follower
        self._forks = _forks
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        self._relinked: dict[asyncio.Event, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # once started
        self._closed = ""  # why it cannot be used any more
        self._failures: deque[HomeportError] = deque(maxlen=len(self.transports))  # one each, since the last link
        self._heard = False
        self._left_at: deque[float] = deque()  # when links were given up for another registry, lately
        self._seen = 0  # the newest revision of the history that anything here has shown

    async def start(self) -> None:
        """Start connecting."""
        if self._task is not None or self._closed:
            raise Closed("a client starts once; make another")
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="homeport client")

    async def close(self) -> None:
        """Close the link; calls under way fail with `ConnectionLost`, later ones with `Closed`. Idempotent."""
        self._closed = self._closed or "this client is closed"
        task, self._task = self._task, None
        link, self.link = self.link, None
        if task is not None:
            task.cancel()
        self._end()  # before anything is awaited: whoever cancels the closing must not leave others waiting
        try:
            if link is not None:
                await link.close()
        finally:
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    def _end(self) -> None:
        """There will be no link any more: tell everyone who waits for one, or for what it would bring."""
        self._linked.set()
        for relinked in self._relinked:
            relinked.set()
        self._follower.unlinked()
        self._follower.ended(Closed(self._closed))

    def expect_usable(self) -> None:
        """Raise `Closed` unless there is a link, or may be one again; and `WrongLoop` on another loop, or on none."""
        if self._forks != _forks:
            raise Closed("this client was made before a fork; make one in the child")
        if self._closed or self._task is None:
            raise Closed(self._closed or "this client was not started; use async with")
        if not self._is_here():
            raise WrongLoop(_WRONG_LOOP)

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def outlives_its_loop(self) -> bool:
        """Whether the loop that this belongs to is closed, and everything with it: then there is nothing to close.

        Raises:
            WrongLoop: it is not, and another one runs.
        """
        if self._loop is None or self._is_here():
            return False
        if not self._loop.is_closed():
            raise WrongLoop(_WRONG_LOOP)
        self._closed = self._closed or "this client's event loop is closed"
        return True

    @property
    def why_not(self) -> str:
        """Why there is no link, to be put at the end of a message; empty while there is one."""
        return f": {self.error.message}" if self.error is not None and self.link is None else ""

    # --- calls --------------------------------------------------------------------------------------------------

    async def call(self, request: Request[R], timeout_s: float = CALL_S) -> R:
        """Ask the registry; see `Client.call`."""
        self.expect_usable()
        sent = False
        garbled = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    link = await self._next_link()
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
                    if self.link is link:  # it knows that it is lost, and tells in a moment
                        await self._lost.wait()
        except TimeoutError:
            if sent and not _repeatable(request):
                raise ConnectionLost(f"{request.method}: no answer within {timeout_s:.3g} s") from None
            late = f"{request.method}: no registry answered within {timeout_s:.3g} s{self.why_not}"
            raise Unavailable(late) from None

    async def wait_link(self, timeout_s: float | None = None) -> Link:
        """The present link, or the next; see `Client.wait_link`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._next_link()
        except TimeoutError:
            raise Unavailable(f"no registry answered within {timeout_s} s{self.why_not}") from None

    async def _next_link(self) -> Link:
        while True:
            self.expect_usable()
            if self.link is not None:
                return self.link
            if self.refusal is not None:
                raise again(self.refusal)
            await self._linked.wait()

    async def wait_connected(self, timeout_s: float = CALL_S) -> bool:
        """Return whether there is a link; see `Client.wait_connected`."""
        self.expect_usable()
        try:
            async with asyncio.timeout(timeout_s):
                while self.link is None:
                    await self._linked.wait()
                    self.expect_usable()
        except TimeoutError:
            pass
        return self.link is not None

    async def wait_relinked(self, epoch: int, timeout_s: float) -> bool:
        """Return whether there is another link than number `epoch`; see `Client.wait_relinked`."""
        self.expect_usable()
        if self.link is not None and self.link_epoch != epoch:
            return True
        relinked = asyncio.Event()
        self._relinked[relinked] = None
        try:
            async with asyncio.timeout(timeout_s):
                await relinked.wait()
        except TimeoutError:
            pass
        finally:
            del self._relinked[relinked]
        self.expect_usable()
        return self.link is not None and self.link_epoch != epoch

    # --- Receiver: what the link tells --------------------------------------------------------------------------

    def event(self, watch: int, event: Event) -> None:
        self._heard = True
        if not isinstance(event, Lost):
            self._seen = max(self._seen, event.revision)
        self._follower.event(watch, event)

    def closed(self, error: HomeportError) -> None:
        self.error = error
        # At once, and not when `_run` gets its turn: who waits for a link must not be given this one again.
        self.link = None
        self._linked.clear()
        self._lost.set()

    def go_elsewhere(self, epoch: int, error: HomeportError) -> None:
        """Give up link number `epoch`, if there are other registries, because of what this one cannot do now.

        Each is left once in `ROUND_S`: when none of them can, the link that is there can still be read from.
        """
        if self.link is None or self.link_epoch != epoch:
            return
        now = asyncio.get_running_loop().time()
        while self._left_at and now - self._left_at[0] > ROUND_S:
            self._left_at.popleft()
        if len(self._left_at) < len(self.transports) > 1:
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
            self.refusal = None
            self.link = link
            self.store_id = link.welcome.store_id
            self.link_epoch += 1
            self._follower.linked(link)
            self._linked.set()
            for relinked in self._relinked:
                relinked.set()
            try:
                await self._until_lost(link)
            finally:  # also when the loop ends, and nobody has closed this
                self.link = None
                self._linked.clear()
                await link.close()
            self._follower.unlinked()
            _log.info("the link is lost: %s", self.error)
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
        self.error = error
        self._failures.append(error)
        if len(self._failures) == len(self.transports):
            self.refusal = next((e for e in self._failures if isinstance(e, RequestError)), None)
        if self.refusal is not None:
            self._linked.set()  # wakes those who wait now, and no one later
            self._linked.clear()
            self._follower.refused(self.refusal)

    def _in_turn(self) -> Iterator[Transport]:
        """The registries as given; after a loss the others in an order of chance, and then the one that was lost.

        So the clients of a registry that is gone come to all the others, and not all to the next.
        """
        epoch, order = self.link_epoch, deque(self.transports)
        while True:
            transport = order[0]
            order.rotate(-1)
            yield transport
            if self.link_epoch != epoch:  # it was the link, and is lost
                epoch = self.link_epoch
                others = [one for one in self.transports if one is not transport]
                order = deque(others.pop(self._rng.randrange(len(others))) for _ in range(len(others)))
                order.append(transport)

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
            self.error = ConnectionLost(f"the registry does not answer: {str(error) or 'timeout'}")
            return False
        except HomeportError as error:  # too busy, say: whatever it answers, it lives
            _log.info("a ping was refused: %s", error)
        return True


def _repeatable(request: Request[Any]) -> bool:
    return isinstance(request, _REPEATABLE) or (isinstance(request, KvTxn) and request.only_reads)
