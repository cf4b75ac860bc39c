"""A disk that remembers everything and fails on demand: an SQLite VFS over ordinary files.

Every change goes to a real file, so that the journal's code sees an ordinary file system, and into `log`, from which
`power.py` rebuilds what would be left after a power cut. A sync is only logged: the promise is the test's to check,
not the machine's to keep. A `Fault` makes chosen operations fail, from the n-th on, until it is lifted.

What a sync guarantees here: an `xSync` makes durable what was written to that file before it, and nothing else; names
made, or removed, in a directory become durable when the directory is synced, which SQLite does at the first sync of a
journal or log that it opened for creation, and when it deletes a file asking for it. A sync that fails makes durable
what it likes, and the kernel takes all of it for written: no later sync of that file repeats it (Linux since 4.13).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal, NamedTuple, Self

import apsw

Kind = Literal["create", "write", "truncate", "sync", "sync failed", "sync directory", "delete"]
Call = Literal["open", "read", "write", "truncate", "sync", "delete"]
Error = Literal["full", "io"]

_LOGS: Final = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
_IO_ERRORS: Final[dict[Call, int]] = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "delete": apsw.SQLITE_IOERR_DELETE,
}
_numbers = count(1)


class Operation(NamedTuple):
    """One change of the disk; `file` numbers a file, whatever its name is now or will be."""

    kind: Kind
    file: int = 0
    offset: int = 0  # of a write; of a truncation, the new size
    data: bytes = b""
    name: str = ""  # of a file made or deleted


@dataclass
class Fault:
    """Calls of these kinds fail, after some that still succeed, until the fault is lifted.

    `short`: a write that fails leaves a prefix of its data behind.
    """

    calls: frozenset[Call]
    error: Error = "io"
    short: bool = False
    skip: int = 0
    hits: int = 0


class Disk(apsw.VFS):
    """A recording VFS; use as a context manager, and pass `name` to SQLite. One thread at a time."""

    def __init__(self) -> None:
        self.name = f"homeport-disk-{next(_numbers)}"
        self.log: list[Operation] = []
        self.fault: Fault | None = None
        self._files: dict[str, int] = {}  # by path, as everyone sees it now
        self._next = count(1)
        super().__init__(self.name, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.unregister()

    @property
    def position(self) -> int:
        """How many changes there were so far."""
        return len(self.log)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        """Have the fault while in the context."""
        self.fault = fault
        try:
            yield fault
        finally:
            self.fault = None

    def adopt(self, directory: str) -> None:
        """Take what is in a directory as on disk already."""
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            with open(entry.path, "rb") as opened:
                content = opened.read()
            file = self.created(entry.path)
            self.log += (Operation("write", file, 0, content), Operation("sync", file))
        self.log.append(Operation("sync directory"))

    def number(self, path: str) -> int:
        return self._files.get(path, 0)

    def created(self, path: str) -> int:
        file = self._files[path] = next(self._next)
        self.log.append(Operation("create", file, name=path))
        return file

    def expect_working(self, call: Call) -> None:
        """Raise if this call is to fail."""
        fault = self.fault
        if fault is None or call not in fault.calls:
            return
        if fault.skip:
            fault.skip -= 1
            return
        fault.hits += 1
        if call == "open":
            raise apsw.CantOpenError("the disk of this test fails")
        if fault.error == "full" and call in ("write", "truncate"):
            raise apsw.FullError("the disk of this test is full")
        error = apsw.IOError("the disk of this test fails")
        vars(error)["extendedresult"] = _IO_ERRORS[call]  # how apsw takes the finer code of an error of ours
        raise error

    # --- what SQLite calls --------------------------------------------------------------------------------------

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None:
            return super().xOpen(name, flags)  # a scratch file, nothing that is to last
        self.expect_working("open")
        made = not os.path.exists(path)
        opened = _File(self, path, name, flags)
        if made:
            self.created(path)
        opened.file = self._files[path]
        return opened

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.expect_working("delete")
        super().xDelete(filename, False)
        del self._files[filename]
        self.log.append(Operation("delete", name=filename))
        if syncdir:
            self.log.append(Operation("sync directory"))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        self._syncs_directory = bool(flags[0] & _LOGS and flags[0] & apsw.SQLITE_OPEN_CREATE)
        self.file = 0
        super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.expect_working("read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:  # noqa: N802
        written = bytes(data)
        try:
            self._disk.expect_working("write")
        except apsw.Error:
            fault = self._disk.fault
            if fault is not None and fault.short:
                self._write(written[: (offset + fault.hits * 37) % len(written)], offset)
            raise
        self._write(written, offset)

    def _write(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.log.append(Operation("write", self.file, offset, data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.expect_working("truncate")
        super().xTruncate(newsize)
        self._disk.log.append(Operation("truncate", self.file, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        try:
            self._disk.expect_working("sync")
        except apsw.Error:
            self._disk.log.append(Operation("sync failed", self.file))
            raise
        self._disk.log.append(Operation("sync", self.file))
        if self._syncs_directory:
            self._syncs_directory = False
            self._disk.log.append(Operation("sync directory"))
