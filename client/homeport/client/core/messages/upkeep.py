"""The registry itself: its numbers, copies of it, and putting one back."""

from __future__ import annotations

from homeport.client.core.messages.base import Answer, Done, Request


class StatsReport(Answer, frozen=True, omit_defaults=True):
    """Numbers about the store, by name; all integers, units in the names."""

    store_id: str
    numbers: dict[str, int]


class Stats(Request[StatsReport], frozen=True, omit_defaults=True):
    method = "stats"


class BackupOpened(Answer, frozen=True, omit_defaults=True):
    """A copy of `size` bytes is ready to be read; `revision` is what it holds."""

    size: int
    revision: int


class BackupOpen(Request[BackupOpened], frozen=True, omit_defaults=True):
    """Copy the whole store, consistent at one revision, to be read over this connection; one at a time."""

    method = "backup_open"


class BackupChunk(Answer, frozen=True, omit_defaults=True):
    """Bytes of a copy."""

    data: bytes


class BackupRead(Request[BackupChunk], frozen=True, omit_defaults=True):
    """Read the copy from `offset` on, up to a page; empty at its end, which also drops it."""

    method = "backup_read"
    offset: int


class RestoreWrite(Request[Done], frozen=True, omit_defaults=True):
    """Hand over a piece of a backup at `offset`; 0 begins anew."""

    method = "restore_write"
    offset: int
    data: bytes


class RestoreCommit(Request[Done], frozen=True, omit_defaults=True):
    """Verify what was handed over, and put it in the place of everything the registry holds.

    The answer comes once it is verified; then every connection is closed, and the registry comes back under a new
    `store_id`.
    """

    method = "restore_commit"
