"""The log, live: what this process logs under `homeport`, sent line by line to whoever asked for it.

Nobody's logging is changed by that: lines that the process itself does not make, because its level is higher, are not
seen here either, and the first line says which level it is.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections import deque
from typing import Final, Self

from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import TEXT, Answer, Refusal, crowded
from homeport.registry.fronts.consul.calls import Call

LINES_MAX: Final = 512  # that a slow reader may be behind, as in Consul; what is lost is said
MONITORS_MAX: Final = 16  # each costs every line of the log something
_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "": logging.INFO,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "err": logging.ERROR,
    "error": logging.ERROR,
}
_NAMES: Final = {logging.DEBUG: "DEBUG", logging.INFO: "INFO", logging.WARNING: "WARN", logging.ERROR: "ERROR"}
_log: Final = logging.getLogger("homeport")


class Monitor(logging.Handler):
    """One reader of the log: the answer to a request, in pieces."""

    def __init__(self, agent: Agent, level: int, *, as_json: bool) -> None:
        super().__init__(level)
        self._loop = asyncio.get_running_loop()
        self._streams = agent.streams
        self._as_json = as_json
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._more = asyncio.Event()
        self._ended = False
        said = max(level, _log.getEffectiveLevel())
        self._add(self._line(dt.datetime.now(dt.UTC), said, "homeport.registry.http", f"from {_name(said)} on"))
        self._streams[self.end] = None
        _log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by whichever thread logs."""
        try:
            when = dt.datetime.fromtimestamp(record.created, dt.UTC)
            line = self._line(when, record.levelno, record.name, record.getMessage())
        except Exception:  # noqa: BLE001 - logging's own way with a record that cannot be formatted
            self.handleError(record)
            return
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._add, line)

    def end(self) -> None:
        """No more lines come."""
        self._ended = True
        self._more.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._lines:
            if self._ended:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            self._lines.appendleft(
                self._line(dt.datetime.now(dt.UTC), logging.WARNING, "homeport.registry.http", f"{lost} lines lost")
            )
        taken = b"".join(self._lines)
        self._lines.clear()
        return taken

    async def aclose(self) -> None:
        _log.removeHandler(self)
        self._streams.pop(self.end, None)
        self.close()

    def _add(self, line: bytes) -> None:
        if len(self._lines) >= LINES_MAX:
            self._lost += 1
            return
        self._lines.append(line)
        self._more.set()

    def _line(self, when: dt.datetime, level: int, logger: str, message: str) -> bytes:
        at = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = _name(level)
        if self._as_json:
            line = {"@level": name.lower(), "@message": message, "@module": logger, "@timestamp": at}
            return bodies.encode(line) + b"\n"
        return f"{at} {'[' + name + ']':<7} {logger}: {message}\n".encode()


def monitor(call: Call) -> Answer:
    """Follow the log until the client goes or the front closes."""
    level = _LEVELS.get(call.text("loglevel").lower())
    if level is None:
        known = ", ".join(name for name in _LEVELS if name)
        raise Refusal(400, f"Unknown log level: {call.text('loglevel')}; allowed: {known}")
    if len(call.agent.streams) >= MONITORS_MAX:
        raise crowded("monitors")
    return Answer(content_type=TEXT, stream=Monitor(call.agent, level, as_json=call.flag("logjson")))


def _name(level: int) -> str:
    return _NAMES.get(level) or logging.getLevelName(level)
