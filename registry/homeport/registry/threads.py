"""Other threads: clients that live on another loop than their registry, and a registry with a thread of its own.

    with Registry.in_thread() as registry:             # for tests and scripts that run no loop
        at = registry.serve(http="127.0.0.1:0")
        client = registry.client()                     # for whatever loop starts it

A link is made on the client's loop and used there only; each call hops to the registry's loop, and its answer back.
Hops keep their order, so a client's calls take effect in the order in which they were made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from homeport.client import Client
from homeport.client.core.errors import Closed, ConnectionLost, HomeportError, WrongLoop
from homeport.client.core.messages import Event, Notice, Request, Welcome
from homeport.client.loop_thread import LoopThread
from homeport.client.transport import Link, Receiver

if TYPE_CHECKING:
    from homeport.registry.direct import DirectTransport
    from homeport.registry.registry import At, Registry

R = TypeVar("R")

OFF: Final = "off"


class ThreadsafeTransport:
    """Opens links from any loop to a registry that runs on another."""

    def __init__(self, direct: DirectTransport, loop: asyncio.AbstractEventLoop) -> None:
        self._direct = direct
        self._loop = loop

    async def connect(self, receiver: Receiver) -> Link:
        here = asyncio.get_running_loop()
        if here is self._loop:
            return await self._direct.connect(receiver)
        opening = self._direct.connect(_Remote(receiver, here))
        try:
            opened = asyncio.run_coroutine_threadsafe(opening, self._loop)
        except RuntimeError:
            opening.close()
            raise Closed("the registry's loop is closed") from None
        return ThreadsafeLink(await asyncio.wrap_future(opened), self._loop, here)


class _Remote:
    """Tells the receiver on its own loop what happens on the registry's."""

    def __init__(self, receiver: Receiver, loop: asyncio.AbstractEventLoop) -> None:
        self._receiver = receiver
        self._loop = loop

    def event(self, watch: int, event: Event) -> None:
        _hop(self._loop, self._receiver.event, watch, event)

    def closed(self, error: HomeportError) -> None:
        _hop(self._loop, self._receiver.closed, error)


class ThreadsafeLink:
    """A direct link, used from another loop."""

    def __init__(self, direct: Link, there: asyncio.AbstractEventLoop, here: asyncio.AbstractEventLoop) -> None:
        self._direct = direct
        self._there = there
        self._here = here
        self.welcome: Welcome = direct.welcome

    def call(self, request: Request[R]) -> Awaitable[R]:
        if asyncio.get_running_loop() is not self._here:
            raise WrongLoop("a client belongs to the event loop that started it")
        answer: asyncio.Future[R] = self._here.create_future()

        def ask() -> None:
            asyncio.ensure_future(self._direct.call(request)).add_done_callback(answered)

        def answered(done: asyncio.Future[R]) -> None:
            _hop(self._here, _settle, answer, done)

        if not _hop(self._there, ask):
            answer.set_exception(ConnectionLost("the registry's loop is closed"))
        return answer

    def notify(self, notice: Notice) -> None:
        _hop(self._there, self._direct.notify, notice)

    async def close(self) -> None:
        closing = self._direct.close()
        try:
            closed = asyncio.run_coroutine_threadsafe(closing, self._there)
        except RuntimeError:  # with its loop, the registry has gone, and the link with it
            closing.close()
            return
        await asyncio.wrap_future(closed)


def _hop(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> bool:
    """Have another loop call back; False if it is closed: then there is nobody any more to tell."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True


def _settle(answer: asyncio.Future[R], done: asyncio.Future[R]) -> None:
    error = None if done.cancelled() else done.exception()
    if answer.done():  # whoever asked has given up
        return
    if done.cancelled():
        answer.set_exception(ConnectionLost("the registry was closed before the answer came"))
    elif error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


class RegistryThread:
    """A registry on an event loop in a thread of its own; a context manager for code that runs no loop, or another.

    Attributes:
        registry: the registry itself; only its own loop may use it, see `run`.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._thread = LoopThread("homeport registry", "this registry")

    def start(self) -> None:
        """Start the thread and the registry.

        Raises:
            HomeportError: what `Registry.start` raises.
        """
        self._thread.start()
        try:
            self._thread.run(self.registry.start())
        except BaseException:
            self._thread.close()
            raise

    def close(self) -> None:
        """Stop gracefully, and wait for it. Idempotent."""
        if self._thread.running:
            try:
                self._thread.run(self.registry.close())
            finally:
                self._thread.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the registry's loop and wait for its result.

        Raises:
            Closed: the registry does not run.
            WrongLoop: called from that loop itself, which would wait for itself.
        """
        return self._thread.run(work)

    def serve(self, *, http: str = OFF, rpc: str | Sequence[str] = OFF, dns: str | Sequence[str] = OFF) -> At:
        """Open fronts; see `Registry.serve`."""
        return self.run(self.registry.serve(http=http, rpc=rpc, dns=dns))

    def client(self, *, name: str = "") -> Client:
        """A client for any loop; see `Registry.client_threadsafe`."""
        return self.registry.client_threadsafe(name=name)
