"""etcd, a single member with its data on the disk that is measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, GrpcCalls
from benchmarks.servers import Server, answers, free_port
from benchmarks.stage import Stage

ABOUT: Final = "etcd, one member, defaults, every write synced"
_LOADERS: Final = 4
_LOADER_DEPTH: Final = 32


@dataclass(frozen=True)
class Etcd:
    """A running etcd that has a leader."""

    server: Server
    port: int


def missing() -> str:
    """Why it cannot take part, or nothing."""
    return "" if shutil.which("etcd") else "etcd is not installed"


def serve(stage: Stage, data_dir: Path, cores: frozenset[int] | None = None) -> Etcd:
    """Start it on `data_dir`; its Go runtime finds out itself how many cores it has: one, without `cores`."""
    port, peer = free_port(), f"http://127.0.0.1:{free_port()}"
    client = f"http://127.0.0.1:{port}"
    command = [
        "etcd",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--logger=zap",
        "--log-level=error",
    ]
    server = stage.server("etcd", command, answers(f"{client}/health"), cores)
    return Etcd(server, port)


def call(stage: Stage, etcd: Etcd, path: str, messages: Sequence[bytes]) -> None:
    """Make calls with these messages, each once."""
    plan = ClosedLoop(
        port=etcd.port,
        connections=_LOADERS,
        depth=_LOADER_DEPTH,
        calls=GrpcCalls(path, list(messages)),
        operations_max=len(messages),
    )
    driver.closed_loop(plan, stage.generators, ())
