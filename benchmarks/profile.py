"""Where the time goes: flame graphs of the three hottest paths, `python -m benchmarks.profile`.

py-spy looks at the server a few hundred times a second while it is under full load, and draws its Python frames into
docs/benchmarks/profile-NAME.svg. Then it looks again with native frames: what each file takes, with the interpreter's
work for it, and what the kernel takes, is put into docs/profile.md between two comments.

It looks from the server's own core. From another one the word to stop arrives when the server next enters the kernel,
on a virtual machine at least, and then nine looks of ten meet it in a system call.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.contenders import homeport, proxies
from benchmarks.drawing import PROFILE
from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.machine import program_path
from benchmarks.servers import ROOT, affinity
from benchmarks.stage import Stage
from benchmarks.suite.puts import entries
from homeport.client.core.messages import KvPut, Resolve
from homeport.client.core.model import Instance

_PAGE: Final = ROOT / "docs" / "profile.md"
_PICTURES: Final = ROOT / "docs" / "benchmarks"
_BEGIN: Final = "<!-- shares: begin -->"
_END: Final = "<!-- shares: end -->"
_RATE: Final = 500  # looks a second
_LOOK_S: Final = 10
_LOAD_S: Final = _LOOK_S + 4  # until the profiler has come and gone
_SERVICES: Final = 1000
_ROWS: Final = 12  # of a table; the rest is one more
_NEAR: Final = 4  # frames from the top, in which waiting shows
_WAITS: Final = ("epoll_pwait", "epoll_wait", "PyThread_acquire_lock", "pthread_cond")
_CALLS: Final = ("send", "recv", "read", "write", "writev", "fdatasync", "fsync")

# Starts a server; yields its process id and what puts it under load for `_LOAD_S`.
Loaded = Callable[[Stage], AbstractContextManager[tuple[int, Callable[[], object]]]]


@dataclass(frozen=True)
class HotPath:
    """A way through a server that is taken very often."""

    name: str
    what: str
    start: Loaded


@contextmanager
def _proxied(stage: Stage) -> Iterator[tuple[int, Callable[[], object]]]:
    with ExitStack() as running:
        upstream, ports = proxies.upstream(stage, 3)
        running.enter_context(upstream)
        registry = homeport.serve(stage, cores=stage.cores.upstream, name="registry")
        running.enter_context(registry.server)
        instances = [Instance(service="orders", id=f"orders-{port}", address="127.0.0.1", port=port) for port in ports]
        homeport.register(stage, registry, instances)
        server, port = homeport.sidecar(stage, registry, "orders")
        running.enter_context(server)
        yield (
            server.pid,
            lambda: driver.wrk(
                port, ["/"], cores=stage.cores, servers=(), connections=32, duration_s=_LOAD_S, host="orders"
            ),
        )


@contextmanager
def _looked_up(stage: Stage) -> Iterator[tuple[int, Callable[[], object]]]:
    registry = homeport.serve(stage)
    with registry.server:
        homeport.register(stage, registry, homeport.example_instances(_SERVICES, 3))
        bodies = [rpc_body(Resolve(service=homeport.service_name(number))) for number in range(_SERVICES)]
        yield registry.server.pid, lambda: _calls(stage, registry.rpc_port, bodies, connections=16, depth=8)


@contextmanager
def _put(stage: Stage) -> Iterator[tuple[int, Callable[[], object]]]:
    registry = homeport.serve(stage, data_dir=stage.new_folder("homeport"))
    with registry.server:
        bodies = [rpc_body(KvPut(key=key, value=value)) for key, value in entries(10_000)]
        yield registry.server.pid, lambda: _calls(stage, registry.rpc_port, bodies, connections=64, depth=16)


def _calls(stage: Stage, port: int, bodies: list[bytes], *, connections: int, depth: int) -> object:
    plan = ClosedLoop(port=port, connections=connections, depth=depth, calls=RpcCalls(bodies), duration_s=_LOAD_S)
    return driver.closed_loop(plan, stage.generators, ())


PATHS: Final = (
    HotPath("sidecar", "a small request through the sidecar, 32 connections (wrk)", _proxied),
    HotPath("lookup", "`resolve` over MessagePack-RPC, 16 connections with 8 in flight", _looked_up),
    HotPath("put", "a durable put over MessagePack-RPC, 64 connections with 16 in flight", _put),
)


def look(path: HotPath, picture: Path) -> Counter[str]:
    """Profile one path into a picture; return how many looks met each place at the top of its stack."""
    raw = Path(tempfile.mkdtemp(prefix="homeport-profile-")) / "raw"
    with Stage(f"profile-{path.name}") as stage, path.start(stage) as (pid, load):
        for arguments in (_arguments("flamegraph", picture), _arguments("raw", raw, "--native")):
            with affinity(stage.cores.server):  # see the module
                spy = subprocess.Popen([_spy(), *arguments, "--pid", str(pid)], stdout=subprocess.DEVNULL)
            try:
                load()
            finally:
                status = spy.wait(_LOAD_S + _LOOK_S)
            if status:
                raise SystemExit(f"py-spy ended with {status}")
    # py-spy ends lines with spaces; nobody wants those in a diff.
    picture.write_text("".join(f"{line.rstrip()}\n" for line in picture.read_text().splitlines()))
    looks = tops(raw.read_text())
    shutil.rmtree(raw.parent)
    return looks


def _arguments(form: str, file: Path, *more: str) -> list[str]:
    return ["record", "--rate", str(_RATE), "--duration", str(_LOOK_S), "--format", form, "--output", str(file), *more]


def _spy() -> str:
    found = shutil.which("py-spy", path=program_path())
    if found is None:
        raise SystemExit("py-spy is not installed: make bench-peers")
    return found


def tops(raw: str) -> Counter[str]:
    """How often each file, or the kernel, was at work, from py-spy's raw lines: `frame;frame;... count`."""
    looks: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        where = place(stack.split(";"))
        if where:
            looks[where] += int(count)
    return looks


