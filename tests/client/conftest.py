"""One suite, three ways to a registry: in process, over TCP, over a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from homeport.client import Client
from homeport.registry import Registry

Connect = Callable[[], Client]


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(node="testnode") as registry:
        yield registry


@pytest.fixture(params=["in process", "tcp", "unix"])
async def connect(request: pytest.FixtureRequest, registry: Registry, tmp_path: Path) -> Connect:
    """Makes clients of the registry, to be entered by the test."""
    if request.param == "in process":
        return registry.client
    at = await registry.serve(rpc="127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/registry.sock")
    address = at.rpc or at.rpc_unix
    assert address is not None
    return lambda: Client(address)
