"""What a client promises, whichever way it reaches its registry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest

from homeport.client import (
    CasFailed,
    Check,
    Client,
    Closed,
    HomeportError,
    InvalidArgument,
    KvEvents,
    LeaseGone,
    LimitExceeded,
    ServiceEvent,
)
from homeport.client.core.messages import Deregister, LeaseGrant, LeaseRevoke, Register, Renew, SetState, WaitApplied
from homeport.client.core.model import Instance
from homeport.registry import Registry

Connect = Callable[[], Client]
Eventually = Callable[..., Awaitable[None]]


async def test_a_registered_instance_is_resolved_with_everything_it_said(connect: Connect) -> None:
    async with (
        connect() as client,
        client.register(
            "orders", port=8080, id="o1", tags=["a", "b"], meta={"k": "ü"}, weight=3, zone="z", version="2"
        ) as registration,
    ):
        (found,) = await client.resolve("orders")
        assert (found.service, found.id, found.node) == ("orders", "o1", "testnode")
        assert (found.address, found.port, found.tags, found.meta) == ("127.0.0.1", 8080, ("a", "b"), {"k": "ü"})
        assert (found.weight, found.zone, found.version, found.status) == (3, "z", "2", "passing")
        assert found.create_revision == found.mod_revision > 1
        assert registration.lease != 0


async def test_leaving_the_registration_deregisters(connect: Connect, eventually: Eventually) -> None:
    async with connect() as client:
        async with client.register("orders", port=1):
            assert len(await client.resolve("orders")) == 1
        assert await client.services() == {}
        subscription = client.subscribe("orders")
        await eventually(lambda: not subscription.instances)


async def test_what_another_client_registers_is_seen_without_asking_again(
    connect: Connect, eventually: Eventually
) -> None:
    async with connect() as here, connect() as there:
        assert await here.resolve("orders") == ()
        subscription = here.subscribe("orders")
        async with there.register("orders", port=1):
            await eventually(lambda: len(subscription.instances) == 1)
        await eventually(lambda: not subscription.instances)


async def test_a_draining_instance_takes_no_new_traffic_and_drain_waits_for_its_followers(connect: Connect) -> None:
    async with connect() as client, connect() as follower, client.register("orders", port=1) as registration:
        assert len(await follower.resolve("orders")) == 1
        await registration.drain(min_s=0.0)
        assert await follower.resolve("orders") == ()
        (draining,) = await follower.resolve("orders", passing=False)
        assert draining.state == "draining"


async def test_a_drain_is_not_acknowledged_by_a_follower_that_has_not_applied_it(
    registry: Registry, connect: Connect
) -> None:
    async with connect() as client, client.register("orders", port=1) as registration:
        await client.resolve("orders")
        revision = await registration.set_state("draining")
        wait = WaitApplied(service="orders", revision=revision + 1000, timeout_s=0.05)
        assert (await client.call(wait)).applied is False
        wait = WaitApplied(service="orders", revision=revision, timeout_s=5.0)
        assert (await client.call(wait)).applied is True
        wait = WaitApplied(service="unfollowed", revision=revision + 1000, timeout_s=5.0)
        assert (await client.call(wait)).applied is True


async def test_a_watch_yields_a_snapshot_and_then_every_change(connect: Connect) -> None:
    async with connect() as client, connect() as other:
        events = client.watch("orders")
        first = await anext(events)
        assert first.snapshot
        assert first.changed == ()
        async with other.register("orders", port=1, id="one"):
            added = await anext(events)
            assert [instance.id for instance in added.changed] == ["one"]
        removed = await anext(events)
        assert removed.removed == (("testnode", "one"),)
        await _close(events)


async def test_a_stale_owner_neither_renews_nor_deregisters_its_successor(connect: Connect) -> None:
    async with connect() as client:
        instance = Instance(service="orders", id="same", port=1, ttl_s=5.0)
        first = await client.call(Register(instance=instance))
        second = await client.call(Register(instance=instance))
        assert first.lease != second.lease
        assert (await client.call(Renew(leases=(first.lease, second.lease)))).ttls_s == (0.0, 5.0)
        assert (await client.call(Deregister(id="same", lease=first.lease))).applied is False
        assert (await client.call(SetState(id="same", state="draining", lease=first.lease))).applied is False
        assert len(await client.resolve("orders")) == 1
        assert (await client.call(Deregister(id="same", lease=second.lease))).applied is True


async def test_an_identical_registration_by_its_owner_writes_nothing(connect: Connect) -> None:
    async with connect() as client:
        instance = Instance(service="orders", id="same", port=1, ttl_s=5.0)
        first = await client.call(Register(instance=instance))
        again = await client.call(Register(instance=instance, lease=first.lease))
        assert again == first


async def test_registering_an_id_under_another_name_moves_it(connect: Connect) -> None:
    async with connect() as client:
        await client.call(Register(instance=Instance(service="old", id="same", port=1)))
        await client.call(Register(instance=Instance(service="new", id="same", port=2)))
        assert list(await client.services()) == ["new"]


async def test_a_key_is_put_got_listed_and_deleted(connect: Connect) -> None:
    async with connect() as client:
        kv = client.kv
        assert await kv.get("a") is None
        revision = await kv.put("a", b"1")
        found = await kv.get("a")
        assert found is not None
        assert (found.key, found.value, found.create_revision, found.version) == (b"a", b"1", revision, 1)
        await kv.put("a/b", b"2")
        await kv.put(b"\xff\x00", b"")
        assert [entry.key for entry in await kv.list()] == [b"a", b"a/b", b"\xff\x00"]
        assert [entry.value for entry in await kv.list("a", keys_only=True)] == [b"", b""]
        assert await kv.delete("a", prefix=True) == 2
        assert await kv.delete("a") == 0
        assert [entry.key for entry in await kv.list()] == [b"\xff\x00"]


async def test_a_long_list_comes_complete_and_in_order(connect: Connect) -> None:
    async with connect() as client:
        names = [f"k{number:03}".encode() for number in range(40)]
        await asyncio.gather(*(client.kv.put(name, name * 20_000) for name in names))  # about 3 MB: several pages
        entries = await client.kv.list("k")
        assert [entry.key for entry in entries] == names
        assert all(entry.value == entry.key * 20_000 for entry in entries)


async def test_cas_writes_only_at_the_revision_it_names(connect: Connect) -> None:
    async with connect() as client:
        revision = await client.kv.put("a", b"1", cas=0)
        with pytest.raises(CasFailed) as failed:
            await client.kv.put("a", b"2", cas=0)
        assert failed.value.details["revision"] == revision
        with pytest.raises(CasFailed):
            await client.kv.delete("a", cas=revision + 1)
        await client.kv.put("a", b"2", cas=revision)
        with pytest.raises(CasFailed):
            await client.kv.put("missing", b"", cas=7)


async def test_a_key_on_a_lease_goes_with_it(connect: Connect) -> None:
    async with connect() as client:
        lease = (await client.call(LeaseGrant(ttl_s=30.0))).lease
        await client.kv.put("a", b"1", lease=lease)
        await client.call(LeaseRevoke(lease=lease))
        assert await client.kv.get("a") is None
        with pytest.raises(LeaseGone):
            await client.kv.put("a", b"1", lease=lease)
        with pytest.raises(LeaseGone):
            await client.call(LeaseRevoke(lease=lease))


async def test_a_key_watch_misses_nothing_and_resumes_from_a_revision(connect: Connect) -> None:
    async with connect() as client:
        first = await client.kv.put("a/1", b"1")
        await client.kv.put("b", b"other")
        await client.kv.put("a/2", b"2")
        await client.kv.delete("a/1")
        seen: list[tuple[bytes, bytes | None]] = []
        events = client.kv.watch("a/", prefix=True, start_revision=first)
        while len(seen) < 3:
            event = await anext(events)
            assert isinstance(event, KvEvents)
            seen += [(change.key, change.value) for change in event.events]
        assert seen == [(b"a/1", b"1"), (b"a/2", b"2"), (b"a/1", None)]
        await _close(events)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (Register(instance=Instance(service="", id="x")), InvalidArgument, "service is empty; allowed: 1 to 512"),
        (Register(instance=Instance(service="x", id="")), InvalidArgument, "id is empty"),
        (Register(instance=Instance(service="x", id="x", port=70_000)), InvalidArgument, "allowed: 0 to 65535"),
        (Register(instance=Instance(service="x", id="x", ttl_s=0.01)), InvalidArgument, "allowed: 0 (no lease) or 0.5"),
        (Register(instance=Instance(service="x", id="x", ttl_s=float("nan"))), InvalidArgument, "ttl_s is nan"),
        (Register(instance=Instance(service="x" * 600, id="x")), InvalidArgument, "600 bytes; allowed: at most 512"),
        (Register(instance=5), InvalidArgument, "instance"),  # type: ignore[arg-type]  # the mistake under test
        (
            Register(instance=Instance(service="x", id="x", checks=(Check(name="c", kind="http", url="ftp://x"),))),
            InvalidArgument,
            "url must start with http://",
        ),
        (
            Register(
                instance=Instance(
                    service="x",
                    id="x",
                    checks=(Check(name="c", kind="ttl", ttl_s=1), Check(name="c", kind="ttl", ttl_s=1)),
                )
            ),
            InvalidArgument,
            "check names must differ",
        ),
        (LeaseGrant(ttl_s=-1.0), InvalidArgument, "allowed: 0.5 to 86400"),
        (Renew(leases=tuple(range(10_001))), LimitExceeded, "allowed: 10000"),
    ],
)
async def test_a_bad_request_is_refused_with_what_is_allowed(
    connect: Connect, call: Register, error: type[HomeportError], says: str
) -> None:
    async with connect() as client:
        with pytest.raises(error) as refused:
            await client.call(call)
        assert says in str(refused.value)
        assert await client.services() == {}


async def test_oversize_keys_and_values_are_refused_and_change_nothing(connect: Connect) -> None:
    async with connect() as client:
        for key, value in ((b"k" * 5000, b""), (b"k", b"v" * (1024 * 1024 + 1)), (b"k", b"v" * (3 * 1024 * 1024))):
            with pytest.raises(LimitExceeded) as refused:
                await client.kv.put(key, value)
            assert "allowed" in str(refused.value)
        with pytest.raises(InvalidArgument):
            await client.kv.put("", b"")
        assert await client.kv.list() == []


async def test_many_calls_at_once_each_get_their_own_answer(connect: Connect) -> None:
    async with connect() as client:
        numbers = range(500)
        await asyncio.gather(*(client.kv.put(f"{number}", f"{number}".encode()) for number in numbers))
        found = await asyncio.gather(*(client.kv.get(f"{number}") for number in numbers))
        assert [entry.value for entry in found if entry] == [f"{number}".encode() for number in numbers]


async def test_a_cancelled_call_leaves_the_others_alone(connect: Connect) -> None:
    async with connect() as client:
        await client.wait_connected()
        wait = asyncio.ensure_future(client.call(WaitApplied(service="x", revision=1, timeout_s=5.0)))
        put = asyncio.ensure_future(client.kv.put("a", b"1"))
        wait.cancel()
        assert await put > 1
        with pytest.raises(asyncio.CancelledError):
            await wait


async def test_a_closed_client_says_so(connect: Connect) -> None:
    client = connect()
    with pytest.raises(Closed, match="not started"):
        await client.kv.get("a")
    async with client:
        await client.kv.get("a")
    with pytest.raises(Closed, match="closed"):
        await client.kv.get("a")
    with pytest.raises(Closed):
        client.subscribe("a")


async def test_nothing_is_left_watched_after_clients_have_gone(
    registry: Registry, connect: Connect, eventually: Eventually
) -> None:
    async with connect() as client:
        await client.resolve("orders")
        watch = client.kv.watch("a")
        reader = asyncio.ensure_future(anext(watch))
        await eventually(lambda: registry.peers.watches == 2)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await _close(watch)
    await eventually(lambda: registry.peers.watches == 0)
    assert registry.store.numbers()["watchers"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_client_made_before_a_fork_refuses_to_work_in_the_child(connect: Connect) -> None:
    async with connect() as client:
        await client.wait_connected()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                client.call(Renew(leases=())).send(None)
                answer = b"it worked"
            except Closed as error:
                answer = str(error).encode()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
                answer = repr(error).encode()
            os.write(writer, answer)
            os._exit(0)
        assert b"made before a fork" in await asyncio.to_thread(os.read, reader, 1000)
        await asyncio.to_thread(os.waitpid, child, 0)
        os.close(reader)
        os.close(writer)


async def _close(events: AsyncIterator[ServiceEvent] | AsyncIterator[object]) -> None:
    assert isinstance(events, AsyncGenerator)
    await events.aclose()
