"""What watches promise: nothing is lost in silence, nothing is left open, and an end is told to whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from homeport.client import Client, Closed, InvalidArgument, KvEvents, LimitExceeded, Lost, Unauthorized
from homeport.client.core.messages import WatchService
from homeport.registry import Registry

Connect = Callable[[], Client]
Eventually = Callable[..., Awaitable[None]]


async def closed(events: Any) -> None:
    assert isinstance(events, AsyncGenerator)
    await events.aclose()


async def test_what_is_written_after_lost_was_told_is_told_too(unused_port: int, eventually: Eventually) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        events = client.kv.watch("a")
        async with Registry() as registry:
            await registry.serve(rpc=address)
            first = asyncio.ensure_future(anext(events))
            await eventually(lambda: registry.peers.watches == 1)
            for number in range(5):
                await client.kv.put("a", b"%d" % number)
            await first
        while True:  # what was queued before the registry went
            event = await anext(events)
            if isinstance(event, Lost):
                break
            if event.events[-1].value == b"4":
                break
        async with Registry() as registry, registry.client() as other:
            await registry.serve(rpc=address)
            await other.kv.put("a", b"unseen")
            if not isinstance(event, Lost):
                event = await anext(events)
            assert isinstance(event, Lost)
            assert event.from_revision == 1
            found = await client.kv.get("a")  # what a user does on Lost
            assert found is not None
            assert event.to_revision >= found.mod_revision
            await other.kv.put("a", b"written before the next look")
            told = await asyncio.wait_for(anext(events), 30.0)
            assert isinstance(told, KvEvents)
            assert told.events[0].value == b"written before the next look"
            await closed(events)


async def test_reading_and_then_watching_leaves_no_gap(connect: Connect) -> None:
    async with connect() as client:
        await client.kv.put("s/a", b"1")
        await client.kv.put("t", b"other")
        known = await client.kv.snapshot("s/")
        assert [(entry.key, entry.value) for entry in known.entries] == [(b"s/a", b"1")]
        assert (known.store_id, known.revision) == (client.store_id, known.entries[0].mod_revision + 1)
        await client.kv.put("s/b", b"2")
        events = client.kv.watch("s/", prefix=True, start_revision=known.revision + 1, store_id=known.store_id)
        event = await asyncio.wait_for(anext(events), 30.0)
        assert isinstance(event, KvEvents)
        assert [change.key for change in event.events] == [b"s/b"]
        await closed(events)


async def test_a_snapshot_of_another_history_is_not_watched_on_from(connect: Connect) -> None:
    async with connect() as client:
        events = client.kv.watch("a", start_revision=2, store_id="0123456789abcdef")
        assert isinstance(await asyncio.wait_for(anext(events), 30.0), Lost)
        await client.kv.put("a", b"1")
        assert isinstance(await asyncio.wait_for(anext(events), 30.0), KvEvents)
        await closed(events)


async def test_a_cancelled_opening_leaves_no_watch_in_the_registry(
    registry: Registry, connect: Connect, eventually: Eventually
) -> None:
    async with connect() as client:
        assert await client.wait_connected()
        for turns in range(8):
            events = client.kv.watch("a")
            opening = asyncio.ensure_future(anext(events))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await closed(events)
        await client.kv.get("a")  # everything that was asked before has been answered
        await eventually(lambda: registry.peers.watches == 0)


async def test_watches_end_when_their_client_is_closed(connect: Connect) -> None:
    async with connect() as client:
        services, keys = client.watch("orders"), client.kv.watch("a")
        assert (await anext(services)).snapshot
        waiting = [asyncio.ensure_future(anext(services)), asyncio.ensure_future(anext(keys))]
        subscription = client.subscribe("orders")
        await client.kv.put("b", b"")
    for ending in waiting:
        with pytest.raises(Closed):
            await asyncio.wait_for(ending, 30.0)
    with pytest.raises(Closed):
        await client.resolve("orders")
    assert subscription.known
    assert not subscription.live
    subscription.close()


async def test_who_waits_to_know_a_service_hears_of_the_clients_end(unused_port: int) -> None:
    async with Client(f"127.0.0.1:{unused_port}") as client:
        subscription = client.subscribe("orders")
        known = asyncio.ensure_future(subscription.wait_known(30.0))
        resolved = asyncio.ensure_future(client.resolve("orders", timeout_s=30.0))
        events = client.watch("orders")
        first = asyncio.ensure_future(anext(events))
        await asyncio.wait([known, resolved, first], timeout=0.05)
    for ending in (known, resolved, first):
        with pytest.raises(Closed):
            await asyncio.wait_for(ending, 30.0)
    subscription.close()


async def test_watches_end_when_the_registry_of_this_process_does() -> None:
    async with Registry() as registry:
        client = registry.client()
        await client.start()
        events = client.watch("orders")
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.wait([waiting], timeout=0)
    with pytest.raises(Closed):
        await asyncio.wait_for(waiting, 30.0)
    await client.close()


async def test_a_refused_watch_says_why_to_whoever_waits_for_it(registry: Registry, connect: Connect) -> None:
    async with connect() as client:
        assert await client.wait_connected()
        assert client.welcome is not None
        for number in range(client.welcome.limits["watches_per_connection"]):
            await client.call(WatchService(watch=10**9 + number, service="x"))
        with pytest.raises(LimitExceeded):
            await client.resolve("orders")
        with pytest.raises(LimitExceeded):
            await anext(client.watch("orders"))
        with pytest.raises(LimitExceeded):
            await anext(client.kv.watch("a"))
        subscription = client.subscribe("orders")
        with pytest.raises(LimitExceeded):
            await subscription.wait_known(5.0)
        subscription.close()


async def test_no_watch_is_opened_for_a_name_that_no_service_can_have(connect: Connect) -> None:
    async with connect() as client:
        for name in ("", "x" * 513, "\udc80"):
            with pytest.raises(InvalidArgument, match="service"):
                client.subscribe(name)
            with pytest.raises(InvalidArgument, match="service"):
                await client.resolve(name)
            with pytest.raises(InvalidArgument, match="service"):
                await anext(client.watch(name))


async def test_a_listener_that_raises_hurts_neither_the_others_nor_the_link(
    connect: Connect, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect() as client:
        subscription = client.subscribe("orders")
        seen: list[object] = []

        def defect(_event: object) -> None:
            raise RuntimeError("a listener's defect")

        subscription.listen(defect)
        subscription.listen(seen.append)
        assert await subscription.wait_known(5.0)
        epoch = client.link_epoch
        async with client.register("orders", port=1):
            await eventually(lambda: len(subscription.instances) == 1)
        await eventually(lambda: not subscription.instances)
        assert len(seen) == 3
        assert client.link_epoch == epoch
        assert "a listener's defect" in caplog.text


async def test_services_that_are_not_resolved_any_more_are_not_followed_for_ever(
    registry: Registry, connect: Connect, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.client.resolved.RESOLVED_MAX", 3)
    async with connect() as client:
        subscription = client.subscribe("s0")
        for number in range(10):
            assert await client.resolve(f"s{number}") == ()
            assert await client.resolve("s1" if number else "s0") == ()
        await eventually(lambda: registry.peers.watches == 4)  # the three last resolved, and the subscription
        subscription.close()
        await eventually(lambda: registry.peers.watches == 3)
        assert await asyncio.gather(*(client.resolve("new") for _ in range(5))) == [()] * 5
        await eventually(lambda: registry.peers.watches == 3)


async def test_a_wrong_token_is_said_to_whoever_asks_and_watches() -> None:
    async with Registry(token="right") as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        async with Client(at, token="wrong") as client:
            for ask in (
                lambda: client.kv.get("a"),
                lambda: client.resolve("orders"),
                lambda: anext(client.watch("orders")),
                lambda: anext(client.kv.watch("a")),
                lambda: client.register("orders", port=1).start(),
            ):
                with pytest.raises(Unauthorized):
                    await asyncio.wait_for(ask(), 30.0)
            assert not await client.wait_connected(0.1)
