"""Where one case plays: its cores, its generators, and a folder for what its servers write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.load.generators import Generators
from benchmarks.servers import Cores, Server, divide


class Stage:
    """Where one case plays; its folder goes away unless something failed, its generators in any case."""

    def __init__(self, name: str, *, work_dir: Path | None = None, cores: Cores | None = None) -> None:
        self.cores = cores or divide(sorted(os.sched_getaffinity(0)))
        self.folder = Path(tempfile.mkdtemp(prefix=f"homeport-bench-{name.replace('/', '-')}-", dir=work_dir))
        self.generators = Generators(self.cores.generators, self.folder / "generators.log")
        self.failed = False
        self._folders = 0

    def server(
        self, name: str, command: Sequence[str], ready: Callable[[], bool], cores: frozenset[int] | None = None
    ) -> Server:
        """Start a server on the servers' core (or `cores`) and return it once it is ready; stop it by leaving it.

        Raises:
            MeasurementError: it does not start.
        """
        server = Server(command, self.folder / f"{name}.log", cores or self.cores.server)
        try:
            server.wait_ready(ready)
        except BaseException:
            server.stop()
            raise
        return server

    def new_folder(self, name: str) -> Path:
        """A new empty folder on the disk that is measured."""
        self._folders += 1
        folder = self.folder / f"{name}-{self._folders}"
        folder.mkdir()
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.generators.close()
        if isinstance(error, Exception):
            error.add_note(f"logs of servers: {self.folder}")
        elif not self.failed:  # also when somebody stops the run
            shutil.rmtree(self.folder)
