"""Generator processes: forked by one process that has imported everything, which lives as long as a case.

That one ends when its standard input does, and they all with it: so none outlives whoever drives them, not even when
that is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from benchmarks.load.plan import Plan
from benchmarks.servers import ROOT, MeasurementError, affinity, environment

T = TypeVar("T")

_OPEN_S: Final = 120.0  # for all connections and watches to stand; 10,000 take some seconds
_END_S: Final = 10.0  # for what was killed to be gone; it takes milliseconds


class Generators:
    """Starts generators; each of a load's has a core of its own.

    Args:
        cores: one for each generator of a load, at most.
        log: for what they say beside their outcomes: where a defect of theirs is.
    """

    def __init__(self, cores: tuple[int, ...], log: Path) -> None:
        self.cores = cores
        self._log = log
        self._starting = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, plan: Plan, core: int) -> Generator:
        """A process that is on its way to its plan, on this core.

        Raises:
            MeasurementError: there is none.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._parent(), [b"%d" % core], [theirs.fileno()])
            except OSError:
                ours.close()
                raise MeasurementError(f"no load generator was started: {self._last_words()}") from None
        return Generator(ours, plan)

    @property
    def pid(self) -> int:
        """The process that forks them."""
        assert self._process is not None, "there is none before the first plan"
        return self._process.pid

    def _parent(self) -> socket.socket:
        with self._starting:
            if self._control is None:
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs, affinity(frozenset(self.cores)), self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.load.process"],
                        stdin=theirs.fileno(),
                        stdout=log,
                        stderr=log,
                        cwd=ROOT,
                        env=environment(),
                        start_new_session=True,  # Ctrl-C is for whoever drives it, which ends it
                    )
            return self._control

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End all of them. Idempotent."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()


class Generator:
    """One process, from its plan to its outcome; `kill` it in any case."""

    def __init__(self, wire: socket.socket, plan: Plan) -> None:
        self._socket = wire
        self._wire = wire.makefile("rwb")
        self._pidfd = -1
        data = msgspec.msgpack.encode(plan)
        self._write(b"%d\n%b" % (len(data), data))

    def wait_ready(self) -> None:
        """Until its connections stand.

        Raises:
            MeasurementError: they do not come to.
        """
        self._socket.settimeout(_OPEN_S)
        try:
            self._pidfd = os.pidfd_open(int(self._line()))
            line = self._line()
        except TimeoutError:
            raise MeasurementError(f"a load generator was not ready within {_OPEN_S:.0f} s") from None
        if line != b"ready\n":
            raise MeasurementError(f"a load generator failed: {self._rest(line).decode()}")

    def go(self) -> None:
        """It begins."""
        self._write(b"go\n")

    def ended(self, within_s: float) -> bool:
        """Whether its outcome is there, or it has ended without."""
        return bool(select.select([self._socket], (), (), within_s)[0])

    def outcome(self, kind: type[T], timeout_s: float) -> T:
        """What it did.

        Raises:
            MeasurementError: it failed, or did not end in time.
        """
        self._socket.settimeout(timeout_s)
        try:
            line = self._line()
            rest = self._rest(line)
        except TimeoutError:
            raise MeasurementError(f"a load generator did not end within {timeout_s:.0f} s") from None
        if not line.startswith(b"done "):
            raise MeasurementError(rest.decode())
        return msgspec.msgpack.decode(rest, type=kind)

    def kill(self) -> None:
        """It is gone when this returns."""
        with contextlib.suppress(OSError):  # it ended with unread input
            self._wire.close()
        self._socket.close()
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], (), (), _END_S)
            os.close(self._pidfd)
            self._pidfd = -1

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # why it ended can be read all the same
            self._wire.write(data)
            self._wire.flush()

    def _line(self) -> bytes:
        line = b""
        with contextlib.suppress(ConnectionResetError):  # it ended before it had read all
            line = self._wire.readline()
        if not line:
            raise MeasurementError("a load generator ended without a word")
        return line

    def _rest(self, line: bytes) -> bytes:
        size = int(line.rpartition(b" ")[2])
        rest = self._wire.read(size)
        if len(rest) < size:
            raise MeasurementError("a load generator ended before it had said what it did")
        return rest
