"""A changed homeport.toml takes effect while a sidecar runs: on SIGHUP, and within a second of the change.

The command line is parsed again, as a whole and by the same rules as at the start, with the file as it is now. A file
that is wrong is refused with the reason, and what held before goes on. What cannot change in a running process
(addresses, workers, logs) is named in a warning.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import click
import msgspec

from homeport.mesh.cli import CONFIG, reparsed, signature
from homeport.sidecar import Options, Remembering, Sidecar, Workers
from homeport.sidecar.options import RELOADED

EVERY_S: Final = 0.5  # between two looks at the file; a look is one stat

log = logging.getLogger("homeport.sidecar")


class Said(Protocol):
    """What the options of a command say; the fields beside `options` hold for the whole life of a process."""

    @property
    def registry(self) -> str: ...
    @property
    def inbound(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def state_dir(self) -> Path | None: ...
    @property
    def remembering(self) -> Remembering | None: ...
    @property
    def options(self) -> Options: ...


class Reloading:
    """Follows the file that a command was given, if any, for the sidecar that it runs.

    Args:
        context: The command's.
        read: What makes sense of the command's parameters.
        before: What it said of them when it started.
    """

    def __init__(
        self, context: click.Context, read: Callable[..., Said], before: Said, serving: Sidecar | Workers
    ) -> None:
        self._context = context
        self._read = read
        self._before = before
        self._serving = serving
        path: str | None
        path, self._seen = context.meta.get(CONFIG, (None, None))  # as it was read, not as it is by now
        self._path = path
        self._task: asyncio.Task[None] | None = None

    @property
    def follows(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def start(self) -> None:
        if self.follows:
            self._task = asyncio.create_task(self._follow(), name="following the configuration")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            seen = self._look()
            if seen is not None and seen != self._seen:
                self.reload()

    def _look(self) -> tuple[int, int, int] | None:
        """What changes when the file does; None while there is none."""
        try:
            return signature(os.stat(self._path)) if self._path is not None else None
        except OSError:
            return None

    def reload(self) -> None:
        """Read the file again, and act on it or say what is wrong with it."""
        self._seen = self._look()
        try:
            after = self._read(**reparsed(self._context))
        except click.ClickException as error:
            log.error("the configuration stays as it was: %s", error.format_message())
            return
        before = self._before
        stay = [name for name in msgspec.structs.asdict(after.options) if name not in RELOADED]
        stuck = [name for name in stay if getattr(before.options, name) != getattr(after.options, name)]
        stuck += [
            name
            for name in ("registry", "inbound", "workers", "state_dir", "remembering")
            if getattr(before, name) != getattr(after, name)
        ]
        if stuck:
            log.warning(
                "%s needs a restart (or --takeover) to change", ", ".join(name.replace("_", "-") for name in stuck)
            )
        self._serving.reconfigure(after.options)
        log.warning("the configuration %s was read again", self._path)
