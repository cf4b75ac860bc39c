"""Where one case plays: its cores, its generators, and a folder for what its servers write."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.load.generators import Generators
from benchmarks.servers import Cores, Server, divide


class Gate:
    """Where so many wait for one another, each once; who ends before it keeps nobody."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self._fewer = threading.Condition()

    def reach(self) -> None:
        """Wait here until nobody is missing."""
        with self._fewer:
            self._one()
            self._fewer.wait_for(lambda: self._missing <= 0)

    def leave(self) -> None:
        """Come no more, having reached it or not."""
        with self._fewer:
            self._one()

    def _one(self) -> None:
        self._missing -= 1
        self._fewer.notify_all()


class Stage:
    """Where one case plays; its folder goes away unless something failed, its generators in any case."""

    def __init__(self, name: str, *, work_dir: Path | None = None, cores: Cores | None = None) -> None:
        self.cores = cores or divide(sorted(os.sched_getaffinity(0)))
        self.folder = Path(tempfile.mkdtemp(prefix=f"homeport-bench-{name.replace('/', '-')}-", dir=work_dir))
        self.generators = Generators(self.cores.generators, self.folder / "generators.log")
        self.failed = False
        self.gate = Gate(1)  # of this round: one after the other, nobody waits
        self._folders = itertools.count(1)

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
        folder = self.folder / f"{name}-{next(self._folders)}"
        folder.mkdir()
        return folder

    def abreast(self) -> None:
        """In a round that is taken together, wait until all have come this far; else go on."""
        self.gate.reach()

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
