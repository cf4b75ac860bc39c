"""Backups: one file each, with a checksum of what it holds, that is a journal as soon as it is put in the place of one.

A journal is copied by SQLite's own backup, a few pages at a time while it goes on; a state that has no journal is
written as one. Whoever puts a backup in place verifies it first, and gives it a name of its own: it is another history.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from typing import Final, NamedTuple

import apsw

from homeport.client.core.model import KeyValue
from homeport.registry.core.mvcc import FIRST_REVISION, Mvcc
from homeport.registry.core.txn import Change
from homeport.registry.store.journal import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    Journal,
    JournalError,
    explained,
    load,
    sync_directory,
)

_BACKUP_PAGES: Final = 512  # 2 MiB of a backup between two batches: a few milliseconds


class Backup:
    """A copy of a journal being made, a step at a time, while the journal goes on; it holds what the last step saw."""

    def __init__(self, journal: Journal, path: str) -> None:
        self._path = path
        if os.path.exists(path):
            raise JournalError(f"{path} exists already: choose another file")
        try:
            self._copy = apsw.Connection(path)
            self._backup = self._copy.backup("main", journal.connection, "main")
        except apsw.Error as error:
            raise explained(path, error) from error

    def step(self) -> bool:
        """Copy some more; return whether that was all, and the copy complete, sealed and on disk.

        Raises:
            JournalError: the copy failed, and is useless.
        """
        try:
            if not self._backup.step(_BACKUP_PAGES):
                return False
            self._backup.finish()
            _seal(self._copy)
            self._copy.close()
        except apsw.Error as error:
            raise explained(self._path, error) from error
        sync_directory(os.path.dirname(self._path) or ".")
        return True


def install_backup(backup: str, path: str, store_id: str) -> None:
    """Put a verified backup in the place of a closed journal, as a history of its own; a crash leaves one or the other.

    Raises:
        JournalError: it cannot be written; the old journal is untouched.
    """
    staged = f"{path}.restoring"
    try:
        shutil.copyfile(backup, staged)
        db = apsw.Connection(staged)
        with db:
            db.execute("UPDATE meta SET value = ? WHERE name = 'store_id'", (store_id,))
            db.execute("DELETE FROM meta WHERE name = 'checksum'")
        db.close()
        with open(staged, "rb") as copied:
            os.fsync(copied.fileno())
        # A log of the old file must never be taken for the new one's.
        for suffix in ("-wal", "-journal"):
            if os.path.exists(path + suffix):
                os.unlink(path + suffix)
        os.replace(staged, path)
        sync_directory(os.path.dirname(path) or ".")
    except apsw.Error as error:
        raise explained(path, error) from error
    except OSError as error:
        raise JournalError(f"cannot restore to {path}: {error}") from error


class Origin(NamedTuple):
    """Which history a backup is a copy of, and at which revision."""

    store_id: str
    revision: int


def origin(path: str) -> Origin:
    """What a verified backup is a copy of.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            store_id = db.execute("SELECT value FROM meta WHERE name = 'store_id'").get
            last = db.execute("SELECT max(revision) FROM history").get or 0
            compacted = db.execute("SELECT value FROM meta WHERE name = 'compact_revision'").get
            return Origin(store_id, max(last, compacted, FIRST_REVISION))
        finally:
            db.close(True)
    except apsw.Error as error:
        raise explained(path, error) from error


def read_backup(path: str) -> Mvcc:
    """The state that a verified backup holds."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return load(db, path)
    finally:
        db.close(True)


def write_backup(path: str, store_id: str, entries: Sequence[KeyValue], revision: int) -> None:
    """Write a backup of a state that has no journal.

    Raises:
        JournalError: the file cannot be written.
    """
    journal = Journal(path, store_id, synchronous="OFF")
    try:
        by_revision: dict[int, list[Change]] = {}
        for kv in entries:
            by_revision.setdefault(kv.mod_revision, []).append(Change(kv.key, kv, None))
        journal.write([(at, tuple(by_revision[at])) for at in sorted(by_revision)])
        journal.compact(revision)
        _seal(journal.connection)
    except apsw.Error as error:
        raise explained(path, error) from error
    finally:
        journal.close()


def verify_backup(path: str, called: str = "") -> None:
    """Raise unless a file is a whole backup; errors speak of it as `called`, or else by its path.

    Raises:
        JournalError: it is not, and why.
    """
    called = called or path
    try:
        db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            if db.pragma("application_id") != APPLICATION_ID:
                raise JournalError(f"{called} is not a backup of a registry")
            if db.pragma("user_version") > SCHEMA_VERSION:
                raise JournalError(f"{called} was made by a newer release; restore it with that one")
            expected = db.execute("SELECT value FROM meta WHERE name = 'checksum'").get
            if expected is None:
                raise JournalError(f"{called} is a live journal, not a backup: make one with `homeport backup`")
            if _checksum(db) != expected:
                raise JournalError(f"{called} is damaged: its checksum does not match; use another backup")
        finally:
            db.close(True)
    except apsw.NotADBError as error:
        raise JournalError(f"{called} is not a backup of a registry") from error
    except apsw.CorruptError as error:
        raise JournalError(f"{called} is damaged ({error}): use another backup") from error
    except apsw.Error as error:
        raise explained(called, error) from error


def _seal(db: apsw.Connection) -> None:
    """A file of its own: no log beside it, and a checksum of what it holds, by which a restore knows it."""
    db.pragma("journal_mode", "DELETE")
    db.execute("INSERT OR REPLACE INTO meta VALUES('checksum', ?)", (_checksum(db),))


def _checksum(db: apsw.Connection) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in db.execute(
        "SELECT revision, key, value, create_revision, version, lease, prev_revision FROM history"
        " ORDER BY revision, key"
    ):
        for field in row:
            data = field if isinstance(field, bytes) else repr(field).encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    for (value,) in db.execute("SELECT value FROM meta WHERE name IN ('store_id', 'compact_revision') ORDER BY name"):
        digest.update(repr(value).encode())
    return digest.hexdigest()
