"""A thread that carries out jobs, one after another: `ThreadPoolExecutor(1)` without what only a larger pool needs.

A durable write is two hops, to the thread and back, and a pool's are long: for every job it takes two locks, looks for
an idle thread and makes a weak reference. Of a registry that makes one write at a time that is a twentieth of its CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Worker(Executor):
    """An executor of one thread, which ends with `shutdown` and does not keep the process from ending.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._open = True
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        if not self._open:
            raise RuntimeError("the worker was shut down")
        future: Future[T] = Future()
        self._jobs.put((future, fn, args, options))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; those that were submitted are still carried out, unless they are to be cancelled."""
        if self._open:
            self._open = False
            with suppress(Empty):
                while cancel_futures and (job := self._jobs.get_nowait()) is not None:
                    job[0].cancel()
            self._jobs.put(None)
        if wait:
            self._thread.join()

    def __del__(self) -> None:
        self.shutdown(wait=False)


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, fn, args, options = job
        if future.set_running_or_notify_cancel():
            try:
                result = fn(*args, **options)
            except BaseException as error:  # noqa: BLE001 - whatever it raised is its outcome
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        del job, future, fn, args, options  # nothing is kept of it while the next one is waited for
