"""A mesh in one loop: the same promises in virtual time and over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from homeport.client import InvalidArgument
from homeport.mesh.testing import Mesh, TryError, run_virtual, virtual_now, virtual_time

Scenario = Callable[[], Awaitable[None]]


def who(mesh: Mesh) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text=mesh.here)

    return answer


async def asked(mesh: Mesh, times: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _ in range(times):
        answer = await mesh.call("orders")
        assert answer.status == 200
        counts[answer.body.decode()] = counts.get(answer.body.decode(), 0) + 1
    return counts


async def killed_instances_fail_nobody() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=3)
        assert set(await asked(mesh, 60)) == {"orders#1", "orders#2", "orders#3"}
        mesh.kill("orders#2")
        assert set(await asked(mesh, 60)) == {"orders#1", "orders#3"}
        await mesh.restart("orders#2")
        assert set(await asked(mesh, 60)) == {"orders#1", "orders#2", "orders#3"}
        assert mesh.failed == 0, mesh.failures
        assert mesh.calls == 180


async def a_service_calls_another_by_its_own_sidecar() -> None:
    async with Mesh() as mesh:

        async def front(_request: web.BaseRequest) -> web.Response:
            answer = await mesh.call("orders")
            return web.Response(text=f"{mesh.here} asked {answer.body.decode()}")

        await mesh.service("orders", who(mesh))
        await mesh.service("front", front)
        assert mesh.here == "caller"
        assert (await mesh.call("front")).body == b"front#1 asked orders#1"
        outbound = mesh.members["front#1"].sidecar.outbound
        assert outbound is not None
        assert outbound.requests_total == 1


async def a_restarted_registry_gets_everybody_back() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2)
        await asked(mesh, 10)
        mesh.kill("registry")
        await asked(mesh, 10)
        await mesh.restart("registry")
        async for event in mesh.client.watch("orders"):
            if len(event.changed) == 2 or len(await mesh.client.resolve("orders")) == 2:
                break
        await asked(mesh, 10)
        assert mesh.failed == 0, mesh.failures


async def a_failed_call_is_counted_and_told() -> None:
    async def broken(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=500)

    async with Mesh() as mesh:
        await mesh.service("orders", broken)
        assert (await mesh.call("orders")).status == 500
        assert (await mesh.call("nobody")).status == 404
        assert mesh.failed == 2
        assert "500" in mesh.failures[0]


async def one_that_leaves_in_good_order_fails_nobody() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2)
        stopping = asyncio.ensure_future(mesh.stop("orders#1"))
        while not stopping.done():
            await asked(mesh, 1)
            await asyncio.sleep(0.05)
        assert set(await asked(mesh, 10)) == {"orders#2"}
        assert mesh.failed == 0


async def names_that_are_not_there_are_told() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh))
        with pytest.raises(InvalidArgument, match="there are registry, caller, orders#1"):
            mesh.kill("orders#7")
        mesh.kill("orders#1")
        with pytest.raises(InvalidArgument, match="was killed"):
            mesh.kill("orders#1")


SCENARIOS = [
    killed_instances_fail_nobody,
    a_service_calls_another_by_its_own_sidecar,
    a_restarted_registry_gets_everybody_back,
    a_failed_call_is_counted_and_told,
    one_that_leaves_in_good_order_fails_nobody,
    names_that_are_not_there_are_told,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_over_real_sockets(scenario: Scenario) -> None:
    await scenario()


def test_over_real_sockets_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(killed_instances_fail_nobody())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_in_virtual_time(scenario: Callable[[], object], seed: int) -> None:
    run_virtual(scenario(), seed=seed)  # type: ignore[arg-type]


@virtual_time(seed=3)
async def test_a_paused_instance_is_out_when_its_lease_ends() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2, ttl_s=10)
        began = virtual_now()
        mesh.pause("orders#1")
        async for _ in mesh.client.watch("orders"):
            if len(await mesh.client.resolve("orders")) == 1:
                break
        assert 6.0 <= virtual_now() - began <= 10.5
        mesh.resume("orders#1")
        async for _ in mesh.client.watch("orders"):
            if len(await mesh.client.resolve("orders")) == 2:
                break


@virtual_time(seed=4)
async def test_a_partition_between_caller_and_instance_costs_time_but_no_request() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2)
        await asked(mesh, 10)
        mesh.partition("caller", "orders#1")
        assert set(await asked(mesh, 10)) <= {"orders#2"}
        mesh.heal()
        assert mesh.failed == 0


async def test_an_instance_cut_off_from_the_registry_serves_on_and_is_out_when_its_lease_ends(
    eventually: Callable[..., Awaitable[None]],
) -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2, ttl_s=1)
        await mesh.client.resolve("orders")
        mesh.partition("orders#1", "registry")
        subscription = mesh.client.subscribe("orders")
        await eventually(lambda: len(subscription.instances) == 1)
        mesh.heal()
        await eventually(lambda: len(subscription.instances) == 2)
        subscription.close()


async def test_a_paused_instance_over_real_sockets_answers_nobody_until_it_goes_on() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh))
        mesh.pause("orders#1")
        with pytest.raises(TryError):
            await mesh.call("orders", timeout_s=0.2)
        mesh.resume("orders#1")
        assert (await mesh.call("orders")).status == 200
        assert mesh.failed == 1


async def test_partitions_that_real_sockets_cannot_have_are_refused() -> None:
    async with Mesh() as mesh:
        await mesh.service("orders", who(mesh), instances=2)
        for a, b in (("orders#1", "orders#2"), ("caller", None), ("caller", "orders#1")):
            with pytest.raises(InvalidArgument, match="virtual time"):
                mesh.partition(a, b)
