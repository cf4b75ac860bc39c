"""Shares of a core: processes held to part of one by the kernel (cgroup v1 or v2), to see what more of them bring.

On a machine with no core left for the load, N processes with a third of a core each show whether they scale: whatever
they wait for together would show.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_ROOTS: Final = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
_PERIOD_US: Final = 20_000  # short, so that a process held back is not away for long


def _root() -> Path | None:
    for root in _ROOTS:
        if (root / "cpu.cfs_quota_us").exists():
            return root
        controllers = root / "cgroup.subtree_control"
        if controllers.exists() and "cpu" in controllers.read_text().split():
            return root
    return None


def missing() -> str:
    """Why there are no quotas, or nothing."""
    root = _root()
    return "" if root is not None and os.access(root, os.W_OK) else "CPU quotas need root and the cpu control group"


@contextlib.contextmanager
def held(pids: Sequence[int], share: float) -> Iterator[None]:
    """Hold each process to `share` of a core."""
    root = _root()
    assert root is not None, "asked for without looking whether it is there"
    groups: list[Path] = []
    try:
        for pid in pids:
            group = root / f"homeport-benchmark-{pid}"
            group.mkdir()
            groups.append(group)
            quota_us = int(share * _PERIOD_US)
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups:
            for pid_text in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    (root / "cgroup.procs").write_text(pid_text)
            group.rmdir()
