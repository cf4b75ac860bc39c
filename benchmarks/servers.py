"""Servers as real processes: pinned to their core, on free ports, always stopped, with their logs kept on failure."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from benchmarks import proc

ROOT: Final = Path(__file__).parents[1]
_READY_S: Final = 30.0  # a cold etcd on a busy machine takes three
_STOP_S: Final = 10.0  # for a graceful end; then it is killed
_POLL_S: Final = 0.01
_given: Final[deque[int]] = deque(maxlen=256)  # ports, whose servers may not listen yet
_giving: Final = threading.Lock()


class MeasurementError(Exception):
    """A measurement did not come about, or cannot be trusted; the message says why."""


@dataclass(frozen=True)
class Cores:
    """Which cores do what. Upstreams have one of their own where there is a third, else they share the generators'."""

    server: frozenset[int]
    generators: tuple[int, ...]
    upstream: frozenset[int]

    @property
    def shared(self) -> bool:
        """Whether there is only one core for everything."""
        return self.server == frozenset(self.generators)


def divide(available: Sequence[int]) -> Cores:
    """One core for the server, one for upstreams if there are three, the rest for generators."""
    first, *others = sorted(available)
    if not others:
        return Cores(frozenset({first}), (first,), frozenset({first}))
    if len(others) == 1:
        return Cores(frozenset({first}), tuple(others), frozenset(others))
    return Cores(frozenset({first}), tuple(others[1:]), frozenset(others[:1]))


@contextlib.contextmanager
def affinity(cores: frozenset[int]) -> Iterator[None]:
    """Processes that this thread starts within run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A process in a session of its own, with its output in a log."""

    def __init__(self, command: Sequence[str], log: Path, cores: frozenset[int]) -> None:
        self.log = log
        self.ready_s = 0.0  # from its start until it was ready
        self.started_at = time.perf_counter()
        with affinity(cores), log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._companions: list[Server] = []

    def with_it(self, companion: Server) -> None:
        """Stop another server, too, once this one has stopped: one that it needs."""
        self._companions.append(companion)

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`; `ready_s` then says how long that took.

        Raises:
            MeasurementError: it ended, or was not ready in time; with the end of its log.
        """
        deadline = self.started_at + _READY_S
        while not ready():
            if self._process.poll() is not None:
                raise MeasurementError(f"{self.log.stem} ended with {self._process.returncode}: {self.last_words()}")
            if time.perf_counter() > deadline:
                raise MeasurementError(f"{self.log.stem} was not ready within {_READY_S:.0f} s: {self.last_words()}")
            time.sleep(_POLL_S)
        self.ready_s = time.perf_counter() - self.started_at

    def last_words(self) -> str:
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-3:])

    @property
    def pids(self) -> list[int]:
        """Its own process id, and those of the servers that it needs."""
        return [self.pid, *(pid for companion in self._companions for pid in companion.pids)]

    @property
    def rss_bytes(self) -> int:
        return proc.rss_bytes(self.pid)

    def kill(self) -> None:
        """End it at once, without a word."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it and everything it started. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # whatever it left behind; its session is its own
        for companion in self._companions:
            companion.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def environment() -> dict[str, str]:
    """The environment of everything that is measured: ours, without settings that would change Homeport.

    One of them has Python compile a source tree at each start, which no installed program has to.
    """
    changing = ("HOMEPORT_", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
    return env | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now, and that nobody was given lately, in any thread."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        with _giving:
            if port not in _given:
                _given.append(port)
                return port


def accepts(port: int) -> Callable[[], bool]:
    """Whether somebody accepts connections on a port of loopback."""

    def ready() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ready


def answers(url: str, *, host: str = "") -> Callable[[], bool]:
    """Whether a GET is answered with a 2xx."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names

    def ready() -> bool:
        request = urllib.request.Request(url, headers={"Host": host} if host else {})
        try:
            with opener.open(request, timeout=2) as answer:
                return 200 <= int(answer.status) < 300
        except (urllib.error.URLError, OSError):
            return False

    return ready
