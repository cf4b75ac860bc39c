"""Snapshots: the whole store as one file, taken while it goes on, and put in the place of everything.

The file is this registry's backup, the very same that `homeport backup` writes. It goes out and comes in piece by
piece, through a file on disk, never as a whole through memory.
"""

from __future__ import annotations

from typing import Final, Self

from homeport.client.core.messages import BackupOpen, BackupRead, RestoreCommit, RestoreWrite
from homeport.registry.core.limits import PAGE_BYTES
from homeport.registry.fronts.consul.answers import NOTHING, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.operations import Operations
from homeport.registry.peers import Peer
from homeport.registry.store.journal import JournalError

BINARY: Final = "application/octet-stream"


class _Copy:
    """A copy of the store on its way to a client; its file goes when this is closed."""

    def __init__(self, operations: Operations, peer: Peer) -> None:
        self._operations = operations
        self._peer = peer
        self._offset = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = self._operations.backup_read(BackupRead(self._offset), self._peer).data
        if not data:
            raise StopAsyncIteration
        self._offset += len(data)
        return data

    async def aclose(self) -> None:
        self._operations.leave(self._peer)


async def save(call: Call) -> Answer:
    """Copy the store, and send the copy."""
    operations, peer = call.agent.operations, call.agent.peer()
    try:
        opened = await operations.backup_open(BackupOpen(), peer)
    except BaseException:
        operations.leave(peer)
        raise
    return Answer(content_type=BINARY, index=opened.revision, stream=_Copy(operations, peer))


async def restore(call: Call) -> Answer:
    """Take a copy, verify it, and say so; what follows closes every connection, this one too."""
    operations, peer = call.agent.operations, call.agent.peer()
    assert call.pieces is not None
    gathered = bytearray()
    offset = 0
    try:
        async for piece in call.pieces:
            gathered += piece
            if len(gathered) >= PAGE_BYTES:
                operations.restore_write(RestoreWrite(offset, bytes(gathered)), peer)
                offset += len(gathered)
                gathered.clear()
        if gathered or not offset:
            operations.restore_write(RestoreWrite(offset, bytes(gathered)), peer)
        await operations.restore_commit(RestoreCommit(), peer)
    except JournalError as error:
        raise Refusal(400, f"this is not a snapshot of this registry: {error}") from None
    finally:
        operations.leave(peer)
    return NOTHING
