"""SIGKILL of a loaded server, again and again: what it acknowledged is there when it comes back."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from homeport.client import Client, HomeportError
from tests.crash.workload import of_long, seeds

WRITERS: Final = 8
DEPTH: Final = 8  # writes in flight of each


@asynccontextmanager
async def _server(directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A registry process on a data directory, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "homeport.mesh.cli", "serve", "--http", "off", "--rpc", "127.0.0.1:0"),
        *("--dns", "off", "--data-dir", str(directory)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert "serving" in line
        yield process, line.split("  rpc ")[1].split()[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _load(address: str, life: int, acknowledged: dict[str, int], dying: asyncio.Event) -> None:
    """Count up keys until the server dies, noting what was acknowledged."""

    async def write(client: Client, name: str) -> None:
        number = acknowledged.get(name, 0)
        while not dying.is_set():
            number += 1
            try:
                await client.kv.put(name, b"%d" % number)
            except HomeportError:
                return
            acknowledged[name] = number

    async with Client(address) as client:
        await asyncio.gather(*(write(client, f"{life}/{writer}") for writer in range(DEPTH)))


async def _kill_again_and_again(directory: Path, seed: int, kills: int) -> None:
    print(f"HOMEPORT_SEED={seed}")
    rng = random.Random(seed)
    acknowledged: dict[str, int] = {}
    for _ in range(kills):
        async with _server(directory) as (process, address):
            async with Client(address) as client:
                for name, number in acknowledged.items():
                    entry = await client.kv.get(name)
                    assert entry is not None, f"{name} is gone, {number} was acknowledged"
                    assert int(entry.value) >= number, f"{name} is {entry.value!r}, {number} was acknowledged"
            dying = asyncio.Event()
            load = [asyncio.ensure_future(_load(address, life, acknowledged, dying)) for life in range(WRITERS)]
            enough = sum(acknowledged.values()) + rng.randrange(100, 4_000)
            while sum(acknowledged.values()) < enough:
                turn = asyncio.Event()
                asyncio.get_running_loop().call_later(rng.uniform(0.001, 0.02), turn.set)
                await turn.wait()
            process.kill()
            dying.set()
            await asyncio.gather(*load)
    assert sum(acknowledged.values()) > 100 * kills, "the server was not loaded"


@pytest.mark.parametrize("seed", seeds(1))
async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, seed: int) -> None:
    await _kill_again_and_again(tmp_path, seed, kills=4)


@pytest.mark.long
@pytest.mark.parametrize("seed", seeds(1, first=77))
async def test_what_was_acknowledged_survives_fifty_sigkills(tmp_path: Path, seed: int) -> None:
    await _kill_again_and_again(tmp_path, seed, kills=of_long(50, 10))
