"""The journal: the store's whole history since the last compaction, in one SQLite file.

    history(revision, key) -> value (NULL: deleted), create_revision, version, lease, prev_revision
    meta(name)             -> store_id, compact_revision

The file *is* the state: recovery is reading it in order, and any SQLite tool can look into it. A batch of revisions is
one INSERT of many rows, so that one commit, and one fsync, and hardly any holding of the interpreter's lock, serves
them all. `prev_revision` names the row that a row supersedes, which lets compaction be two statements.

WAL mode with `synchronous=FULL`: a commit returns when its frames are on disk. The file is locked exclusively while it
is open, so a second process is refused, and no shared memory is needed. Everything here blocks; the store calls it
from one worker, in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from time import perf_counter
from typing import Any, Final, Literal

import apsw

from homeport.client.core.errors import HomeportError
from homeport.client.core.model import KeyValue
from homeport.registry.core.mvcc import FIRST_REVISION, Mvcc
from homeport.registry.core.txn import Change

FILE_NAME: Final = "registry.db"
APPLICATION_ID: Final = 0x484F4D45  # "HOME", in the file's header: whose file it is
SCHEMA_VERSION: Final = 1

# Rows of one INSERT: powers of two, so that any batch is a handful of prepared statements. The largest stays below
# SQLite's 32,766 parameters, at seven a row.
_STRIDES: Final = tuple(2**power for power in range(12, -1, -1))
CHECKPOINT_PAGES: Final = 4096  # 16 MiB of log: a second of fsync at worst when it is copied back
_PAGE_BYTES: Final = 4096  # SQLite's default
_COMMIT_PAGES: Final = 2  # that a commit touches at least: a leaf and its parent
_ROW_BYTES: Final = 40  # of a row besides its key and value
_CACHE_STATEMENTS: Final = 64
_REWRITE_BYTES: Final = 65_536  # of a log at once: SQLite's files take less than 128 KiB in one call

_SCHEMA: Final = f"""
    CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE history(
        revision INTEGER NOT NULL,
        key BLOB NOT NULL,
        value BLOB,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER NOT NULL,
        prev_revision INTEGER NOT NULL,
        PRIMARY KEY(revision, key)
    ) WITHOUT ROWID;
    PRAGMA application_id={APPLICATION_ID};
    PRAGMA user_version={SCHEMA_VERSION};
