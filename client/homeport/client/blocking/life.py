"""What stands behind blocking objects: an async client, and the thread whose loop it lives on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Final, Generic, Self, TypeVar

from homeport.client import client as async_client
from homeport.client.core.errors import Closed, HomeportError
from homeport.client.loop_thread import LoopThread

R = TypeVar("R")
T = TypeVar("T")

OWNER = "this client"


class Life:
    """A started client on a loop of its own, in this process: what is made of it does not outlive it.

    Attributes:
        running: all that were not closed yet, referenced so that who holds only what was made of one (a registration)
            keeps it, and so that the end of the interpreter finds it.
    """

    running: Final[dict[Life, None]] = {}

    def __init__(self, make: Callable[[], async_client.Client]) -> None:
        self._thread = LoopThread("homeport client", OWNER)
        self._thread.start()
        try:
            self.client: async_client.Client = self._thread.call(make)
            self.run(self.client.start())
        except BaseException:
            self._thread.close()
            raise
        self.running[self] = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the loop and wait for its result."""
        return self._thread.run(work)

    def submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Run a coroutine on the loop without waiting."""
        return self._thread.submit(work)

    def call(self, function: Callable[[], R]) -> R:
        """Call a plain function on the loop and wait for its result."""
        return self._thread.call(function)

    def end(self, work: Coroutine[Any, Any, object]) -> None:
        """Run what ends something; with the client closed it has ended already."""
        try:
            self.run(work)
        except Closed:
            if not self._thread.stopped:
                raise

    def close(self) -> None:
        """Close the client and end the thread. Idempotent."""
        self.running.pop(self, None)
        if self._thread.running:
            try:
                self.run(self.client.close())
            except Closed:  # another thread was faster
                return
            finally:
                self._thread.close()


class Changes(Generic[T]):
    """What a watch tells, one thing after the other: an iterator that waits, and a context manager that ends the watch.

        with client.watch("orders") as changes:
            for event in changes:
                ...

    Also ended by `close`, and when nothing refers to it any more. For one thread at a time.
    """

    def __init__(self, life: Life, source: AsyncIterator[T]) -> None:
        self._life = life
        self._source = source
        self._reading: asyncio.Task[Any] | None = None  # on the loop
        self._pending: Future[tuple[T] | None] | None = None
        self._closed = False

    def next(self, timeout_s: float | None = None) -> T | None:
        """The next thing, waiting for it up to `timeout_s`; None if there was none in time. Nothing is lost by that.

        Raises:
            Closed: it was closed, or the client was.
            HomeportError: what the watch raises.
        """
        try:
            found = self._take(timeout_s)
        except StopIteration:
            raise Closed("this watch is closed") from None
        return None if found is None else found[0]

    def _take(self, timeout_s: float | None) -> tuple[T] | None:
        """The next thing by itself in a tuple, since None may be one; None if there was none in time."""
        if self._closed:
            raise StopIteration
        if self._pending is None:
            self._pending = self._life.submit(self._read())
        pending = self._pending
        if not wait((pending,), timeout_s).done:
            return None
        self._pending = None
        if pending.cancelled():
            raise Closed(f"{OWNER} was closed meanwhile")
        found = pending.result()
        if found is None:
            self._closed = True
            raise StopIteration
        return found

    async def _read(self) -> tuple[T] | None:
        self._reading = asyncio.current_task()
        try:
            return (await anext(self._source),)
        except StopAsyncIteration:
            return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        found = self._take(None)
        assert found is not None  # only a timeout makes it so
        return found[0]

    def close(self) -> None:
        """End the watch. Idempotent."""
        if not self._closed:
            self._closed = True
            with suppress(Closed):  # with the client, its watches have ended
                self._life.run(self._end())

    async def _end(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if isinstance(self._source, AsyncGenerator):
            await self._source.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            with suppress(HomeportError):
                self._life.submit(self._end())
