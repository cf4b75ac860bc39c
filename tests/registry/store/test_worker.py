"""The journal's thread: an executor for loops, of whichever make."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from homeport.registry.store.worker import Worker

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("a worker")
    yield made
    made.shutdown()


@pytest.fixture
def held(worker: Worker) -> Iterator[threading.Event]:
    """Until this is set the worker does nothing."""
    free = threading.Event()
    worker.submit(free.wait)
    yield free
    free.set()


@LOOPS
def test_jobs_run_on_one_thread_in_the_order_in_which_they_came(worker: Worker, new_loop: NewLoop) -> None:
    ran: list[tuple[int, str]] = []

    def job(number: int) -> int:
        ran.append((number, threading.current_thread().name))
        return 2 * number

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(worker, job, number) for number in range(200)])

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == [2 * number for number in range(200)]
    assert ran == [(number, "a worker") for number in range(200)]


@LOOPS
def test_what_a_job_raises_is_raised_where_it_is_awaited_and_the_next_one_runs(
    worker: Worker, new_loop: NewLoop
) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(worker, lambda: 1 // 0)
        return await loop.run_in_executor(worker, lambda: 3)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == 3


@LOOPS
def test_a_job_whose_caller_left_before_it_began_never_runs(
    worker: Worker, held: threading.Event, new_loop: NewLoop
) -> None:
    ran: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left = loop.run_in_executor(worker, ran.append, "left")
        stays = loop.run_in_executor(worker, ran.append, "stays")
        left.cancel()
        await asyncio.sleep(0)  # the loop tells the job
        held.set()
        await stays

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert ran == ["stays"]


def test_a_job_that_runs_cannot_be_cancelled_and_one_that_is_over_tells_at_once(worker: Worker) -> None:
    begun, free = threading.Event(), threading.Event()

    def job() -> str:
        begun.set()
        free.wait()
        return "done"

    running = worker.submit(job)
    begun.wait()
    assert running.running()
    assert not running.cancel()
    over = threading.Event()
    running.add_done_callback(lambda _: over.set())
    free.set()
    over.wait()
    told: list[str] = []
    running.add_done_callback(lambda job: told.append(job.result()))
    assert told == ["done"]
    assert running.exception() is None


def test_a_shut_down_worker_finishes_what_it_has_takes_nothing_more_and_ends() -> None:
    worker = Worker("another")
    ran: list[int] = []
    for number in range(3):
        worker.submit(ran.append, number)
    worker.shutdown()
    assert ran == [0, 1, 2]
    with pytest.raises(RuntimeError, match="shut down"):
        worker.submit(ran.append, 3)
    assert "another" not in {thread.name for thread in threading.enumerate()}


def test_what_was_not_begun_is_cancelled_if_a_shutdown_asks_for_that(worker: Worker, held: threading.Event) -> None:
    ran: list[int] = []
    jobs = [worker.submit(ran.append, number) for number in range(3)]
    worker.shutdown(wait=False, cancel_futures=True)
    held.set()
    worker.shutdown()
    assert all(job.cancelled() for job in jobs)
    assert ran == []


def test_a_worker_that_nobody_has_any_more_ends() -> None:
    worker = Worker("forgotten")
    thread = next(one for one in threading.enumerate() if one.name == "forgotten")
    del worker
    thread.join(10)
    assert not thread.is_alive()
