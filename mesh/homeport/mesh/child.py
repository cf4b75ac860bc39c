"""A process that we run for somebody else: started, signalled, ended, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from homeport.mesh.orphans import tie_to_parent

log = logging.getLogger("homeport.run")


class Child:
    """One command, which may be run again once it has ended.

    Args:
        command: the program and its arguments.
        stop_timeout_s: between telling it to stop and killing it.
    """

    def __init__(self, command: Sequence[str], stop_timeout_s: float) -> None:
        self._command = command
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, env: Mapping[str, str], *, stdin: int | None = None) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is for us, who decide what becomes of it.

        Args:
            stdin: as for `subprocess`; default: ours.

        Raises:
            OSError: there is no such program, or it cannot be run.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=dict(env),  # uvloop takes no other mapping
                stdin=stdin,
                start_new_session=sys.platform != "win32",
                preexec_fn=tie_to_parent(),
            )
        except OSError as error:  # uvloop leaves out which file
            raise OSError(error.errno, os.strerror(error.errno or 0), self._command[0]) from error

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def feed(self, data: bytes) -> None:
        """Give it `data` on its standard input, and no more; what it does not want is left."""
        pipe = self._child.stdin
        assert pipe is not None, "it was started without a pipe"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.write(data)
            await pipe.drain()
        pipe.close()

    async def exit_code(self) -> int:
        """Wait for its end and return its exit code, 128 + n if signal n ended it."""
        code = await self._child.wait()
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Pass a signal on, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def stop(self) -> int:
        """Tell it to stop, wait, kill it if it takes too long, and return its exit code."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                return await self.exit_code()
        except TimeoutError:
            log.warning("%s did not stop within %g s: killing it", self._command[0], self._stop_timeout_s)
            await self.kill()
            return await self.exit_code()

    async def kill(self) -> None:
        """End it now, with whatever it started in its session, if it still runs."""
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    @property
    def _child(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was not started"
        return self._process
