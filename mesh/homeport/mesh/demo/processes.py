"""Processes of the demo: each with a log of its own, in a session of its own, and none outlives the demo.

A session of its own keeps a terminal's Ctrl-C to the demo itself, which then stops the rest in its own order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeport.mesh.orphans import tie_to_parent

# Below the ports that kernels give to outgoing connections: there, a connection could take the port of a process that
# is being restarted, or even connect to itself while nobody listens.
PORTS: Final = range(20_000, 30_000)
_PORT_TRIES_MAX: Final = 1000


@dataclass(slots=True)
class Process:
    """One running program."""

    name: str
    log: Path
    child: asyncio.subprocess.Process

    @property
    def running(self) -> bool:
        return self.child.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(number)

    async def kill(self) -> None:
        """End it now and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.child.wait()


async def spawn(name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Start `homeport COMMAND...` of this very installation, with `env` over this process's environment."""
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "homeport.mesh.cli",
            *command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_clean(os.environ) | dict(env or {}),
            start_new_session=True,
            preexec_fn=tie_to_parent(),
        )
    return Process(name, log, child)


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without proxies and Homeport options, which would bend the demo's own."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("HOMEPORT_") and not name.lower().endswith("_proxy")
    }


class FreePorts:
    """Loopback ports that nobody listened on a moment ago, each handed out once."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._given: set[int] = set()

    def take(self) -> int:
        """Return a port.

        Raises:
            OSError: none was found.
        """
        for _ in range(_PORT_TRIES_MAX):
            port = self._rng.choice(PORTS)
            if port in self._given:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            self._given.add(port)
            return port
        raise OSError(f"no free port found between {PORTS.start} and {PORTS.stop}")
