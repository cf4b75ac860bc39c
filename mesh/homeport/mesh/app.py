"""The process that `homeport run` runs for somebody else, and how it is looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from homeport.mesh.child import Child
from homeport.mesh.one_try import Connection, TryError

LOCALHOST: Final = "127.0.0.1"
WELL_INTERVAL_S: Final = 0.1  # between two looks at an app that is starting
WELL_TIMEOUT_S: Final = 2.0


class App(Child):
    """A command that serves on a port."""

    def __init__(self, command: Sequence[str], port: int, check_path: str, stop_timeout_s: float) -> None:
        super().__init__(command, stop_timeout_s)
        self._port = port
        self._check_path = check_path

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
