"""A data directory: made where it can be, and where it cannot, in words that say what to do."""

from __future__ import annotations

import errno
import os

from homeport.registry.store.journal import JournalError


def make_directory(path: str) -> None:
    """Make a data directory, if it is not there.

    Raises:
        JournalError: it cannot be made; the message says why and what to do.
    """
    try:
        os.makedirs(path or ".", exist_ok=True)
    except (OSError, ValueError) as error:  # a ValueError: no system has such a path
        raise JournalError(f"the data directory {path!r} cannot be made: {_advice(error)}") from error


def _advice(error: OSError | ValueError) -> str:
    match error:
        case FileExistsError() | NotADirectoryError():
            return "there is a file of that name; choose another directory"
        case PermissionError():
            return f"this user may not; choose another directory, or change who owns the one it is in ({error})"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "no space is left on that disk; free some, or choose another directory"
        case OSError(errno=errno.EROFS):
            return "that file system is mounted read-only; choose another directory"
        case _:
            return f"{error}; choose another directory"
