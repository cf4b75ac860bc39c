"""A registration that is bound to a task ends with it, and with a loop that hangs, whoever renews it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from homeport.client import Client, Closed
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry
from tests.client.coordination.sites import Site, host

Eventually = Callable[..., Awaitable[None]]
TTL_S = 0.6
WEDGED_S = 30.0  # only a failure waits that long


@virtual_time(seed=1)
async def test_a_registration_ends_with_the_task_it_is_bound_to() -> None:
    async with Site() as site:
        client, other = await site.client(0), await site.client(1)
        until = asyncio.Event()
        serving = asyncio.ensure_future(until.wait())
        registration = client.register("orders", port=1, ttl_s=60.0, bound_to=serving)
        await registration.start()
        assert len(await other.resolve("orders")) == 1
        await asyncio.sleep(200.0)
        assert len(await other.resolve("orders")) == 1
        until.set()
        await asyncio.sleep(0.1)
        assert await other.resolve("orders") == ()
        assert not registration.registered
        await registration.stop()


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_however_the_task_ends(end: str) -> None:
    @virtual_time(seed=2)
    async def run() -> None:
        async with Site() as site:
            client, other = await site.client(0), await site.client(1)

            async def serve() -> None:
                await client.register("orders", port=1, ttl_s=60.0, bound_to=asyncio.current_task()).start()
                await asyncio.sleep(10.0)
                raise ZeroDivisionError

            serving = asyncio.ensure_future(serve())
            await asyncio.sleep(5.0)
            assert len(await other.resolve("orders")) == 1
            if end == "is cancelled":
                serving.cancel()
            await asyncio.wait((serving,))
            await asyncio.sleep(0.1)
            assert await other.resolve("orders") == ()
            assert serving.cancelled() or serving.exception() is not None

    run()


@virtual_time(seed=3)
async def test_a_task_that_has_ended_already_registers_nothing() -> None:
    async with Site() as site:
        client = await site.client(0)
        over = asyncio.ensure_future(asyncio.sleep(0))
        await over
        with pytest.raises(Closed, match="has ended"):
            await client.register("orders", port=1, bound_to=over).start()
        assert await client.services() == {}


@pytest.mark.parametrize("seed", range(10))
def test_a_task_that_ends_while_it_is_being_registered_leaves_nothing(seed: int) -> None:
    @virtual_time(seed=seed)
    async def run() -> None:
        async with Site() as site:
            client = await site.client(0)
            assert await client.wait_connected()
            delay_s = site.loop.rng.uniform(0.0, 0.004)
            short = asyncio.ensure_future(asyncio.sleep(delay_s))
            starting = asyncio.ensure_future(client.register("orders", port=1, ttl_s=60.0, bound_to=short).start())
            await asyncio.wait((starting,))
            await asyncio.sleep(1.0)
            assert await client.services() == {}
            assert starting.exception() is None or isinstance(starting.exception(), Closed)

    run()


@virtual_time(seed=4)
async def test_a_loop_that_hangs_renews_nothing_and_registers_again_when_it_turns() -> None:
    async with Site() as site:
        client, other = await site.client(0), await site.client(1)
        with site.network.host(host(0)):
            serving = asyncio.ensure_future(asyncio.Event().wait())
            registration = client.register("orders", port=1, ttl_s=3.0, bound_to=serving)
        await site.run(0, registration.start())
        await asyncio.sleep(10.0)
        assert len(await other.resolve("orders")) == 1
        site.network.stall(host(0))
        hung_at = running_loop().time()
        following = other.subscribe("orders")
        gone = asyncio.Event()
        following.listen(lambda _event: None if following.instances else gone.set())
        await gone.wait()
        assert running_loop().time() - hung_at < 3.0 + 0.5
        site.network.heal(host(0))
        await asyncio.sleep(2.0)
        assert len(await other.resolve("orders")) == 1
        serving.cancel()
        await asyncio.sleep(1.0)


async def test_a_client_on_a_thread_of_its_own_does_not_keep_a_hung_loop_registered(eventually: Eventually) -> None:
    """Its loop turns and could renew for ever: but the app's does not."""
    with Registry.in_thread(guard=False) as thread:
        at = thread.serve(rpc="127.0.0.1:0")
        serving = asyncio.ensure_future(asyncio.Event().wait())  # the app, on this loop
        gone, come = threading.Event(), threading.Event()  # how it is now: under load a lease this short may end early
        over = threading.Event()

        async def client_life() -> None:
            async with Client(at.rpc or "") as client:
                registration = client.register("orders", port=1, ttl_s=TTL_S, bound_to=serving)
                await registration.start()
                following = client.subscribe("orders")
                states = {True: (come, gone), False: (gone, come)}

                def changed(_event: object) -> None:
                    now, before = states[bool(following.instances)]
                    before.clear()
                    now.set()

                following.listen(changed)
                await asyncio.to_thread(over.wait, WEDGED_S)

        living = asyncio.ensure_future(asyncio.to_thread(asyncio.run, client_life()))
        await eventually(come.is_set)
        assert gone.wait(WEDGED_S), "this loop hangs, and its registration ends"
        await eventually(come.is_set)  # it turns again, and so it is registered again
        serving.cancel()
        await eventually(gone.is_set)
        over.set()
        await living
