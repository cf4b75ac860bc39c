"""What the figures were measured on: they mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.servers import ROOT

_PACKAGES: Final = ("homeport", "uvloop", "aiohttp", "httptools", "msgspec", "msgpack")
_PROGRAMS: Final = {
    "wrk": ("wrk", "-v"),
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    "etcd": ("etcd", "--version"),
    "redis": ("redis-server", "--version"),
    "dnsmasq": ("dnsmasq", "--version"),
    "envoy": ("envoy", "--version"),
    "dnsperf": ("dnsperf", "-h"),
    "caddy": ("caddy", "version"),
    "zookeeper": ("dpkg-query", "-W", "zookeeper"),
}
_VERSION: Final = re.compile(r"(\d+\.\d+[\w.+~-]*)")


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine and the versions of everything that took part; programs that are not installed are absent."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    filesystem: str  # of the folder that holds the servers' data
    revision: str  # of the working tree, with a plus if it was changed; empty if that cannot be told
    versions: dict[str, str]


def describe(work_dir: Path) -> Machine:
    """Look around."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for name, command in _PROGRAMS.items():
        if shutil.which(command[0], path=program_path()):
            found = _VERSION.search(_output(*command))
            versions[name] = found[1] if found else "unknown"
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        filesystem=_filesystem(work_dir, Path("/proc/mounts").read_text()),
        revision=_revision(),
        versions=versions,
    )


def program_path() -> str:
    """Where programs are looked for: also beside this Python, and where Debian puts servers."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"])


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _filesystem(folder: Path, mounts: str) -> str:
    """The type of the file system that holds a folder, by the longest mount point that leads to it."""
    best, kind = Path(), "unknown"
    for line in mounts.splitlines():
        _, point, mounted, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) >= len(str(best)):
            best, kind = Path(point), mounted
    return kind


def _revision() -> str:
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip()
    if not re.fullmatch(r"[0-9a-f]+", revision):
        return ""
    return revision + ("+" if _output("git", "-C", str(ROOT), "status", "--porcelain").strip() else "")


def _output(*command: str) -> str:
    program = shutil.which(command[0], path=program_path())
    if program is None:
        return ""
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=10)
    return done.stdout + done.stderr
