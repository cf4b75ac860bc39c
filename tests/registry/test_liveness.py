"""How long an instance lives: the lease promise, fast death and checks, in virtual time and over real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from homeport.client import Check, Client, Registration, Subscription
from homeport.client.core.messages import Register, Renew, ReportCheck
from homeport.client.core.model import Instance
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry
from homeport.registry.core.leases import TICK_S

Eventually = Callable[..., Awaitable[None]]


async def _gone(subscription: Subscription) -> float:
    """Wait until a service has no instances; return when that was."""
    gone = asyncio.Event()
    stop = subscription.listen(lambda _event: None if subscription.instances else gone.set())
    if subscription.instances:
        await gone.wait()
    stop()
    return asyncio.get_running_loop().time()


@virtual_time(seed=1)
async def test_a_lease_ends_between_its_ttl_and_one_tick_after_the_last_renewal() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as client:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as remote:
            subscription = client.subscribe("orders")
            for _ in range(20):
                registered = await remote.call(Register(instance=Instance(service="orders", id="o", ttl_s=3.0)))
                await asyncio.sleep(loop.rng.uniform(0.0, 2.9))
                sent = loop.time()
                await remote.call(Renew(leases=(registered.lease,)))
                answered = loop.time()
                ended = await _gone(subscription)
                assert sent + 3.0 <= ended
                assert ended <= answered + 3.0 + TICK_S


@virtual_time(seed=2)
async def test_a_stall_of_the_whole_process_ends_no_lease_that_is_being_renewed() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as client:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as remote, remote.register("orders", port=1, ttl_s=2.0) as registration:
            lease = registration.lease
            subscription = client.subscribe("orders")
            assert await subscription.wait_known(1.0)
            stop = subscription.listen(lambda _event: _assert_present(subscription))
            for _ in range(10):
                loop.stall(loop.rng.uniform(0.0, 10.0))
                await asyncio.sleep(loop.rng.uniform(0.0, 5.0))
                assert subscription.instances
            stop()
            assert registration.lease == lease


def _assert_present(subscription: Subscription) -> None:
    assert subscription.instances, "the lease ended although it was being renewed"


@virtual_time(seed=3)
async def test_an_hour_of_renewals_costs_no_revision() -> None:
    async with Registry() as registry, registry.client() as client, client.register("orders", port=1, ttl_s=10.0):
        revision = registry.store.mvcc.revision
        await asyncio.sleep(3600.0)
        assert registry.store.mvcc.revision == revision
        assert len(await client.resolve("orders")) == 1


@virtual_time(seed=4)
async def test_an_instance_whose_connection_broke_and_refuses_connections_is_critical_at_once() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as watching:
        at = await registry.serve(rpc="127.0.0.1:0")
        client, app, _ = await _one_that_listens(at.rpc or "")
        assert len(await watching.resolve("orders")) == 1
        app.close()
        await app.wait_closed()
        subscription = watching.subscribe("orders")
        critical = asyncio.Event()
        subscription.listen(lambda event: critical.set() if event.changed else None)
        died = loop.time()
        await _die(client)
        async with asyncio.timeout(1.0):
            await critical.wait()
        assert loop.time() - died < 0.5
        assert await watching.resolve("orders") == ()


@virtual_time(seed=5)
async def test_a_broken_connection_alone_takes_nobody_out() -> None:
    async with Registry() as registry, registry.client() as watching:
        at = await registry.serve(rpc="127.0.0.1:0")
        client, app, _ = await _one_that_listens(at.rpc or "")
        await _die(client)
        await asyncio.sleep(30.0)
        assert len(await watching.resolve("orders")) == 1
        app.close()
        await app.wait_closed()


@virtual_time(seed=6)
async def test_who_renewed_over_a_second_connection_is_looked_at_when_that_one_breaks() -> None:
    async with Registry() as registry, registry.client() as watching:
        at = await registry.serve(rpc="127.0.0.1:0")
        client, app, registration = await _one_that_listens(at.rpc or "")
        lease, epoch = registration.lease, client.link_epoch
        registry._rpc.dismiss("for a test")
        assert await client.wait_relinked(epoch, 10.0)
        await asyncio.sleep(1.0)
        assert registration.lease == lease
        app.close()
        await app.wait_closed()
        await _die(client)
        await asyncio.sleep(1.0)
        assert await watching.resolve("orders") == ()


async def _one_that_listens(registry: str) -> tuple[Client, asyncio.Server, Registration]:
    """An instance of orders that takes connections, registered by a client of its own."""
    client = Client(registry)
    await client.start()
    app = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    registration = client.register("orders", port=app.sockets[0].getsockname()[1], ttl_s=60.0)
    await registration.start()
    return client, app, registration


async def _die(client: Client) -> None:
    """What SIGKILL does to a client: its connection closes, and nothing is said."""
    for task in asyncio.all_tasks():
        if task.get_name().startswith("registration of"):
            task.cancel()
    await client.close()


@virtual_time(seed=6)
async def test_a_ttl_check_that_falls_silent_turns_critical_and_recovers_when_it_speaks() -> None:
    check = Check(name="alive", kind="ttl", ttl_s=5.0)
    async with Registry() as registry, registry.client() as client:
        registration = client.register("orders", port=1, ttl_s=60.0, checks=[check])
        async with registration:
            assert await client.resolve("orders") == (), "critical until it has said otherwise"
            await registration.report("alive", "passing")
            await asyncio.sleep(0.0)
            for _ in range(10):
                assert len(await client.resolve("orders")) == 1
                await asyncio.sleep(4.0)
                await client.call(ReportCheck(id=registration.instance.id, check="alive", status="passing"))
            await asyncio.sleep(5.0 + TICK_S + 0.1)
            assert await client.resolve("orders") == ()
            await registration.report("alive", "warning", "slow today")
            await asyncio.sleep(0.0)
            assert len(await client.resolve("orders")) == 1


@virtual_time(seed=7)
async def test_an_http_check_decides_after_its_thresholds_and_not_before() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as client:
        answers = {"status": b"200 OK"}

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % answers["status"])
            await writer.drain()
            writer.close()

        app = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = app.sockets[0].getsockname()[1]
        check = Check(name="web", kind="http", url=f"http://127.0.0.1:{port}/", interval_s=1.0)
        async with client.register("orders", port=port, ttl_s=60.0, checks=[check]):
            subscription = client.subscribe("orders")
            assert await client.resolve("orders") == ()
            await _until(subscription, "passing")
            answers["status"] = b"500 Oops"
            failing_since = loop.time()
            await _until(subscription, "critical")
            assert loop.time() - failing_since > 0.8, "one bad answer is not enough"
            answers["status"] = b"429 Too Many Requests"
            await _until(subscription, "warning")
        app.close()
        await app.wait_closed()


async def _until(subscription: Subscription, status: str) -> None:
    reached = asyncio.Event()

    def look(_event: object = None) -> None:
        if [instance.status for instance in subscription.instances.values()] == [status]:
            reached.set()

    stop = subscription.listen(look)
    look()
    async with asyncio.timeout(60.0):
        await reached.wait()
    stop()


async def test_over_real_sockets_a_lease_ends_between_its_ttl_and_one_tick_after_the_last_renewal() -> None:
    loop = asyncio.get_running_loop()
    async with Registry() as registry, registry.client() as watching:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client:
            subscription = watching.subscribe("orders")
            registered = await client.call(Register(instance=Instance(service="orders", id="o", ttl_s=1.0)))
            sent = loop.time()
            await client.call(Renew(leases=(registered.lease,)))
            ended = await _gone(subscription)
            assert ended - sent >= 1.0, "never before its TTL"


async def test_over_real_sockets_a_killed_instance_leaves_at_once(eventually: Eventually) -> None:
    async with Registry() as registry, registry.client() as watching:
        at = await registry.serve(rpc="127.0.0.1:0")
        client = Client(at.rpc or "", rng=random.Random(1))
        await client.start()
        await client.register("orders", port=1, ttl_s=60.0).start()  # nobody listens on port 1
        assert len(await watching.resolve("orders")) == 1
        await _die(client)
        subscription = watching.subscribe("orders")
        await eventually(lambda: [i.status for i in subscription.instances.values()] == ["critical"])
