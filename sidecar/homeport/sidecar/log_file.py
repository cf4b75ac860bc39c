"""A file that lines are appended to without the loop ever waiting for a disk.

Lines gather until the next sweep and leave in one write, made by a thread; a file opened for appending takes each
whole, also from several workers. A file that was moved away (logrotate) is made anew. When the disk is slower than the
traffic, lines beyond `BACKLOG_BYTES_MAX` are dropped and counted, since requests matter more than their record.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

BACKLOG_BYTES_MAX: Final = 8 * 1024 * 1024  # some 30,000 lines: a second of a disk that stands still
STDOUT: Final = "-"

_log = logging.getLogger("homeport.sidecar")


class LogFile:
    """Appends to the file at `path`, or to standard output for `-`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = 1 if path == STDOUT else -1
        self._lines: list[bytes] = []
        self._bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._failing = False
        self.written = 0  # lines, dropped ones included
        self.dropped = 0

    def open(self) -> None:
        """Open it now, so that a mistake is known at the start.

        Raises:
            OSError: it cannot be opened.
        """
        if self._path != STDOUT:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def add(self, line: bytes) -> None:
        """Append a line, soon."""
        self.written += 1
        if self._bytes + len(line) > BACKLOG_BYTES_MAX:
            self.dropped += 1
            return
        self._lines.append(line)
        self._bytes += len(line)

    def sweep(self) -> None:
        """Have a thread write what has gathered, unless it is still at the last lot."""
        if self._lines and (self._writing is None or self._writing.done()):
            lines, self._lines, self._bytes = self._lines, [], 0
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, lines)

    def _write(self, lines: list[bytes]) -> None:
        data = memoryview(b"".join(lines))
        try:
            if self._path != STDOUT and self._moved():
                os.close(self._fd)
                self.open()
            while data:
                data = data[os.write(self._fd, data) :]
            self._failing = False
        except OSError as error:
            self.dropped += len(lines)
            if not self._failing:
                _log.error("the access log %s loses lines: %s", self._path, error)
            self._failing = True

    def _moved(self) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return True

    async def close(self) -> None:
        """Write what is left, and close."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self.sweep()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._fd > 2:
            os.close(self._fd)
            self._fd = -1
