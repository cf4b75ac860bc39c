"""The stores that keep the contract: each backend is one entry here, and runs every test of the suite."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from homeport.registry.store.contract import Store
from homeport.registry.store.embedded import EmbeddedStore

MakeStore = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def embedded(data_dir: Path | None) -> AsyncIterator[Store]:
    """In memory or journaled, on the clock of the running loop."""
    now = asyncio.get_running_loop().time
    store = EmbeddedStore(now=now, rng=random.Random(), data_dir=None if data_dir is None else str(data_dir))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "journal"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """`async with make_store() as store`: a new, empty, running store, on real or virtual time."""
    numbers = count()

    def make() -> AbstractAsyncContextManager[Store]:
        if request.param == "memory":
            return embedded(None)
        data_dir = tmp_path / f"store-{next(numbers)}"
        data_dir.mkdir()
        return embedded(data_dir)

    return make
