"""Renewals of one client go together, in time, and do not share each other's fate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from homeport.client import Check, Client, HomeportError, Unavailable
from homeport.client.core.limits import AGAIN_AT_ONCE, CALL_S, RENEW_LEASES_MAX
from homeport.client.core.messages import Register, Renew, Renewed, Request
from homeport.client.renewals import TICKS_PER_PERIOD, Renewals
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry


class Asked:
    """Stands in for a registry that knows even leases only."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.error: HomeportError | None = None

    async def call(self, request: Renew, _ttl_s: float) -> Renewed:
        self.calls.append(request.leases)
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return Renewed(tuple([0.0 if lease % 2 else 10.0 for lease in request.leases]))


@virtual_time(seed=1)
async def test_what_one_tick_wants_renewed_goes_in_one_call() -> None:
    asked = Asked()
    renewals = Renewals(asked.call, random.Random(1))
    ttls_s = await asyncio.gather(*(renewals.renew(lease, 10.0) for lease in (2, 3, 4, 2)))
    assert ttls_s == [10.0, 0.0, 10.0, 10.0]
    assert asked.calls == [(2, 3, 4)]
    await asyncio.gather(*(renewals.renew(lease, 10.0) for lease in range(RENEW_LEASES_MAX + 1)))
    assert [len(leases) for leases in asked.calls[1:]] == [RENEW_LEASES_MAX, 1]


