"""Three replicas of a registry over one etcd, all processes of their own, and what etcd says that it has done."""

from __future__ import annotations

import importlib.util
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contenders import etcd
from benchmarks.proc import cpu_s
from benchmarks.servers import Server, accepts, free_port
from benchmarks.stage import Stage
from homeport.registry.store.backups import read_backup

REPLICAS: Final = 3
_SUMS: Final = {  # by our name: what etcd 3.4 calls it, and later ones
    "received": ("etcd_network_client_grpc_received_bytes_total",),
    "sent": ("etcd_network_client_grpc_sent_bytes_total",),
    "puts": ("etcd_debugging_mvcc_put_total", "etcd_mvcc_put_total"),
    "deletes": ("etcd_debugging_mvcc_delete_total", "etcd_mvcc_delete_total"),
    "lease_renewals": ("etcd_debugging_lease_renewed_total",),
}


class EtcdTotals(msgspec.Struct, frozen=True):
    """What etcd has done since it started: bytes from and to its clients, keys put and deleted, its leases renewed."""

    received: float
    sent: float
    puts: float
    deletes: float
    lease_renewals: float


def totals(exposition: str) -> EtcdTotals:
    """Read etcd's page for Prometheus; what a version does not have counts as 0."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            plain = name.partition("{")[0]
            found[plain] = found.get(plain, 0.0) + float(value)
    return EtcdTotals(**{ours: max(found.get(name, 0.0) for name in names) for ours, names in _SUMS.items()})


def missing() -> str:
    """Why it cannot take part, or nothing."""
    if etcd.missing():
        return etcd.missing()
    return "" if importlib.util.find_spec("aetcd") else "aetcd is not installed (homeport[etcd])"


class Cluster:
    """A running one. Replicas may use every core: they share them with etcd and with the load."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage = stage
        self._stack = stack
        self._cores = stage.cores.server | set(stage.cores.generators) | stage.cores.upstream
        self.etcd = etcd.serve(stage, stage.new_folder("etcd"), self._cores)
        stack.enter_context(self.etcd.server)
        self.ports = [free_port() for _ in range(REPLICAS)]
        self.addresses = [f"127.0.0.1:{port}" for port in self.ports]
        self.replicas = [self._start(at) for at in range(REPLICAS)]

    def _start(self, at: int) -> Server:
        store = f"etcd://127.0.0.1:{self.etcd.port}/benchmark"
        command = [sys.executable, "-m", "homeport.mesh.cli", "serve", "--rpc", self.addresses[at], "--store", store]
        command += ["--http", "off", "--dns", "off", "--node", "benchmark"]
        return self._stack.enter_context(
            self._stage.server(f"replica-{at}", command, accepts(self.ports[at]), self._cores)
        )

    def start_again(self, at: int) -> None:
        """Start a replica in the place of one that was killed."""
        self.replicas[at] = self._start(at)

    def site(self, number: int, plan: str) -> Server:
        """Start a process of the load; its log says how it stands."""
        command = [sys.executable, "-m", "benchmarks.load.site", plan]
        log = self._stage.folder / f"site-{number}.log"
        return self._stack.enter_context(self._stage.server(log.stem, command, log.exists, self._cores))

    def totals(self) -> EtcdTotals:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.etcd.port}/metrics", timeout=30) as answer:
            return totals(answer.read().decode())

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: all replicas', and etcd's."""
        return cpu_s([one.pid for one in self.replicas]), cpu_s([self.etcd.server.pid])

    def new_file(self, name: str) -> Path:
        return self._stage.folder / name


def mirror_hash(backup: Path) -> str:
    """A digest of what a replica holds, from a backup of it."""
    return read_backup(str(backup)).hash()


@contextmanager
def running(stage: Stage) -> Iterator[Cluster]:
    """Start one; stopped when left."""
    with ExitStack() as stack:
        yield Cluster(stage, stack)
