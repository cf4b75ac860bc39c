"""A journal that something else has written into is read, or refused with what to do; it never is a defect.

A case is a list of edits of a good file, six bytes each: a place (three bytes), how many bytes (one) and what stands
there then (two, repeated); a count of 255 cuts the file off at its place.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from homeport.registry.core.head import Head
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Delete, Put, Txn
from homeport.registry.store.journal import Journal, JournalError

_EDIT_BYTES = 6
_CUT = 255
_REVISIONS = 40


@functools.cache
def _folder() -> Path:
    """Where cases are written: in memory, if there is such a place."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="homeport-fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def good() -> bytes:
    """A file with some history: puts, deletions, a value longer than a page."""
    path = _folder() / "good.db"
    journal = Journal(str(path), "fuzzed", synchronous="OFF")
    mvcc = Mvcc()
    head = Head(mvcc)
    for number in range(_REVISIONS):
        then = Delete(b"k%d" % (number - 5)) if number % 7 == 6 else Put(b"k%d" % number, b"v" * (number * 200))
        changes = head.decide(Txn(then=(then,))).changes
        journal.write([(head.revision, changes)])
        mvcc.apply(head.revision, changes)
        head.settle(head.revision, changes)
    journal.close()
    return path.read_bytes()


def one(data: bytes) -> None:
    """Run one case."""
    content = bytearray(good())
    for at in range(0, len(data) - _EDIT_BYTES + 1, _EDIT_BYTES):
        place = int.from_bytes(data[at : at + 3], "big") % len(content)
        count = data[at + 3]
        if count == _CUT:
            del content[max(place, 1) :]
        else:
            some = (data[at + 4 : at + 6] * count)[:count]
            content[place : place + count] = some[: max(0, len(content) - place)]
    path = _folder() / "case.db"
    for left in _folder().glob("case.db*"):
        os.unlink(left)
    path.write_bytes(content)
    refused = _read(str(path))
    if refused is not None:
        assert str(path) in refused, "it says which file"


def _read(path: str) -> str | None:
    """Why the file cannot be used; None: it was read."""
    try:
        journal = Journal(path, "fuzzed", synchronous="OFF")
    except JournalError as error:
        return str(error)
    try:
        journal.load()
        journal.revisions_after(Mvcc())
    except JournalError as error:
        return str(error)
    finally:
        journal.close()
    return None
