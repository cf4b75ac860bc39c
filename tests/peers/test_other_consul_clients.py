"""python-consul2, tooz's and kombu's Consul drivers and npm's `consul`, unmodified, each a program of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.peers.conftest import RunProgram

PROGRAMS = Path(__file__).parent / "programs"


async def test_python_consul2_locks_waits_and_transacts(
    at: str, other_clients: dict[str, str], run_program: RunProgram
) -> None:
    script = str(PROGRAMS / "drive_python_consul2.py")
    assert "all is well" in await run_program(sys.executable, script, at, env=other_clients)


async def test_tooz_has_locks_and_groups(at: str, other_clients: dict[str, str], run_program: RunProgram) -> None:
    script = str(PROGRAMS / "drive_tooz.py")
    assert "all is well" in await run_program(sys.executable, script, at, env=other_clients)


async def test_the_npm_client_locks_watches_and_transacts(at: str, npm_client: Path, run_program: RunProgram) -> None:
    shutil.copy(PROGRAMS / "drive_npm_consul.cjs", npm_client)
    assert "all is well" in await run_program("node", "drive_npm_consul.cjs", at, cwd=npm_client)


async def test_kombu_passes_messages(at: str, other_clients: dict[str, str], run_program: RunProgram) -> None:
    script = str(PROGRAMS / "drive_kombu.py")
    assert "all is well" in await run_program(sys.executable, script, at, env=other_clients)
