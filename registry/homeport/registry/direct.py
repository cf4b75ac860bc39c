"""The in-process transport: a client's calls are the registry's calls, with the same types, orders and limits.

Requests are checked as if they had come over a connection, so that a mistake shows the same way in a test as in
production; results are immutable values and are handed over as they are. Events are delivered from the loop, never
from within a call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from homeport.client.core import wire
from homeport.client.core.errors import Closed, ConnectionLost, HomeportError, WrongLoop
from homeport.client.core.messages import Hello, Notice, Request, Welcome
from homeport.client.transport import Link, Receiver
from homeport.registry.fronts.rpc import begin
from homeport.registry.operations import Operations
from homeport.registry.peers import Outgoing, Peer
from homeport.registry.results import Commit, Encoded

R = TypeVar("R")


class DirectTransport:
    """Opens links to a registry in this process, from the loop it runs on."""

    def __init__(
        self, operations: Callable[[], Operations], loop: asyncio.AbstractEventLoop, links: dict[DirectLink, None]
    ) -> None:
        self._operations = operations
        self._loop = loop
        self._links = links

    async def connect(self, receiver: Receiver) -> Link:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("an in-process client belongs to its registry's event loop")
        link = DirectLink(self._operations(), self._loop, receiver, self._links)
        self._links[link] = None
        return link


class DirectLink:
    """A link without a connection; also the outlet of its peer."""

    def __init__(
        self, operations: Operations, loop: asyncio.AbstractEventLoop, receiver: Receiver, links: dict[DirectLink, None]
    ) -> None:
        self._operations = operations
        self._loop = loop
        self._receiver = receiver
        self._links = links
        self._events: deque[tuple[int, Outgoing]] = deque()  # emptied in every iteration of the loop
        self._scheduled = False
        self._open = True
        self._waiting: dict[asyncio.Future[Any], None] = {}
        self.peer = Peer(self)
        self.welcome: Welcome = operations.hello(Hello(token=operations.token), self.peer)

    def call(self, request: Request[R]) -> Awaitable[R]:
        answer: asyncio.Future[R] = self._loop.create_future()
        try:
            if not self._open:
                raise ConnectionLost("the registry was closed")
            if asyncio.get_running_loop() is not self._loop:
                raise WrongLoop("an in-process client belongs to its registry's event loop")
            result = self._operations.handle(wire.checked(request), self.peer)
            if isinstance(result, Commit):
                result = self._commit(result)
            if asyncio.iscoroutine(result):
                result = begin(result)
        except HomeportError as error:
            answer.set_exception(error)
            return answer
        if asyncio.iscoroutine(result) or isinstance(result, asyncio.Future):
            self._waiting[answer] = None
            asyncio.ensure_future(result).add_done_callback(lambda task: self._answered(answer, task))
        else:
            answer.set_result(result.decoded() if isinstance(result, Encoded) else result)
        return answer

    async def _commit(self, commit: Commit[Any]) -> Any:
        return commit.shape(await self._operations.store.commit(commit.txn, ops_max=commit.ops_max))

    def _answered(self, answer: asyncio.Future[Any], task: asyncio.Future[Any]) -> None:
        self._waiting.pop(answer, None)
        error = task.exception()
        if answer.done():  # the caller gave up, or the link is closed: the effect stands, nobody asks for the answer
            return
        if error is None:
            answer.set_result(task.result())
        else:
            answer.set_exception(error)

    def notify(self, notice: Notice) -> None:
        if self._open:
            self._operations.notice(notice, self.peer)

    async def close(self) -> None:
        if self._open:
            self._end()

    def lost(self) -> None:
        """The registry is closing."""
        if self._open:
            self._end()
            self._receiver.closed(Closed("the registry was closed"))

    def _end(self) -> None:
        self._open = False
        self._links.pop(self, None)
        self._events.clear()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(ConnectionLost("the link was closed before the answer came"))
        self._operations.leave(self.peer)

    # --- the outlet of its peer ---------------------------------------------------------------------------------

    def ready(self) -> bool:
        return self._open

    def send(self, watch: int, outgoing: Outgoing) -> None:
        self._events.append((watch, outgoing))
        self.wake()

    def deliver(self, watch: int, outgoing: Outgoing) -> bool:
        if self._open:
            self.send(watch, outgoing)
        return self._open

    def wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._open:
            self.peer.flush(self._operations.catalogue)
        while self._events:
            watch, outgoing = self._events.popleft()
            self._receiver.event(watch, outgoing.event)
