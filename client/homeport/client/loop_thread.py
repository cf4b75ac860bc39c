"""An event loop in a thread of its own, for code that blocks: whoever calls waits, and the loop does the work.

The thread is a daemon: it keeps no program from ending. Neither thread nor loop survives a fork; in the child this says
so, instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from homeport.client.core.errors import Closed, WrongLoop

R = TypeVar("R")

_TURNS = 2  # of the loop, for what an ending told others by callbacks


class LoopThread:
    """One thread with one loop.

    Args:
        name: the thread's.
        owner: whose loop it is, for error messages: "this client".
    """

    def __init__(self, name: str, owner: str) -> None:
        self._name = name
        self._owner = owner
        self._pid = os.getpid()
        # So that nothing is asked of a loop that has been told to stop. Reentrant: a finalizer may ask at any point.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event
        self._stopped = False

    def start(self) -> None:
        """Start the thread; return when its loop runs.

        Raises:
            Closed: it was started before.
            OSError: there is no file or thread left for a loop.
        """
        if self._thread is not None:
            raise Closed(f"{self._owner} starts once")
        running: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._main, args=(running,), name=self._name, daemon=True)
        self._thread.start()
        self._loop = running.result()

    def _main(self, running: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._stay(running))
        except BaseException as error:
            if running.done():
                raise
            running.set_exception(error)  # whoever waits for the loop must hear that there is none

    async def _stay(self, running: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        running.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    @property
    def running(self) -> bool:
        """Whether the loop takes work, in this process."""
        return self._loop is not None and not self._stopped and self._pid == os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether it was closed."""
        return self._stopped

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the loop, and wait for its result. An interrupt (Ctrl-C) cancels it.

        Raises:
            Closed: the loop does not run (any more), or the thread stayed behind in the parent of a fork.
            WrongLoop: called from the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise WrongLoop(f"this is the loop of {self._owner}, which must not wait for itself: use another thread")
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError:
            if self._stopped:
                raise Closed(f"{self._owner} was closed meanwhile") from None
            raise
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Run a coroutine on the loop without waiting for it; see `run` for what it raises at once."""
        try:
            return self._submit(work)
        except BaseException:
            work.close()
            raise

    def _submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        if self._pid != os.getpid():
            raise Closed(f"{self._owner} was made before a fork; make another one in the child")
        with self._lock:
            if self._loop is None or self._stopped:
                raise Closed(
                    f"{self._owner} is closed" if self._stopped else f"{self._owner} was not started; use with"
                )
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], R]) -> R:
        """Run a plain function on the loop, and wait for its result; see `run` for what it raises."""

        async def work() -> R:
            return function()

        return self.run(work())

    def close(self) -> None:
        """Cancel what still runs, and end the thread. Idempotent; without effect in the child of a fork."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._loop is None or self._stopped:
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._stop.set)
        assert self._thread is not None
        if threading.current_thread() is not self._thread:
            self._thread.join()
