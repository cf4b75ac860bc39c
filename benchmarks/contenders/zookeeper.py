"""ZooKeeper, a single server with its data on the disk that is measured, from Debian's jar."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, ZooKeeperCalls
from benchmarks.load.zookeeper import HELLO
from benchmarks.servers import Server, free_port
from benchmarks.stage import Stage

ABOUT: Final = "ZooKeeper, one server, defaults, 512 MiB of heap"
_JAR: Final = Path("/usr/share/java/zookeeper.jar")
_LOADERS: Final = 16
_LOADER_DEPTH: Final = 16


@dataclass(frozen=True)
class ZooKeeper:
    """A running server."""

    server: Server
    port: int


def missing() -> str:
    """Why it cannot take part, or nothing."""
    if not shutil.which("java"):
        return "java is not installed"
    return "" if _JAR.exists() else "zookeeper is not installed"


def serve(stage: Stage, *, tick_ms: int = 2000) -> ZooKeeper:
    """Start it in a folder of its own; sessions last two of its ticks at least, twenty at most."""
    port, folder = free_port(), stage.new_folder("zookeeper")
    settings = (f"tickTime={tick_ms}", f"dataDir={folder}/data", f"clientPort={port}", "clientPortAddress=127.0.0.1")
    (folder / "zoo.cfg").write_text("\n".join([*settings, "maxClientCnxns=0", "admin.enableServer=false", ""]))
    command = ["java", "-Xmx512m", "-cp", f"{folder}:{_JAR}", "org.apache.zookeeper.server.quorum.QuorumPeerMain"]

    def ready() -> bool:
        # Whoever connects before its first snapshot stands breaks one of its threads (3.8.0).
        return (folder / "data" / "version-2" / "snapshot.0").exists() and _has_sessions(port)

    server = stage.server("zookeeper", [*command, str(folder / "zoo.cfg")], ready)
    return ZooKeeper(server, port)


def _has_sessions(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(HELLO)
            return bool(probe.recv(64))
    except OSError:
        return False


def call(stage: Stage, zookeeper: ZooKeeper, bodies: Sequence[bytes]) -> None:
    """Make calls, each once, in no order."""
    plan = ClosedLoop(
        port=zookeeper.port,
        connections=_LOADERS,
        depth=_LOADER_DEPTH,
        calls=ZooKeeperCalls(list(bodies)),
        operations_max=len(bodies),
    )
    driver.closed_loop(plan, stage.generators, ())
