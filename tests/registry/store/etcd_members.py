"""Real etcd members as processes of their own, that can be killed, paused and started again."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

_READY_S = 60.0


class Etcd:
    """One member."""

    def __init__(
        self, folder: Path, name: str, port: int, peer: int, cluster: str, tls: tuple[Path, Path] | None
    ) -> None:
        self.endpoint = f"127.0.0.1:{port}"
        self._url = f"{'https' if tls else 'http'}://{self.endpoint}"
        self._trusted = ssl.create_default_context(cafile=tls[0]) if tls else None
        self._log = folder / f"{name}.log"
        self._command = [
            "etcd",
            f"--name={name}",
            f"--data-dir={folder / name}",
            f"--listen-client-urls={self._url}",
            f"--advertise-client-urls={self._url}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster={cluster}",
            "--logger=zap",
            "--log-level=error",
            *((f"--cert-file={tls[0]}", f"--key-file={tls[1]}") if tls else ()),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    @contextmanager
    def members(folder: Path, count: int, tls: tuple[Path, Path] | None = None) -> Iterator[list[Etcd]]:
        """A cluster of so many members that has a leader; ended when left. `tls` is a certificate and its key."""
        if shutil.which("etcd") is None:
            pytest.skip("etcd is not installed (Debian's etcd-server)")
        peers = [free_port() for _ in range(count)]
        cluster = ",".join(f"m{at}=http://127.0.0.1:{peer}" for at, peer in enumerate(peers))
        members = [Etcd(folder, f"m{at}", free_port(), peer, cluster, tls) for at, peer in enumerate(peers)]
        try:
            for member in members:
                member.start()
            for member in members:
                member.wait_ready()
            yield members
        finally:
            for member in members:
                member.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        until = time.monotonic() + _READY_S
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=1, context=self._trusted) as answer:
                    if b'"true"' in answer.read():
                        return
            except OSError:
                pass
            assert time.monotonic() < until, f"etcd did not start: {self._log.read_text()[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; `start` brings it back with its data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
