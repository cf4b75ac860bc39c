"""`homeport render`: files written from templates over what the registry knows, and commands run when they change.

Changes that come together are rendered together. A file is replaced only when its content differs, whole or not at all,
and only then its command is run: once for all files of one rendering that name it. A template that cannot be rendered
leaves its file as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from homeport.client import Client, HomeportError, InvalidArgument
from homeport.mesh.child import Child
from homeport.mesh.commands.new_file import NewFile
from homeport.mesh.commands.options import registry_option, settling_options
from homeport.mesh.commands.running import ExitCode, StopSignals, ask
from homeport.mesh.following import settled

if TYPE_CHECKING:  # Jinja is loaded only when something is rendered
    from homeport.mesh.templates import Sources, Template

MODE: Final = 0o644  # of a file that is not there yet; one that is keeps its own
_TARGET: Final = re.compile(r"((?:[A-Za-z]:[\\/])?[^:]+):((?:[A-Za-z]:[\\/])?[^:]+)(?::(.+))?", re.DOTALL)
_SHELL: Final = ("/bin/sh", "-c") if os.name == "posix" else ("cmd", "/c")

log = logging.getLogger("homeport.render")


class Target(NamedTuple):
    """One template, the file it becomes, and the command to run when that changes (empty: none)."""

    template: Path
    out: Path
    command: str


def target(text: str) -> Target:
    """An argument's type: TEMPLATE:OUT[:COMMAND]."""
    found = _TARGET.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not TEMPLATE:OUT or TEMPLATE:OUT:COMMAND.")
    return Target(Path(found[1]), Path(found[2]), found[3] or "")


@click.command()
@click.argument("targets", metavar="TEMPLATE:OUT[:COMMAND]...", nargs=-1, required=True, type=target)
@click.option("--once", is_flag=True, help="Render, run the commands of what changed, and leave.")
@click.option(
    "--command-timeout",
    type=click.FloatRange(min=0.1),
    default=30,
    show_default=True,
    help="Seconds after which a command is ended.",
)
@settling_options
@registry_option
def render(
    targets: tuple[Target, ...], once: bool, command_timeout: float, min_wait: float, max_wait: float, registry: str
) -> None:
    """Write each OUT from its TEMPLATE, again whenever what it uses changes, and then run COMMAND by the shell.

    Templates are Jinja with services(), service(NAME), instances(NAME), key(KEY), keys(PREFIX), tree(PREFIX) and
    env(NAME). SIGHUP reads the templates anew; SIGTERM and Ctrl-C end it. With --once the exit code is 1 if a template
    cannot be rendered or a command fails.
    """

    async def question(client: Client) -> int:
        from homeport.mesh.templates import Sources

        changed = asyncio.Event()
        sources = Sources(client, changed.set, os.environ)
        rendering = Rendering(targets, sources, changed, command_timeout)
        try:
            rendering.read()
            if once:
                return ExitCode.DONE if await rendering.render() else ExitCode.NO
            signals = StopSignals()
            return await _watch(rendering, signals, min_wait, max_wait)
        finally:
            sources.close()

    ask(registry, question)


async def _watch(rendering: Rendering, signals: StopSignals, min_wait_s: float, max_wait_s: float) -> int:
    """Render until a signal says to stop."""

    async def go_on() -> None:
        while True:
            await rendering.render()
            await settled(rendering.changed, min_wait_s, max_wait_s)

    going = asyncio.ensure_future(go_on())
    try:
        while True:
            stopping = asyncio.ensure_future(signals.next())
            await asyncio.wait([going, stopping], return_when=asyncio.FIRST_COMPLETED)
            if going.done():
                stopping.cancel()
                going.result()
            if stopping.result() != getattr(signal, "SIGHUP", None) or sys.stdin.isatty():
                return ExitCode.DONE  # a SIGHUP that comes with a terminal means that the terminal is gone
            try:
                rendering.read()
            except (OSError, HomeportError) as error:
                log.error("the templates stay as they were: %s", error)
            rendering.changed.set()
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


class Rendering:
    """The templates as last read, and the files they become."""

    def __init__(
        self, targets: tuple[Target, ...], sources: Sources, changed: asyncio.Event, command_timeout_s: float
    ) -> None:
        self._targets = targets
        self._sources = sources
        self.changed = changed
        self._command_timeout_s = command_timeout_s
        self._templates: list[Template] = []

    def read(self) -> None:
        """Read the templates, all or none.

        Raises:
            OSError: a file cannot be read.
            InvalidArgument: one is no template.
        """
        from homeport.mesh.templates import Template

        templates = []
        for one in self._targets:
            try:
                text = one.template.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"{one.template} is no UTF-8 text: {error}") from None
            templates.append(Template(str(one.template), text, self._sources.functions))
        self._templates = templates

    async def render(self) -> bool:
        """Write what changed and run its commands; whether all of that went well."""
        well = True
        commands: dict[str, None] = {}
        for one, content in zip(self._targets, await self._contents(), strict=True):
            if isinstance(content, HomeportError):
                log.error("%s stays as it is: %s", one.out, content)
                well = False
                continue
            try:
                if _replace(one.out, content):
                    log.info("wrote %s", one.out)
                    commands[one.command] = None
            except OSError as error:  # a full disk, say; what changes next is another try
                log.error("%s stays as it is: %s", one.out, error)
                well = False
        for command in filter(None, commands):
            well = await self._run(command) and well
        return well

    async def _contents(self) -> list[bytes | HomeportError]:
        """What each template comes to, once all it uses is known."""
        while True:
            self._sources.begin()
            contents: list[bytes | HomeportError] = []
            for template in self._templates:
                try:
                    contents.append(template.render())
                except HomeportError as error:
                    contents.append(error)
            if self._sources.complete:
                if not any(isinstance(content, HomeportError) for content in contents):
                    self._sources.finish()
                return contents
            await self.changed.wait()
            self.changed.clear()

    async def _run(self, command: str) -> bool:
        child = Child((*_SHELL, command), self._command_timeout_s)
        await child.start(os.environ)
        try:
            async with asyncio.timeout(self._command_timeout_s):
                code = await child.exit_code()
        except TimeoutError:
            log.error("%r did not end within %g s: ending it", command, self._command_timeout_s)
            return False
        finally:
            await child.kill()
        if code:
            log.error("%r ended with exit code %d", command, code)
        return code == 0


def _replace(out: Path, content: bytes) -> bool:
    """Have `out` hold this; whether it did not."""
    mode = MODE
    with suppress(FileNotFoundError):
        if out.read_bytes() == content:
            return False
        mode = out.stat().st_mode & 0o7777
    with NewFile(out, force=True, mode=mode) as file:
        file.write(content)
        file.finish()
    return True
