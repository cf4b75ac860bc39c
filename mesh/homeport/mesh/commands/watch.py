"""`homeport watch`: a service's instances as they change: a table in place, lines of JSON, or a command run for each.

Only the newest state counts: what came and went while the terminal, the reader or the command was busy is not shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import click
import msgspec

from homeport.client import Client, Instance
from homeport.mesh.child import Child
from homeport.mesh.commands.listings import INSTANCE_COLUMNS, instance_rows, plain_instance
from homeport.mesh.commands.options import json_option, registry_option, service_argument
from homeport.mesh.commands.output import print_json_line, table
from homeport.mesh.commands.running import ExitCode, StopSignals, ask
from homeport.mesh.following import FollowedService

STOP_TIMEOUT_S = 5.0  # for a command that still runs when we are told to stop
Show = Callable[[list[Instance]], Awaitable[None]]

log = logging.getLogger("homeport.watch")


@click.command()
@service_argument
@click.option("--passing", is_flag=True, help="Only those that may take traffic now.")
@registry_option
@json_option
@click.argument("command", nargs=-1)
def watch(name: str, passing: bool, registry: str, as_json: bool, command: tuple[str, ...]) -> None:
    """Follow the instances of service NAME until Ctrl-C or SIGTERM.

    A terminal shows a table, a pipe gets a line of JSON, all instances in a list, at first and after each change. With
    COMMAND, it is run instead, with that line on its standard input; one run ends before the next begins.
    """

    async def question(client: Client) -> int:
        signals = StopSignals()
        with ExitStack() as stack:
            child = Child(command, STOP_TIMEOUT_S)
            show = _fed(child) if command else _lines if as_json or not _is_terminal() else _table(name, stack)
            following = asyncio.ensure_future(_follow(client, name, passing, show))
            stopping = asyncio.ensure_future(signals.next())
            try:
                await asyncio.wait([following, stopping], return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
            finally:
                following.cancel()
                stopping.cancel()
                await asyncio.gather(following, stopping, return_exceptions=True)
                if child.runs:
                    await child.stop()
        return ExitCode.DONE

    ask(registry, question)


async def _follow(client: Client, name: str, passing: bool, show: Show) -> None:
    """Show the instances at first, and after each change of what is shown of them."""
    changed = asyncio.Event()
    followed = FollowedService(client, name, changed.set)
    shown: list[Instance] | None = None
    try:
        await followed.wait_known()
        while True:
            changed.clear()
            now = [instance for instance in followed.instances if instance.available or not passing]
            if now != shown:
                shown = now
                await show(now)
            await changed.wait()
    finally:
        followed.close()


async def _lines(instances: list[Instance]) -> None:
    print_json_line([plain_instance(instance) for instance in instances])


def _table(name: str, stack: ExitStack) -> Show:
    from rich.live import Live

    live = stack.enter_context(Live(auto_refresh=False))

    async def show(instances: list[Instance]) -> None:
        drawn = table(INSTANCE_COLUMNS, instance_rows(instances), terminal=True)
        drawn.title = f"{name}: {len(instances)} instance{'' if len(instances) == 1 else 's'}"
        drawn.title_justify = "left"
        live.update(drawn, refresh=True)

    return show


def _fed(child: Child) -> Show:
    async def show(instances: list[Instance]) -> None:
        await child.start(os.environ, stdin=subprocess.PIPE)
        await child.feed(msgspec.json.encode([plain_instance(instance) for instance in instances]) + b"\n")
        code = await child.exit_code()
        if code:
            log.error("the command ended with exit code %d", code)

    return show


def _is_terminal() -> bool:
    return sys.stdout.isatty()
