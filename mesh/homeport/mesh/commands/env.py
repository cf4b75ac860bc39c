"""`homeport env`: a command with the keys under a prefix in its environment; told or run anew when they change."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import click

from homeport.client import Client, InvalidArgument
from homeport.mesh.child import Child
from homeport.mesh.commands.options import registry_option, settling_options
from homeport.mesh.commands.running import PassedSignals, StopSignals, ask
from homeport.mesh.following import FollowedKeys, settled

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_]")

_RESTART: Final = -1  # in the place of a signal's number

log = logging.getLogger("homeport.env")


def signal_number(text: str) -> int:
    """An option's type: a signal's name, with or without SIG."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signal.Signals[name]
    except KeyError:
        allowed = ", ".join(signal.Signals.__members__)
        raise click.BadParameter(f"{text!r} is no signal; there are: {allowed}.") from None


@click.command()
@click.argument("prefix")
@click.option("--sanitize", is_flag=True, help="Replace what a shell would not take in a variable's name with _.")
@click.option("--upcase", is_flag=True, help="Write the variables' names in upper case.")
@click.option("--pristine", is_flag=True, help="Do not pass on our own environment.")
@click.option("--restart", is_flag=True, help="When a key changes, stop the command and start it anew.")
@click.option("--signal", "number", metavar="NAME", type=signal_number, help="When a key changes, send this signal.")
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Seconds between telling the command to stop and SIGKILL.",
)
@settling_options
@registry_option
@click.argument("command", nargs=-1, required=True)
def env(
    prefix: str,
    sanitize: bool,
    upcase: bool,
    pristine: bool,
    restart: bool,
    number: int | None,
    stop_timeout: float,
    min_wait: float,
    max_wait: float,
    registry: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with the keys under PREFIX in its environment, named by what follows PREFIX.

    The exit code is the command's (128 + n if signal n ended it). Signals are passed on to it.
    """
    if restart and number is not None:
        raise click.UsageError("--restart and --signal exclude each other.")

    async def question(client: Client) -> int:
        changed = asyncio.Event()
        keys = FollowedKeys(client, prefix, changed.set, prefix=True)
        inherited = {} if pristine else os.environ

        def environment() -> dict[str, str]:
            values = {key.removeprefix(prefix.encode()): entry.value for key, entry in keys.entries.items()}
            return {**inherited, **variables(values, sanitize=sanitize, upcase=upcase)}

        child = Child(command, stop_timeout)
        acts = number if number is not None else _RESTART if restart else None
        try:
            await keys.wait_known()
            return await _live(child, environment, lambda: settled(changed, min_wait, max_wait), acts)
        finally:
            keys.close()
            await child.kill()

    ask(registry, question)


async def _live(
    child: Child,
    environment: Callable[[], dict[str, str]],
    change: Callable[[], Coroutine[Any, Any, None]],
    acts: int | None,
) -> int:
    """From the command's start to its end; return its exit code.

    Args:
        acts: what to do on a change: send this signal, start it anew (`_RESTART`), nothing (None).
    """
    now = environment()
    signals = StopSignals()
    await child.start(now)
    PassedSignals(child.signal)
    waits: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {"end": child.exit_code, "signal": signals.next}
    if acts is not None:
        waits["change"] = change
    pending: dict[str, asyncio.Task[Any]] = {}
    try:
        while True:
            pending |= {name: asyncio.create_task(wait()) for name, wait in waits.items() if name not in pending}
            await asyncio.wait(pending.values(), return_when=asyncio.FIRST_COMPLETED)
            done = {name: pending.pop(name) for name in list(pending) if pending[name].done()}
            if "end" in done:
                code: int = done["end"].result()
                return code
            if "signal" in done:
                child.signal(done["signal"].result())
                waits.pop("change", None)  # it is to end, and not to be started once more
                continue
            before, now = now, _environment(environment, now)
            if now == before:
                continue
            if acts is not None and acts != _RESTART:
                child.signal(acts)
                continue
            pending.pop("end").cancel()
            await child.stop()
            await child.start(now)
    finally:
        for task in pending.values():
            task.cancel()
        await asyncio.gather(*pending.values(), return_exceptions=True)


def _environment(environment: Callable[[], dict[str, str]], before: dict[str, str]) -> dict[str, str]:
    try:
        return environment()
    except InvalidArgument as error:
        log.error("the command keeps the keys it has: %s", error)
        return before


def variables(values: Mapping[bytes, bytes], *, sanitize: bool, upcase: bool) -> dict[str, str]:
    """Keys and values as an environment holds them, byte for byte.

    Raises:
        InvalidArgument: one cannot be a variable, or two would be the same; the message says which.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        plain = os.fsdecode(key).lstrip("/")
        if not plain or plain.endswith("/"):
            continue  # the prefix itself, or what stands for a folder
        name = _NO_NAME.sub("_", plain) if sanitize else plain
        name = name.upper() if upcase else name
        if "=" in name or "\0" in name or b"\0" in value:
            raise InvalidArgument(f"key {plain!r} cannot be a variable: = and NUL are not allowed; try --sanitize")
        if name in found:
            raise InvalidArgument(f"two keys would be the variable {name}; one of them is {plain!r}")
        found[name] = os.fsdecode(value)
    return found
