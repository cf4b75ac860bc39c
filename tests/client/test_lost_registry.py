"""What a client keeps, and what it does by itself, when its registry dies, restarts or falls silent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from homeport.client import Client, Closed, ConnectionLost, KvEvents, Lost, Unavailable
from homeport.client.core.messages import WaitApplied
from homeport.registry import Registry

Eventually = Callable[..., Awaitable[None]]


async def test_a_client_starts_without_a_registry_and_finds_it_when_it_comes(unused_port: int) -> None:
    async with Client(f"127.0.0.1:{unused_port}") as client:
        with pytest.raises(Unavailable, match="no registry"):
            await client.call(WaitApplied(service="x", revision=1, timeout_s=0.0), timeout_s=0.1)
        async with Registry() as registry:
            await registry.serve(rpc=f"127.0.0.1:{unused_port}")
            assert await client.kv.put("a", b"1", cas=0) > 1


async def test_instances_are_registered_again_after_a_registry_restart(
    unused_port: int, eventually: Eventually
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        async with Registry() as registry:
            await registry.serve(rpc=address)
            registration = client.register("orders", port=1, ttl_s=30.0)
            await registration.start()
            before = registration.lease
        await eventually(lambda: not client.connected)
        async with Registry() as registry:
            await registry.serve(rpc=address)
            await eventually(lambda: "orders" in registry.catalogue.services)
            await eventually(lambda: registration.lease not in (0, before))
            await registration.stop()
            assert "orders" not in registry.catalogue.services


async def test_known_instances_stay_known_while_the_registry_is_gone_and_while_it_knows_less(
    unused_port: int, eventually: Eventually
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        async with Registry() as registry, registry.client() as inside:
            await registry.serve(rpc=address)
            for port in (1, 2, 3, 4):
                await inside.register("orders", port=port, ttl_s=0.0).start()
            assert len(await client.resolve("orders")) == 4
        subscription = client.subscribe("orders")
        await eventually(lambda: not subscription.live)
        assert len(await client.resolve("orders")) == 4
        async with Registry() as registry, registry.client() as inside:
            await registry.serve(rpc=address)
            await eventually(lambda: subscription.live)
            assert len(await client.resolve("orders")) == 4, "an empty set right after a reconnect is held back"
            assert subscription.held
            await inside.register("orders", port=1, ttl_s=0.0).start()
            await inside.register("orders", port=2, ttl_s=0.0).start()
            await eventually(lambda: len(subscription.instances) == 2)
            assert not subscription.held


async def test_a_key_watch_goes_on_over_a_broken_connection_without_losing_anything(eventually: Eventually) -> None:
    async with Registry() as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client, registry.client() as inside:
            events = client.kv.watch("a", prefix=True)
            first = asyncio.ensure_future(anext(events))
            await eventually(lambda: registry.peers.watches == 1)
            await inside.kv.put("a1", b"1")
            seen = [await first]
            for connection in tuple(registry._rpc.connections):
                assert connection._transport is not None
                connection._transport.abort()
            await inside.kv.put("a2", b"2")
            await inside.kv.put("a3", b"3")
            seen += [await anext(events), await anext(events)]
            keys = [change.key for event in seen if isinstance(event, KvEvents) for change in event.events]
            assert keys == [b"a1", b"a2", b"a3"]
            await events.aclose()


async def test_a_key_watch_says_lost_when_the_registry_is_another_one(unused_port: int, eventually: Eventually) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        events = client.kv.watch("a")
        async with Registry() as registry:
            await registry.serve(rpc=address)
            first = asyncio.ensure_future(anext(events))
            await eventually(lambda: registry.peers.watches == 1)
            await client.kv.put("a", b"1")
            assert isinstance(await first, KvEvents)
        async with Registry() as registry:
            await registry.serve(rpc=address)
            assert isinstance(await anext(events), Lost)
            reading = asyncio.ensure_future(anext(events))
            await eventually(lambda: registry.peers.watches == 1)
            await client.kv.put("a", b"2")
            event = await reading
            assert isinstance(event, KvEvents)
            assert event.events[0].value == b"2"
        await events.aclose()


async def test_calls_of_an_in_process_client_fail_when_the_registry_closes() -> None:
    async with Registry() as registry:
        client = registry.client()
        await client.start()
        await client.kv.put("a", b"1")
        waiting = asyncio.ensure_future(client.call(WaitApplied(service="x", revision=10**9, timeout_s=20.0)))
        await client.resolve("x")
        await asyncio.wait([waiting], timeout=0)
    with pytest.raises((ConnectionLost, Closed)):
        await waiting
    with pytest.raises((ConnectionLost, Closed)):
        await client.kv.put("a", b"2")
    await client.close()


@asynccontextmanager
async def _registry_process(address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    script = (
        "import asyncio\nfrom homeport.registry import Registry\n"
        "async def main():\n"
        "    async with Registry() as registry:\n"
        f"        await registry.serve(rpc={address!r})\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_paused_registry_is_noticed_and_left(
    unused_port: int, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.client.connection._PING_S", 0.2)
    monkeypatch.setattr("homeport.client.connection._PONG_S", 0.2)
    address = f"127.0.0.1:{unused_port}"
    async with _registry_process(address) as process, Client(address) as client:
        assert await client.wait_connected(30.0)
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(lambda: not client.connected)
        os.kill(process.pid, signal.SIGCONT)
        await eventually(lambda: client.connected)


async def test_a_registration_survives_sigkill_of_the_registry(unused_port: int, eventually: Eventually) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with (
        Client(address) as client,
        _registry_process(address) as process,
        client.register("orders", port=1) as registration,
    ):
        before = registration.lease
        process.kill()
        await process.wait()
        async with _registry_process(address):
            await eventually(lambda: registration.lease != before)
            assert await client.services() == {"orders": ()}
