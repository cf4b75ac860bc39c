"""`homeport lock`: a command that runs while this holds a lock, one at a time however many machines start it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, Final

import click

from homeport.client import Client, Lock
from homeport.client.core.model import TTL_S_DEFAULT, TTL_S_MAX, TTL_S_MIN
from homeport.mesh.child import Child
from homeport.mesh.commands.options import registry_option
from homeport.mesh.commands.running import ExitCode, PassedSignals, StopSignals, ask

TOKEN: Final = "HOMEPORT_LOCK_TOKEN"
KEY: Final = "HOMEPORT_LOCK_KEY"


@click.command()
@click.argument("key")
@click.option(
    "--ttl",
    type=click.FloatRange(TTL_S_MIN, TTL_S_MAX),
    default=TTL_S_DEFAULT,
    show_default=True,
    help="Seconds after which another may have the lock when this process is gone.",
)
@click.option(
    "--wait", type=click.FloatRange(min=0), help="Seconds to wait for the lock, 0 for not at all; default: for ever."
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    default=5,
    show_default=True,
    help="Seconds between telling the command to stop, when the lock is lost, and SIGKILL.",
)
@registry_option
@click.argument("command", nargs=-1, required=True)
def lock(
    key: str, ttl: float, wait: float | None, stop_timeout: float, registry: str, command: tuple[str, ...]
) -> None:
    """Run COMMAND while holding the lock KEY.

    COMMAND finds the fencing token in HOMEPORT_LOCK_TOKEN: let whatever it writes to refuse smaller ones. When the
    lock is lost, COMMAND is told to stop (SIGTERM), and killed if it takes too long.

    The exit code is COMMAND's (128 + n if signal n ended it); 1 if the lock was not to be had in time, or was lost.
    Signals are passed on to COMMAND; before it runs, they end the wait.
    """

    async def question(client: Client) -> int:
        signals = StopSignals()
        wanted = client.lock(key, ttl_s=ttl, value=socket.gethostname().encode())
        acquired, stopped = await _first(wanted.acquire(wait=wait != 0, timeout_s=wait or None), signals.next())
        if stopped is not None:
            await wanted.release()
            return 128 + int(stopped)
        if not acquired:
            click.echo(f"homeport: {key!r} is locked", err=True)
            return ExitCode.NO
        child = Child(command, stop_timeout)
        try:
            return await _run(child, wanted, key, signals)
        finally:
            await child.kill()
            await wanted.release()

    ask(registry, question)


async def _run(child: Child, lock: Lock, key: str, signals: StopSignals) -> int:
    """From the command's start to its end; return the exit code."""
    await child.start({**os.environ, TOKEN: str(lock.token), KEY: key})
    PassedSignals(child.signal)
    ended = asyncio.create_task(child.exit_code())
    lost = asyncio.create_task(lock.lost.wait())
    came = asyncio.create_task(signals.next())
    try:
        while True:
            await asyncio.wait((ended, lost, came), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            if lost.done():
                click.echo(f"homeport: the lock {key!r} was lost: stopping the command", err=True)
                await child.stop()
                return ExitCode.NO
            child.signal(came.result())
            came = asyncio.create_task(signals.next())
    finally:
        for task in (ended, lost, came):
            task.cancel()
        await asyncio.gather(ended, lost, came, return_exceptions=True)


async def _first(one: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> tuple[Any, Any]:
    """Wait for either, and return what came of each; None for the one that did not come, which is cancelled."""
    tasks = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first, second = (None if task.cancelled() else task.result() for task in tasks)
    return first, second
