"""A thread that carries out jobs, one after another, for a loop: `ThreadPoolExecutor(1)` at a third of its price.

A durable write is two hops, to the thread and back. A pool's futures can be waited for by any number of threads, with
locks and conditions for each; these are waited for by a loop alone (`loop.run_in_executor`), which needs to hear of the
end once. With a pool a single write took 221 us of the registry's CPU, so it takes 184 us.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker(Executor):
    """An executor of one thread, for `loop.run_in_executor`; a job that was not begun can be cancelled.

    Args:
        name: of the thread, which ends with `shutdown`, and does not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._open = True
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        if not self._open:
            raise RuntimeError("the worker was shut down")
        job = _Job(fn, args, options)
        self._jobs.put(job)
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; those that were submitted are still carried out, unless they are to be cancelled."""
        if self._open:
            self._open = False
            with suppress(Empty):
                while cancel_futures and (job := self._jobs.get_nowait()) is not None:
                    job.cancel()
            self._jobs.put(None)
        if wait:
            self._thread.join()

    def __del__(self) -> None:
        self.shutdown(wait=False)


class _Job(Future[Any]):
    """A future that a loop can wait for (`asyncio.wrap_future`), and no thread."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        # Not the base's: what it makes is for waiting threads.
        self._call = (fn, args, options)
        self._lock = threading.Lock()
        self._state = "pending"
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self._told: list[Callable[[Future[Any]], object]] = []

    def carry_out(self) -> None:
        with self._lock:
            if self._state != "pending":
                return
            self._state = "running"
        fn, args, options = self._call
        try:
            outcome: tuple[Any, BaseException | None] = (fn(*args, **options), None)
        except BaseException as error:  # noqa: BLE001 - whatever it raised is its outcome
            outcome = (None, error)
        self._end("done", outcome)

    def _end(self, state: str, outcome: tuple[Any, BaseException | None]) -> None:
        with self._lock:
            self._outcome, self._state = outcome, state
            told, self._told = self._told, []
        for tell in told:
            tell(self)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        with self._lock:
            if self._state in ("pending", "running"):
                self._told.append(fn)
                return
        fn(self)

    def cancel(self) -> bool:
        with self._lock:
            if self._state != "pending":
                return self._state == "cancelled"
            self._state = "cancelled"
        self._end("cancelled", (None, None))
        return True

    def cancelled(self) -> bool:
        return self._state == "cancelled"

    def running(self) -> bool:
        return self._state == "running"

    def done(self) -> bool:
        return self._state in ("done", "cancelled")

    def result(self, timeout: float | None = None) -> Any:
        value, error = self._finished()
        if error is not None:
            raise error
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return self._finished()[1]

    def _finished(self) -> tuple[Any, BaseException | None]:
        if self._state == "cancelled":
            raise CancelledError
        if self._state != "done":
            raise InvalidStateError("it is not over, and no thread can wait for it")
        return self._outcome


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.carry_out()
        del job  # nothing is kept of it while the next one is waited for
