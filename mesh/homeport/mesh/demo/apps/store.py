"""A service's database: one SQLite file that all its instances share, as services share a database anywhere.

Every statement runs on the one thread that owns the connection, so the event loop never waits for the disk or for
another instance's lock. WAL lets readers go on beside a writer, and a process killed in mid-write leaves no trace.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
Statement = tuple[str, Sequence[object]]

BUSY_TIMEOUT_S: Final = 5.0  # an instance that holds the lock for longer is stuck, not slow
_OPEN_RETRY_S: Final = 0.02


class Store:
    """One connection; use as an async context manager."""

    def __init__(self, path: str, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        self._connection = await self._run(lambda: _open(self._path, self._schema))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._connection is not None:
            await self._run(self._connection.close)
        self._thread.shutdown()

    async def read(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return all rows of one query."""
        return await self._run(lambda: self._db.execute(sql, parameters).fetchall())

    async def write(self, statements: Iterable[Statement]) -> None:
        """Run statements as one transaction: all of them or none."""

        def transaction() -> None:
            with self._db as db:
                # Immediate: a lock taken at the first write could find the snapshot stale, which no waiting mends.
                db.execute("BEGIN IMMEDIATE")
                for sql, parameters in statements:
                    db.execute(sql, parameters)

        await self._run(transaction)

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None, "the store is not open"
        return self._connection

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _open(path: str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            # Several instances may create the file at once, and the change to WAL does not wait for its lock.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(schema)
        except sqlite3.OperationalError:
            if time.monotonic() >= give_up:
                connection.close()
                raise
            time.sleep(_OPEN_RETRY_S)
        else:
            return connection
