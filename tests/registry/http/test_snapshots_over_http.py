"""Snapshots: the whole store out and in again, over HTTP, and nothing but a whole one taken."""

from __future__ import annotations

import asyncio
import glob
import io
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from homeport.registry import Registry


class Talk:
    """Requests over connections of their own, since a restore closes them all."""

    def __init__(self, registry: Registry, at: str) -> None:
        self.registry = registry
        self.at = at

    async def __call__(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        async with (
            asyncio.timeout(30),
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://{self.at}{path}", data=None if body is None else io.BytesIO(body)
            ) as response,
        ):
            return response.status, await response.read()

    async def restored(self, before: str) -> None:
        """Return when the registry is back with another history."""
        async with asyncio.timeout(30):
            while True:
                try:
                    status, _ = await self("GET", "/readyz")
                    if status == 200 and self.registry.store.store_id != before:
                        return
                except aiohttp.ClientError:
                    pass


@pytest.fixture(params=["memory", "disk"])
async def talk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Talk]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with Registry(tmp_path / "data" if request.param == "disk" else None) as registry:
        at = await registry.serve(http="127.0.0.1:0")
        assert at.http is not None
        yield Talk(registry, at.http)
    assert not glob.glob(f"{folder}/homeport-*"), "nothing is left behind"


async def test_what_a_snapshot_holds_comes_back_and_what_came_after_it_goes(talk: Talk) -> None:
    big = os.urandom(500_000)
    for number in range(8):
        await talk("PUT", f"/v1/kv/big/{number}", big)
    await talk("PUT", "/v1/kv/a", b"before")
    status, snapshot = await talk("GET", "/v1/snapshot")
    assert (status, len(snapshot) > 8 * len(big)) == (200, True)
    await talk("PUT", "/v1/kv/a", b"after")
    await talk("PUT", "/v1/kv/b", b"new")
    before = talk.registry.store.store_id
    assert (await talk("PUT", "/v1/snapshot", snapshot))[0] == 200
    await talk.restored(before)
    assert await talk("GET", "/v1/kv/a?raw") == (200, b"before")
    assert (await talk("GET", "/v1/kv/b?raw"))[0] == 404
    assert await talk("GET", "/v1/kv/big/7?raw") == (200, big)


@pytest.mark.parametrize("damage", ["nothing", "text", "cut"])
async def test_what_is_not_a_whole_snapshot_is_refused_and_changes_nothing(talk: Talk, damage: str) -> None:
    await talk("PUT", "/v1/kv/a", b"kept")
    _, snapshot = await talk("GET", "/v1/snapshot")
    sent = {"nothing": b"", "text": b"not a snapshot", "cut": snapshot[: len(snapshot) // 2]}[damage]
    before = talk.registry.store.store_id
    status, said = await talk("PUT", "/v1/snapshot", sent)
    assert (status, b"snapshot" in said) == (400, True)
    assert b"homeport-restore" not in said, "where the registry put it is nobody's business"
    assert await talk("GET", "/v1/kv/a?raw") == (200, b"kept")
    assert talk.registry.store.store_id == before


async def test_a_client_that_hangs_up_leaves_nothing_behind(talk: Talk) -> None:
    for number in range(12):
        await talk("PUT", f"/v1/kv/big/{number}", os.urandom(500_000))
    host, port = talk.at.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.transport.abort()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HEAD /v1/snapshot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(30):
        assert b"\r\n\r\n" in await reader.read()
    writer.close()
