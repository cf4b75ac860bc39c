"""Backups on their way to a client and back: whole files, read and written in pieces over a peer's connection.

A peer has at most one copy being read and one being handed over, in files of its own that go when it goes.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from typing import Final

from homeport.client.core.errors import InvalidArgument, NotFound
from homeport.registry.core.limits import PAGE_BYTES
from homeport.registry.peers import Peer
from homeport.registry.store.backups import verify_backup
from homeport.registry.store.contract import Store

RESTORE_BYTES_MAX: Final = 16 * 1024**3  # ten times a million keys of 1 KiB: a full disk must not be one call away
_SENT: Final = "what was sent"  # its path here means nothing to whoever sent it


class Transfers:
    """The files under way, by peer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading: dict[Peer, str] = {}
        self._writing: dict[Peer, str] = {}

    async def open(self, peer: Peer) -> None:
        """Make a copy of the store for a peer, to be read."""
        self._drop(self._reading, peer)
        folder = tempfile.mkdtemp(prefix="homeport-backup-")
        path = os.path.join(folder, "backup")
        self._reading[peer] = path
        try:
            await self._store.backup(path)
        except BaseException:
            self._drop(self._reading, peer)
            raise
        if peer not in self._reading:
            raise NotFound("the connection that asked for the copy is gone")

    def size(self, peer: Peer) -> int:
        """The size of a peer's copy in bytes."""
        return os.path.getsize(self._reading[peer])

    def read(self, peer: Peer, offset: int) -> bytes:
        """A piece of the peer's copy; at its end, drop it and return nothing."""
        path = self._reading.get(peer)
        if path is None:
            raise NotFound("there is no backup open on this connection: call backup_open first")
        data = _read(path, offset)
        if not data:
            self._drop(self._reading, peer)
        return data

    def write(self, peer: Peer, offset: int, data: bytes) -> None:
        """Take a piece of the file that the peer hands over."""
        if offset == 0:
            self._drop(self._writing, peer)
            folder = tempfile.mkdtemp(prefix="homeport-restore-")
            self._writing[peer] = os.path.join(folder, "backup")
        path = self._writing.get(peer)
        size = os.path.getsize(path) if path is not None and os.path.exists(path) else 0
        if path is None or offset != size:
            raise InvalidArgument(f"offset is {offset}; allowed: {size}, or 0 to begin anew", field="offset")
        if size + len(data) > RESTORE_BYTES_MAX:
            raise InvalidArgument(f"the backup is longer than {RESTORE_BYTES_MAX} bytes", field="data")
        with open(path, "ab") as file:
            file.write(data)

    async def verified(self, peer: Peer) -> str:
        """The path of what the peer handed over, once it has been verified; whoever asked must remove its folder.

        Raises:
            JournalError: it is not a whole backup.
        """
        path = self._writing.get(peer)
        if path is None:
            raise NotFound("nothing was handed over on this connection: call restore_write first")
        await asyncio.get_running_loop().run_in_executor(None, verify_backup, path, _SENT)
        if self._writing.pop(peer, None) is None:
            raise NotFound("the connection that handed the backup over is gone")
        return path

    def leave(self, peer: Peer) -> None:
        """The peer is gone."""
        self._drop(self._reading, peer)
        self._drop(self._writing, peer)

    def _drop(self, paths: dict[Peer, str], peer: Peer) -> None:
        path = paths.pop(peer, None)
        if path is not None:
            remove(path)


def remove(path: str) -> None:
    """Remove a transfer's file and its folder."""
    folder = os.path.dirname(path)
    with suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _read(path: str, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PAGE_BYTES)
