"""A registry on a thread of its own, and clients on other loops than their registry's."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from pathlib import Path

import pytest

from homeport.client import Client, Closed, HomeportError, InvalidArgument, WrongLoop
from homeport.registry import Registry


def test_code_without_a_loop_gets_a_registry_with_open_fronts() -> None:
    with Registry.in_thread() as registry:
        at = registry.serve(http="127.0.0.1:0")
        with urllib.request.urlopen(f"http://{at.http}/healthz", timeout=30) as answer:
            assert answer.status == 200
    with pytest.raises(Closed):
        registry.serve(http="127.0.0.1:0")
    registry.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "homeport registry"]


def test_a_client_in_process_works_on_any_loop() -> None:
    async def registers_and_sees(client: Client) -> None:
        async with client, client.register("orders", port=80):
            assert [each.port for each in await client.resolve("orders")] == [80]
            async for event in client.watch("orders"):
                assert len(event.changed) == 1
                break
            with pytest.raises(InvalidArgument):
                await client.kv.put("", b"")

    with Registry.in_thread() as registry:
        for _ in range(2):
            asyncio.run(registers_and_sees(registry.client()))


async def test_calls_take_effect_in_the_order_in_which_they_were_made() -> None:
    with Registry.in_thread() as registry:
        async with registry.client() as client:
            await client.kv.put("k", b"before")
            await asyncio.gather(*(client.kv.put("k", str(number).encode()) for number in range(100)))
            kv = await client.kv.get("k")
            assert kv is not None
            assert kv.value == b"99"


async def test_a_client_of_this_loop_needs_no_hop() -> None:
    async with Registry() as registry, registry.client_threadsafe() as client:
        assert await client.services() == {}


async def test_the_end_of_the_registry_is_the_end_of_its_clients() -> None:
    with Registry.in_thread() as registry:
        client = registry.client()
        await client.start()
        await client.services()
    with pytest.raises(Closed):
        await client.services()
    await client.close()


async def test_the_end_of_a_client_s_loop_hurts_nobody() -> None:
    with Registry.in_thread() as registry:

        def forgets() -> None:
            async def start() -> None:
                client = registry.client()
                await client.start()
                await client.resolve("orders")

            asyncio.run(start())

        thread = threading.Thread(target=forgets)
        thread.start()
        thread.join()
        async with registry.client() as client, client.register("orders", port=80):
            assert len(await client.resolve("orders")) == 1


async def test_an_ordinary_client_refuses_another_loop_than_its_registry_s() -> None:
    async with Registry() as registry:
        client = registry.client()

        def elsewhere() -> None:
            async def use() -> None:
                async with client:
                    await client.services()

            with pytest.raises(WrongLoop):
                asyncio.run(use())

        await asyncio.get_running_loop().run_in_executor(None, elsewhere)


def test_what_a_start_raises_is_told_and_the_thread_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    registry = Registry.in_thread(tmp_path / "file")
    with pytest.raises((HomeportError, OSError)):
        registry.start()
    registry.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "homeport registry"]


async def test_its_own_loop_is_told_not_to_wait_for_itself() -> None:
    with Registry.in_thread() as registry:

        async def waits_for_itself() -> None:
            registry.run(asyncio.sleep(0))

        with pytest.raises(WrongLoop):
            registry.run(waits_for_itself())
