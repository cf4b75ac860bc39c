"""A file that appears under its name only once it is whole: written beside it, synced, renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self


class NewFile:
    """A context manager; leaving it without `finish` removes what was written.

    Args:
        path: its name in the end.
        force: whether it may take the place of another file.
        mode: who may read it; by default only its owner, for copies of a registry hold what people keep in a registry.

    Raises:
        OSError: there is such a file already, or none can be written there.
    """

    def __init__(self, path: Path, *, force: bool, mode: int = 0o600) -> None:
        self._path = path
        self._force = force
        self._expect_free()
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        self.part = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self.part.chmod(mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self.part.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Add to it."""
        self._file.write(data)

    def sync(self) -> None:
        """Have everything written so far on disk, readable at `part`."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Sync it and give it its name.

        Raises:
            OSError: it could not be written, or meanwhile somebody else made a file of that name.
        """
        self.sync()
        self._file.close()
        self._expect_free()
        self.part.replace(self._path)
        if os.name == "posix":  # elsewhere a directory cannot be synced
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name too
            finally:
                os.close(folder)

    def _expect_free(self) -> None:
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"there is no directory {self._path.parent}: make it first")
        if self._path.is_dir():
            raise IsADirectoryError(f"{self._path} is a directory: name a file")
        if self._path.exists() and not self._force:
            raise FileExistsError(f"{self._path} exists already: choose another name, or give --force")
