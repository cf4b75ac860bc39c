"""How a command runs its coroutine: on uvloop where it exists, with logging, signals and exit codes.

Only here: a library never installs a loop, a log handler or a signal handler, so the command does it for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, Final, NoReturn

import click

from homeport.client import Client, HomeportError, InvalidArgument, LimitExceeded, Unavailable
from homeport.client.core.messages import Ping
from homeport.mesh.token import token

CONNECT_TIMEOUT_S: Final = 2.0  # somebody typed the command and waits; long enough for a registry that is restarting
STOP_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
APP_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class ExitCode(IntEnum):
    """What `homeport` answers to its caller."""

    DONE = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3


class StopSignals:
    """The signals that ask this process to stop, in the order they came; for use inside a running loop."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[int] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            try:
                self._loop.add_signal_handler(number, self._came.put_nowait, int(number))
            except NotImplementedError:  # Windows: there the interpreter calls us between two bytecodes
                signal.signal(number, self._interrupted)

    def _interrupted(self, number: int, _frame: object) -> None:
        self._loop.call_soon_threadsafe(self._came.put_nowait, number)

    async def next(self) -> int:
        """Wait for the next signal and return its number."""
        return await self._came.get()


class PassedSignals:
    """The signals that are an app's own business, passed on to it: to many servers they mean reload, or reopen logs.

    A SIGHUP that comes with a terminal means that the terminal is gone: it stays a request to stop.
    """

    def __init__(self, to: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in APP_SIGNALS:
            if number != signal.SIGHUP or not os.isatty(0):
                loop.add_signal_handler(number, to, int(number))


def run_and_exit(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `work` and leave with the exit code it returns, or the one that stands for its error."""
    context = click.get_current_context()
    configure_logging(context.find_root().obj or "warning")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(work)
    except HomeportError as error:
        click.echo(f"homeport: {error}", err=True)
        code = exit_code_of(error)
    except BrokenPipeError:  # whoever read our output has enough; click ends quietly
        raise
    except OSError as error:  # an address that cannot be bound, a program that cannot be started
        click.echo(f"homeport: {error}", err=True)
        code = ExitCode.NO
    context.exit(code)


def ask(registry: str, question: Callable[[Client], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run `question` with a client of the registry and leave with the exit code it returns."""

    async def work() -> int:
        async with Client(*registry.split(","), name="homeport", token=token()) as client:
            await reach(client)
            return await question(client)

    run_and_exit(work())


async def reach(client: Client) -> None:
    """Return when a registry has answered; one that took the connection may be busy, so it has longer than nobody.

    Raises:
        Unavailable: none did.
    """
    try:
        await client.call(Ping(), timeout_s=CONNECT_TIMEOUT_S)
    except Unavailable:
        if not client.connected:
            raise
        await client.call(Ping())


def exit_code_of(error: HomeportError) -> ExitCode:
    """The exit code that stands for an error."""
    if isinstance(error, Unavailable):
        return ExitCode.UNREACHABLE
    if isinstance(error, InvalidArgument | LimitExceeded):
        return ExitCode.USAGE
    return ExitCode.NO


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop: uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def configure_logging(level: str) -> None:
    """Let the log of every part go to standard error."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def log_bare_lines(logger: str) -> None:
    """Let a logger write its messages as they are, whatever else is logged: they are for programs to read."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger(logger)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
