"""A registry with its HTTP front, for clients that run as programs of their own, and a way to run them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from homeport.registry import Registry

PROGRAMS = Path(__file__).parent / "programs"
# python-consul2 and py-consul both call themselves `consul`, so the one has a place of its own (`make peers`).
OTHER_CLIENTS = Path(sys.prefix) / "peers-consul2"
NPM_CLIENT = "consul@2.0.1"
DEADLINE_S = 60.0

RunProgram = Callable[..., Awaitable[str]]


@pytest.fixture
async def at() -> AsyncIterator[str]:
    """The address of the front."""
    async with Registry(node="home", rng=random.Random(1)) as registry:
        yield (await registry.serve(http="127.0.0.1:0")).http or ""


@pytest.fixture
def other_clients() -> dict[str, str]:
    """The environment in which python-consul2 and tooz are found."""
    if not (OTHER_CLIENTS / "consul").exists():
        pytest.skip("python-consul2 and tooz are not installed (make peers)")
    return {**os.environ, "PYTHONPATH": str(OTHER_CLIENTS)}


@pytest.fixture(scope="session")
def npm_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds the npm client."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", NPM_CLIENT]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {NPM_CLIENT}: {done.stderr[-500:]}")
    return folder


@pytest.fixture
def run_program() -> RunProgram:
    """`await run_program(*command, env=…, cwd=…)`: what it printed, once it has ended well."""

    async def run(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, env=env, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode()
        assert process.returncode == 0, text
        return text

    return run