def place(stack: list[str]) -> str:
    """What was at work: a system call, or the Python file that the rest was for; empty: a thread that waits."""
    names = [frame.partition(" ")[0].strip("_") for frame in stack[-_NEAR:]]
    if any(name.startswith(waits) for name in names for waits in _WAITS):
        return ""
    for name in _CALLS:
        if names[-1].endswith(name):
            return f"the kernel: {name}"
    for frame in reversed(stack):
        where = frame.rpartition("(")[2].rstrip(")").rpartition(":")[0]
        if where.endswith(".py"):
            return where
        if where.endswith("loop.c"):
            return "uvloop and libuv"
    return "other native threads"


def table(looks: Counter[str]) -> list[str]:
    """Shares of all looks, the largest first."""
    total = sum(looks.values()) or 1
    rows = [(name, count) for name, count in looks.most_common(_ROWS)]
    rest = total - sum(count for _, count in rows)
    lines = ["| where | share |", "|---|---|"]
    lines += [f"| {name} | {count / total:.1%} |" for name, count in rows]
    return [*lines, f"| everything else | {rest / total:.1%} |"]


def main() -> int:
    """Look at every path."""
    lines: list[str] = []
    for path in PATHS:
        print(f"{path.name}: {path.what}", flush=True)
        looks = look(path, _PICTURES / f"{PROFILE}{path.name}.svg")
        lines += [
            "",
            f"### {path.name}",
            "",
            f"{path.what[:1].upper()}{path.what[1:]}; {sum(looks.values())} looks.",
            "",
        ]
        lines += [f"![{path.what}](benchmarks/{PROFILE}{path.name}.svg)", "", *table(looks)]
    text = _PAGE.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        print(f"{_PAGE} has no place for the tables", file=sys.stderr)
        return 1
    _PAGE.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