@virtual_time(seed=2)
async def test_a_failure_reaches_everyone_and_a_cancelled_one_keeps_nobody_waiting() -> None:
    asked = Asked()
    renewals = Renewals(asked.call, random.Random(1))
    gone, stays = asyncio.ensure_future(renewals.renew(2, 10.0)), asyncio.ensure_future(renewals.renew(4, 10.0))
    await asyncio.sleep(0.005)
    gone.cancel()
    assert await stays == 10.0
    asked.error = Unavailable("nobody there")
    failed = await asyncio.gather(renewals.renew(2, 10.0), renewals.renew(4, 10.0), return_exceptions=True)
    assert [type(one) for one in failed] == [Unavailable, Unavailable]
    assert failed[0] is not failed[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_renewal_is_never_late_and_early_by_less_than_a_tick(seed: int) -> None:
    rng = random.Random(seed)
    renewals = Renewals(Asked().call, rng)
    for _ in range(1000):
        period_s = rng.uniform(0.1, 1000.0)
        due_s = period_s * rng.uniform(0.0, 1.1)
        delay_s = renewals.delay_s(rng.uniform(0.0, 1e6), period_s, due_s)
        assert max(0.0, due_s - period_s / TICKS_PER_PERIOD) - 1e-6 <= delay_s <= due_s


@virtual_time(seed=3)
async def test_a_hundred_registrations_of_one_client_renew_in_a_few_calls() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as client:
        renewed: list[int] = []
        renew = registry.operations.renew

        def counted(request: Renew, peer: object) -> object:
            renewed.append(len(request.leases))
            return renew(request, peer)  # type: ignore[arg-type]  # it is a peer

        registry.operations._handlers[Renew] = counted
        for at in range(100):
            await client.register("orders", port=at + 1, id=str(at), ttl_s=9.0).start()
            await asyncio.sleep(0.01)
        began = loop.time()
        await asyncio.sleep(90.0)
        assert len(await client.resolve("orders")) == 100
        periods = (loop.time() - began) / 3.0
        assert sum(renewed) >= 100 * (periods - 2), "each renews as often as ever"
        assert len(renewed) <= 1.3 * TICKS_PER_PERIOD * periods


@virtual_time(seed=3)
async def test_without_a_registry_very_many_registrations_ask_for_nothing() -> None:
    asked: list[str] = []

    class Counting(Client):
        async def call(self, request: Request[Any], *, timeout_s: float = CALL_S) -> Any:
            asked.append(request.method)
            return await super().call(request, timeout_s=timeout_s)

    async with Counting("127.0.0.1:8300") as client:
        async with Registry() as registry:
            await registry.serve(rpc="127.0.0.1:8300")
            registrations = [client.register("orders", port=1 + at, ttl_s=3.0) for at in range(50)]
            for one in registrations:
                await one.start()
            await asyncio.sleep(10)
            assert all(one.registered and one.error is None for one in registrations)
            assert asked.count("renew") > 5
        await asyncio.sleep(10)
        assert all(isinstance(one.error, Unavailable) for one in registrations)
        asked.clear()
        await asyncio.sleep(600)
        assert asked == []
        async with Registry() as registry:
            await registry.serve(rpc="127.0.0.1:8300")
            await asyncio.sleep(30)
            assert len(await client.resolve("orders")) == 50
        assert asked.count("register") == 50


@virtual_time(seed=6)
async def test_over_another_link_everything_is_renewed_in_one_call_and_only_what_is_gone_is_registered() -> None:
    asked: list[Request[Any]] = []

    class Noting(Client):
        async def call(self, request: Request[Any], *, timeout_s: float = CALL_S) -> Any:
            asked.append(request)
            return await super().call(request, timeout_s=timeout_s)

    async with Registry() as registry, Noting("127.0.0.1:8300") as client:
        await registry.serve(rpc="127.0.0.1:8300")
        registrations = [client.register("orders", port=1 + at, ttl_s=30.0) for at in range(50)]
        for one in registrations:
            await one.start()
        before = {one.lease for one in registrations}
        gone = registrations[7].lease
        await registry.store.lease_revoke(gone)
        asked.clear()
        _break_links(registry)
        await asyncio.sleep(5)
        renewals = [one for one in asked if isinstance(one, Renew)]
        assert [(set(one.leases), one.moved) for one in renewals] == [(before, True)]
        assert [one.lease for one in asked if isinstance(one, Register)] == [gone]
        assert all(one.registered and one.error is None for one in registrations)
        asked.clear()
        await asyncio.sleep(30)
        assert not any(one.moved for one in asked if isinstance(one, Renew)), "that is said once"


async def test_a_state_that_could_not_be_told_is_told_when_the_registry_is_back(
    tmp_path: Path, unused_port: int, eventually: Callable[..., Awaitable[None]]
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        async with Registry(tmp_path) as registry:
            await registry.serve(rpc=address)
            registration = client.register("orders", port=1, ttl_s=60.0)
            await registration.start()
            lease = registration.lease
        await eventually(lambda: not client.connected)
        with pytest.raises(Unavailable):
            await registration.set_state("draining", timeout_s=0.1)
        async with Registry(tmp_path) as registry, registry.client() as inside:
            assert len(await inside.resolve("orders")) == 1
            await registry.serve(rpc=address)
            subscription = inside.subscribe("orders")
            assert await subscription.wait_known(1.0)
            await eventually(lambda: {one.state for one in subscription.instances.values()} == {"draining"})
            assert registration.lease == lease
            await registration.stop()


async def test_a_report_that_could_not_be_told_is_told_when_the_registry_is_back(
    tmp_path: Path, unused_port: int, eventually: Callable[..., Awaitable[None]]
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address) as client:
        async with Registry(tmp_path) as registry:
            await registry.serve(rpc=address)
            check = Check(name="queue", kind="ttl", ttl_s=60.0, initial="passing")
            registration = client.register("orders", port=1, ttl_s=60.0, checks=[check])
            await registration.start()
            await registration.report("queue", "passing")
        await eventually(lambda: not client.connected)
        reporting = asyncio.ensure_future(registration.report("queue", "critical"))
        await asyncio.sleep(0)  # it waits for a link
        reporting.cancel()
        async with Registry(tmp_path) as registry, registry.client() as inside:
            assert len(await inside.resolve("orders")) == 1
            await registry.serve(rpc=address)
            subscription = inside.subscribe("orders")
            await eventually(lambda: {one.status for one in subscription.instances.values()} == {"critical"})
            await registration.stop()


def _break_links(registry: Registry) -> None:
    """Break every connection to the registry, and leave it running."""
    assert registry._rpc is not None
    registry._rpc.dismiss("for a test")


@virtual_time(seed=5)
async def test_registrations_are_made_again_a_few_at_a_time() -> None:
    under_way = most = 0

    class Counting(Client):
        async def call(self, request: Request[Any], *, timeout_s: float = CALL_S) -> Any:
            nonlocal under_way, most
            under_way += request.method == "register"
            most = max(most, under_way)
            try:
                return await super().call(request, timeout_s=timeout_s)
            finally:
                under_way -= request.method == "register"

    async with Counting("127.0.0.1:8300") as client:
        async with Registry() as registry:
            await registry.serve(rpc="127.0.0.1:8300")
            for at in range(50):
                await client.register("orders", port=1 + at, ttl_s=30.0).start()
        assert most == 1
        async with Registry() as registry:
            await registry.serve(rpc="127.0.0.1:8300")
            await asyncio.sleep(10)
            assert len(registry.catalogue.services["orders"].entries) == 50
        assert most == AGAIN_AT_ONCE


@virtual_time(seed=4)
@pytest.mark.parametrize(("ttl_s", "leaves"), [(3.0, True), (20.0, True), (60.0, False)])
async def test_a_registry_that_is_slow_to_renew_is_left_only_where_the_ttl_leaves_no_time(
    ttl_s: float, leaves: bool
) -> None:
    left: list[float] = []

    class Slow(Client):
        async def call(self, request: Request[Any], *, timeout_s: float = CALL_S) -> Any:
            await asyncio.sleep(timeout_s)
            raise Unavailable("nobody")

        def go_elsewhere(self, epoch: int, error: HomeportError) -> None:
            left.append(asyncio.get_running_loop().time())

    client = Slow("127.0.0.1:1", "127.0.0.1:2")
    begun = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable):
        await client.renewals.renew(7, ttl_s)
    assert [pytest.approx(when - begun, abs=0.01) for when in left] == ([max(2.0, ttl_s / 5)] if leaves else [])