"""

Synchronous = Literal["FULL", "NORMAL", "OFF"]
Revision = tuple[int, tuple[Change, ...]]


class JournalError(HomeportError):
    """The journal cannot be opened or used; the message says why and what to do."""

    code = "journal"


class Journal:
    """An open journal file.

    Args:
        path: the file, made if it is not there (its folder must be).
        store_id: the name of the history, if the file is made.
        vfs: the name of a registered SQLite VFS; default: the system's.
        synchronous: anything but FULL gives up the promise that a commit is on disk.

    Attributes:
        connection: the open file, for copies of it (`backups.py`).
        log_pages: how much was written since the last checkpoint, about.
        commit_s: how long the last commit took, fsync included.

    Raises:
        JournalError: the file is another program's, of a newer release, corrupt, locked, or cannot be written.
    """

    def __init__(self, path: str, store_id: str, *, vfs: str | None = None, synchronous: Synchronous = "FULL") -> None:
        self.path = path
        self.log_pages = 0
        self.commit_s = 0.0
        self._vfs = vfs
        self._synchronous = synchronous
        try:
            self.connection = apsw.Connection(path, vfs=vfs, statementcachesize=_CACHE_STATEMENTS)
        except apsw.Error as error:
            raise explained(path, error) from error
        try:
            self._prepare(store_id)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise JournalError(
                    f"{path} cannot be used: {error}; put that right, or choose another data directory"
                ) from error
            if isinstance(error, apsw.Error):
                raise explained(path, error) from error
            if isinstance(error, ValueError | TypeError):  # a text that is not UTF-8, a number that is none
                raise _corrupt(path, error) from error
            raise

    def _prepare(self, store_id: str) -> None:
        db = self.connection
        db.pragma("locking_mode", "EXCLUSIVE")
        tables = db.execute("SELECT count(*) FROM sqlite_schema").get
        application = db.pragma("application_id")
        if tables and application != APPLICATION_ID:
            raise JournalError(f"{self.path} is a database of another program: choose another data directory")
        version = db.pragma("user_version")
        if tables and version > SCHEMA_VERSION:
            raise JournalError(
                f"{self.path} was written by a newer release (schema {version}, this one knows {SCHEMA_VERSION}): "
                "run that release, or restore a backup made by this one"
            )
        self._rewrite_log()
        if db.pragma("journal_mode", "WAL") != "wal":
            raise JournalError(f"{self.path} cannot be journaled on this file system")
        db.pragma("synchronous", self._synchronous)
        db.pragma("wal_autocheckpoint", 0)
        if not tables:
            with db:
                db.execute(_SCHEMA)
                db.execute("INSERT INTO meta VALUES('store_id', ?), ('compact_revision', 0)", (store_id,))
            sync_directory(os.path.dirname(self.path) or ".")
        # Versions before SCHEMA_VERSION would be migrated here, one step at a time; there are none yet.
        db.execute("UPDATE meta SET value = value WHERE name = 'store_id'")  # fails here if nothing can be written
        self.store_id: str = db.execute("SELECT value FROM meta WHERE name = 'store_id'").get
        self.compact_revision: int = db.execute("SELECT value FROM meta WHERE name = 'compact_revision'").get
        if not isinstance(self.store_id, str) or not isinstance(self.compact_revision, int):
            raise TypeError("its name, or how far it was compacted, cannot be read")

    def _rewrite_log(self) -> None:
        """Put the log that was found on disk: it may be in the kernel's memory alone.

        When a sync fails the kernel takes the pages for written all the same, and no later sync tries them again
        (Linux since 4.13). What is read back from them would be history now, and gone after a power cut, with all that
        was written behind it. Written once more, they are the next sync's again. The lock is held already.
        """
        path = f"{self.path}-wal"
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if not size:
            return
        log = apsw.VFSFile(self._vfs or "", path, [apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_WAL, 0])
        try:
            for offset in range(0, size, _REWRITE_BYTES):
                log.xWrite(log.xRead(min(_REWRITE_BYTES, size - offset), offset), offset)
            log.xSync(apsw.SQLITE_SYNC_NORMAL)
        finally:
            log.xClose()

    def close(self) -> None:
        """Close, copying the log back into the file. Idempotent; never raises for a disk that fails."""
        for force in (False, True):
            with suppress(apsw.Error):
                self.connection.close(force)

    # --- reading ------------------------------------------------------------------------------------------------

    def load(self) -> Mvcc:
        """The state and its history.

        Raises:
            JournalError: the file is corrupt.
        """
        return load(self.connection, self.path)

    def revisions_after(self, mvcc: Mvcc) -> list[Revision]:
        """What the file holds beyond a state.

        Raises:
            JournalError: the file is corrupt.
        """
        try:
            return list(_revisions_after(self.connection, mvcc))
        except apsw.Error as error:
            raise explained(self.path, error) from error

    # --- writing ------------------------------------------------------------------------------------------------

    def write(self, batch: Sequence[Revision]) -> None:
        """Make revisions durable, all of them or none.

        Raises:
            JournalError: nobody knows whether they are; close this journal, open it again and look.
        """
        values: list[Any] = []
        rows = 0
        for revision, changes in batch:
            for key, kv, prev in ((change.key, change.kv, change.prev) for change in changes):
                before = prev.mod_revision if prev is not None else 0
                if kv is None:
                    values += (revision, key, None, 0, 0, 0, before)
                else:
                    values += (revision, key, kv.value, kv.create_revision, kv.version, kv.lease, before)
                rows += 1
        started = perf_counter()
        try:
            if rows in _STRIDES:
                self.connection.execute(_insert(rows), values)  # a transaction of its own
            else:
                with self.connection:
                    self._insert(values, rows)
        except apsw.Error as error:
            raise explained(self.path, error) from error
        self.commit_s = perf_counter() - started
        size = sum(len(value) for value in values if isinstance(value, bytes)) + rows * _ROW_BYTES
        self.log_pages += _COMMIT_PAGES + size // _PAGE_BYTES

    def _insert(self, values: list[Any], rows: int) -> None:
        remaining = iter(values)
        for stride in _STRIDES:
            while rows >= stride:
                self.connection.execute(_insert(stride), tuple(islice(remaining, 7 * stride)))
                rows -= stride

    def compact(self, revision: int) -> None:
        """Forget what no read at `revision` or later can see.

        Raises:
            JournalError: nothing was forgotten; close this journal and open it again.
        """
        try:
            with self.connection:
                self.connection.execute(
                    "DELETE FROM history WHERE (revision, key) IN (SELECT prev_revision, key FROM history"
                    " WHERE revision > ? AND revision <= ? AND prev_revision > 0)",
                    (self.compact_revision, revision),
                )
                self.connection.execute(
                    "DELETE FROM history WHERE revision > ? AND revision <= ? AND value IS NULL",
                    (self.compact_revision, revision),
                )
                self.connection.execute("UPDATE meta SET value = ? WHERE name = 'compact_revision'", (revision,))
        except apsw.Error as error:
            raise explained(self.path, error) from error
        self.compact_revision = revision

    def checkpoint(self) -> None:
        """Copy the log back into the file, best while nobody waits and `log_pages` is past `CHECKPOINT_PAGES`.

        Raises:
            JournalError: what was durable still is; close this journal and open it again.
        """
        try:
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            raise explained(self.path, error) from error
        self.log_pages = 0


def load(db: apsw.Connection, path: str) -> Mvcc:
    """Read a journal's state and history.

    Raises:
        JournalError: the file is corrupt.
    """
    mvcc = Mvcc()
    try:
        compact_revision = db.execute("SELECT value FROM meta WHERE name = 'compact_revision'").get
        rows = db.execute(
            "SELECT key, value, create_revision, revision, version, lease FROM history"
            " WHERE revision <= ? AND value IS NOT NULL ORDER BY revision, key",
            (compact_revision,),
        )
        mvcc.load((KeyValue(*row) for row in rows), max(compact_revision, FIRST_REVISION), compact_revision)
        for revision, changes in _revisions_after(db, mvcc):
            mvcc.apply(revision, changes)
    except apsw.Error as error:
        raise explained(path, error) from error
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, error) from error
    return mvcc


def _revisions_after(db: apsw.Connection, mvcc: Mvcc) -> Iterator[Revision]:
    """What a journal holds beyond a state; `prev` is right if each revision is applied before the next is taken."""
    rows = db.execute(
        "SELECT revision, key, value, create_revision, version, lease FROM history"
        " WHERE revision > ? ORDER BY revision, key",
        (mvcc.revision,),
    )
    changes: list[Change] = []
    current = 0
    for revision, key, value, create_revision, version, lease in rows:
        if revision != current and changes:
            yield current, tuple(changes)
            changes = []
        current = revision
        kv = None if value is None else KeyValue(key, value, create_revision, revision, version, lease)
        changes.append(Change(key, kv, mvcc.get(key)))
    if changes:
        yield current, tuple(changes)


def _insert(rows: int) -> str:
    found = _INSERTS.get(rows)
    if found is None:
        found = _INSERTS[rows] = "INSERT INTO history VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * rows)
    return found


_INSERTS: Final[dict[int, str]] = {}


def sync_directory(path: str) -> None:
    """Make new names in a directory durable, where the system can."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _corrupt(path: str, error: Exception) -> JournalError:
    return JournalError(
        f"{path} is corrupt ({str(error) or type(error).__name__}): restore a backup, or move it away to start empty"
    )


def explained(path: str, error: apsw.Error) -> JournalError:
    """An SQLite error in words that say what to do."""
    match error:
        case apsw.BusyError() | apsw.LockedError():
            return JournalError(f"{path} is in use by another process: stop that one, or choose another data directory")
        case apsw.CorruptError() | apsw.NotADBError():
            return _corrupt(path, error)
        case apsw.FullError():
            return JournalError(f"no space left for {path}: free some, and writing goes on by itself")
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            return JournalError(f"{path} cannot be written: check the permissions of file and folder ({error})")
        case _:
            return JournalError(f"{path} failed: {error}")
