"""The process that `homeport run` runs for somebody else: started, looked at, signalled, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from homeport.mesh.one_try import Connection, TryError
from homeport.mesh.orphans import tie_to_parent

LOCALHOST: Final = "127.0.0.1"
WELL_INTERVAL_S: Final = 0.1  # between two looks at an app that is starting
WELL_TIMEOUT_S: Final = 2.0

log = logging.getLogger("homeport.run")


class App:
    """The process that we run for somebody else."""

    def __init__(self, command: Sequence[str], port: int, check_path: str, stop_timeout_s: float) -> None:
        self._command = command
        self._port = port
        self._check_path = check_path
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, env: Mapping[str, str]) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is for us, who drain it first.

        Raises:
            OSError: there is no such program, or it cannot be run.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=env, start_new_session=sys.platform != "win32", preexec_fn=tie_to_parent()
            )
        except OSError as error:  # uvloop leaves out which file
            raise OSError(error.errno, os.strerror(error.errno or 0), self._command[0]) from error

    async def exit_code(self) -> int:
        """Wait for its end and return its exit code, 128 + n if signal n ended it."""
        code = await self._child.wait()
        return code if code >= 0 else 128 - code

    async def well(self) -> None:
        """Wait until its check passes."""
        while True:
            if await self.look() is None:
                return
            await asyncio.sleep(WELL_INTERVAL_S)

    async def look(self) -> str | None:
        """Its check: `check_path` answers 2xx, or without one, its port takes connections. None, or what is wrong."""
        if self._check_path:
            connection = Connection(f"{LOCALHOST}:{self._port}")
            try:
                answer = await connection.request(
                    "GET", self._check_path, host=connection.address, timeout_s=WELL_TIMEOUT_S
                )
            except TryError as error:
                return f"GET {self._check_path}: {error}"
            finally:
                connection.close()
            return None if 200 <= answer.status < 300 else f"GET {self._check_path}: {answer.status}"
        try:
            async with asyncio.timeout(WELL_TIMEOUT_S):
                _reader, writer = await asyncio.open_connection(LOCALHOST, self._port)
        except (OSError, TimeoutError) as error:
            return f"connecting to port {self._port}: {type(error).__name__}"
        writer.close()
        return None

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
            log.warning("the app did not stop within %g s: killing it", self._stop_timeout_s)
            await self.kill()
            return await self.exit_code()

    async def kill(self) -> None:
        """End it now, with whatever it started in its session, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    @property
    def _child(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the app was not started"
        return self._process
