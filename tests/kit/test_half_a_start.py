"""A mesh whose start fails halfway, wherever that is, leaves nothing behind: no task, no socket, no thread."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from homeport.client import Client, Registration
from homeport.mesh.testing import Mesh, virtual_time
from homeport.mesh.testing.gates import Gate
from homeport.registry import Registry
from homeport.sidecar import Sidecar

# What a mesh with one service awaits on its way, and which call of it fails.
STEPS = [
    (Registry, "start", 1),
    (Registry, "serve", 1),
    (Client, "start", 1),
    (Client, "start", 2),
    (Client, "start", 3),
    (Sidecar, "start", 1),
    (Sidecar, "start", 2),
    (Registration, "start", 1),
]
OVER_SOCKETS = [(Gate, "open", number) for number in (1, 2, 3)]


class BrokenError(Exception):
    """What the test makes go wrong."""


def break_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, number: int) -> None:
    """The call of this number fails, after all that it does."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    async def broken(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return await real(self, *args, **options)
        raise BrokenError

    monkeypatch.setattr(owner, name, broken)


async def hello(_request: web.BaseRequest) -> web.Response:
    return web.Response(text="hello")


async def use() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", hello)


def open_sockets() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.append(target)
    return sorted(found)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="sockets are counted where the kernel lists them")
@pytest.mark.parametrize(("owner", "name", "number"), [*STEPS, *OVER_SOCKETS])
async def test_over_sockets(owner: type, name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = (asyncio.all_tasks(), open_sockets(), threading.active_count())
    with monkeypatch.context() as patched:
        break_at(patched, owner, name, number)
        with pytest.raises(BrokenError):
            await use()
    for _ in range(3):  # transports close in the loop's next turns
        await asyncio.sleep(0)
    gc.collect()
    assert (asyncio.all_tasks(), open_sockets(), threading.active_count()) == before


@pytest.mark.parametrize(("owner", "name", "number"), STEPS)
def test_in_virtual_time(owner: type, name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time(seed=1)
    async def run() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(BrokenError):
            await use()
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before

    break_at(monkeypatch, owner, name, number)
    run()


@virtual_time(seed=2)
async def test_what_fails_to_close_keeps_nothing_else_open() -> None:
    before = asyncio.all_tasks()
    mesh = Mesh()
    await mesh.start()
    [member, _] = await mesh.service("orders", hello, instances=2)
    real = member.sidecar.close

    async def broken() -> None:
        await real()
        raise BrokenError

    member._closing = [broken if each == real else each for each in member._closing]
    with pytest.raises(BrokenError):
        await mesh.close()
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == before
    await mesh.close()


@virtual_time(seed=3)
async def test_a_registry_that_fails_to_restart_may_be_restarted() -> None:
    async with Mesh() as mesh:
        mesh.kill("registry")
        with pytest.MonkeyPatch.context() as patched:
            break_at(patched, Registry, "serve", 1)
            with pytest.raises(BrokenError):
                await mesh.restart("registry")
        await mesh.restart("registry")
        await mesh.service("orders", hello)
        await mesh.call("orders")
        assert mesh.failed == 0
