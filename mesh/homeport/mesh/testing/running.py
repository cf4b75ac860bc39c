"""Running a coroutine in virtual time, from start to a clean end: `run_virtual`, and `virtual_time` for tests.

A run that succeeds must also leave nothing behind: tasks that are still there are cancelled and have to end, and an
error that nobody retrieved fails the run, as does any other report to the loop's exception handler. Connections left
open are closed without a word, as a kernel does when a process ends.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from homeport.mesh.testing.errors import LeftBehindError
from homeport.mesh.testing.virtual import EPOCH_S, STEPS_MAX, VirtualLoop, VirtualTask

P = ParamSpec("P")
T = TypeVar("T")

SEED_VARIABLE = "HOMEPORT_SEED"
"""The environment variable that overrides every seed: to replay a failure, or to search with new seeds."""

FAREWELL_S = 3_600.0
"""Virtual seconds that cancelled tasks get to end: more than any timeout they could still be waiting for."""


def virtual_time(
    *, seed: int = 0, steps_max: int = STEPS_MAX
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, T]]:
    """Make a coroutine function a plain one that runs in virtual time, on a fresh `VirtualLoop` with every call.

    The plain function keeps its name, arguments and marks, so pytest (fixtures, parametrize) and unittest can call it.

    Args:
        seed: of everything random in the run. The environment variable `HOMEPORT_SEED` overrides it.
        steps_max: callbacks after which the run fails with `StepLimitError`.

    Raises:
        ValueError: `HOMEPORT_SEED` is not an integer.
    """

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{function!r} is no coroutine function")

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return run_virtual(function(*args, **kwargs), seed=seed, steps_max=steps_max)

        return run

    return decorate


def run_virtual(main: Coroutine[Any, Any, T], *, seed: int = 0, steps_max: int = STEPS_MAX) -> T:
    """Run a coroutine on a fresh `VirtualLoop` and return its result; see `virtual_time` for the arguments.

    A failure carries a note with the seed, which is printed to stderr as well.

    Raises:
        DeadlockError: it waits for something that cannot happen.
        StepLimitError: it took more callbacks than allowed.
        LeftBehindError: it returned, but left errors that nobody retrieved, or tasks that would not end.
        RuntimeError: called from a running event loop.
        ValueError: `HOMEPORT_SEED` is not an integer.
    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("virtual time cannot run inside a running event loop")
    override = os.environ.get(SEED_VARIABLE)
    try:
        seed = seed if override is None else int(override)
    except ValueError:
        main.close()
        raise ValueError(f"{SEED_VARIABLE} must be an integer, not {override!r}") from None
    loop = VirtualLoop(seed, steps_max=steps_max)
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    try:
        try:
            result = loop.run_until_complete(main)
        except BaseException as error:
            for fault in _end(loop, reports):
                error.add_note(f"left behind: {fault}")
            raise
        faults = _end(loop, reports)
        if faults:
            raise LeftBehindError("the run left behind:\n" + "\n".join(faults))
    except BaseException as error:
        passed_s = loop.time() - EPOCH_S
        note = f"virtual time: {passed_s:g} s after the start; {SEED_VARIABLE}={loop.seed} replays this run"
        error.add_note(note)
        print(note, file=sys.stderr)
        raise
    finally:
        main.close()
        loop.close()
    return result


def _end(loop: VirtualLoop, reports: list[dict[str, Any]]) -> list[str]:
    """Cancel what is left, and tell what went wrong unheard."""
    loop.allow_steps()
    _bury(loop, reports)
    loop.network.heal()
    tasks = _cancel(loop, loop.pending_tasks())
    loop.run_until_complete(loop.shutdown_asyncgens())
    faults = [f"{task!r} would not end when cancelled" for task in tasks if not task.done()]
    faults += [f"nobody retrieved the error of {task!r}: {_traceback(error)}" for task, error in loop.unheard()]
    for report in reports:
        error = report.get("exception")
        if not isinstance(error, asyncio.CancelledError):  # some callbacks of asyncio 3.11 trip over cancelled tasks
            faults.append(f"{report['message']}: {_traceback(error)}")
    loop.network.close()
    return faults


def _bury(loop: VirtualLoop, reports: list[dict[str, Any]]) -> None:
    """Let the tasks of crashed hosts go, unheard: they died long ago, only Python still holds them."""
    known = len(reports)
    tasks = [task for task in loop.pending_tasks() if task.host is not None and task.host.crashed]
    for task in tasks:
        task.cancel()  # before their hosts run again, so that none of them gets further than it was
    for task in tasks:
        assert task.host is not None
        loop.thaw(task.host)
    for task in _cancel(loop, tasks):
        if task.done() and not task.cancelled():
            task.exception()  # now it counts as retrieved
    del reports[known:]


def _cancel(loop: VirtualLoop, tasks: list[VirtualTask[Any]]) -> list[VirtualTask[Any]]:
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=FAREWELL_S))
    return tasks


def _traceback(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error is not None else "no exception"
