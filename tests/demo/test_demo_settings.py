"""Settings are followed while a service runs, and what is known is never lost to a registry that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from homeport.client import Client
from homeport.mesh.demo.apps.settings import PREFIX, Settings, SettingsFollower
from homeport.registry import Registry

TIMEOUT_S = 60


async def turns() -> AsyncIterator[None]:
    """One turn of the event loop after another."""
    while True:
        yield
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        async for _ in turns():
            if condition():
                return


async def put(registry: Registry, settings: Settings) -> None:
    async with registry.client() as client:
        for key, value in settings.entries().items():
            await client.kv.put(key, value)


def test_settings_survive_the_way_through_the_kv_store() -> None:
    written = Settings(page_size=7, results_max=8, photo_types=("image/gif",), photo_bytes_max=9)
    read = Settings()
    for key, value in written.entries().items():
        read = read.having(key.removeprefix(PREFIX), value)
    assert read == written


@pytest.mark.parametrize(
    ("name", "value"), [("page_size", b'"ten"'), ("page_size", b"{"), ("photo_types", b"[1]"), ("colour", b"1")]
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(name: str, value: bytes) -> None:
    with pytest.raises(ValueError, match=name):
        Settings().having(name, value)


async def test_a_setting_that_is_deleted_or_broken_keeps_its_last_good_value() -> None:
    async with Registry() as registry:
        rpc = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        await put(registry, Settings(page_size=3))
        async with SettingsFollower(Client(rpc)) as follower, registry.client() as client:
            await until(lambda: follower.known)
            await client.kv.delete(PREFIX + "page_size")
            await client.kv.put(PREFIX + "page_size", b"not a number")
            await client.kv.put(PREFIX + "results_max", b"2")  # comes last, so the others were seen
            await until(lambda: follower.now.results_max == 2)
            assert follower.now.page_size == 3


async def test_settings_outlive_the_registry_and_follow_the_next_one() -> None:
    async with Registry() as first:
        rpc = (await first.serve(rpc="127.0.0.1:0")).rpc or ""
        await put(first, Settings(page_size=3))
        client = Client(rpc)
        follower = SettingsFollower(client)
        await follower.__aenter__()
        await until(lambda: follower.known)
    await until(lambda: not client.connected)
    assert follower.now.page_size == 3
    async with Registry() as second:
        await second.serve(rpc=rpc)
        await until(lambda: client.connected)
        assert (follower.known, follower.now.page_size) == (True, 3)  # an empty registry takes nothing away
        await put(second, Settings(page_size=4))
        await until(lambda: follower.now.page_size == 4)
        await follower.__aexit__()
