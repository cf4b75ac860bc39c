"""How clients come back: after drawn delays, to whichever registry is there, within the time that a call has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.client import Client, HomeportError, Unavailable
from homeport.client.core.backoff import BASE_S, CAP_S, Backoff
from homeport.client.rpc import CONNECT_S
from homeport.mesh.testing import virtual_now, virtual_time
from homeport.registry import Registry

NOWHERE = "127.0.0.1:9"


@given(st.integers(0, 2**32), st.integers(1, 100))
def test_a_delay_is_drawn_from_the_base_to_three_times_the_last_up_to_the_cap(seed: int, count: int) -> None:
    backoff = Backoff(random.Random(seed))
    last_s = BASE_S
    for _ in range(count):
        delay_s = backoff.next_s()
        assert BASE_S <= delay_s <= min(CAP_S, 3 * last_s)
        last_s = delay_s
    backoff.reset()
    assert backoff.next_s() <= 3 * BASE_S, "after a success it begins anew"


def test_two_crowds_that_failed_equally_often_do_not_try_at_the_same_time() -> None:
    rng = random.Random(1)
    backoffs = [Backoff(rng) for _ in range(1000)]
    for tries in (3, 6):
        for _ in range(tries):
            delays_s = sorted(backoff.next_s() for backoff in backoffs)
        width_s = delays_s[-1] / 20
        fullest = max(
            sum(at <= delay_s < at + width_s for delay_s in delays_s) for at in (n * width_s for n in range(20))
        )
        assert fullest < len(delays_s) / 2, "no twentieth of the time holds half of the tries"


async def registry_at(address: str) -> Registry:
    registry = Registry(guard=False)
    await registry.start()
    await registry.serve(rpc=address)
    return registry


async def address_and_registry() -> tuple[str, Registry]:
    registry = Registry(guard=False)
    await registry.start()
    at = await registry.serve(rpc="127.0.0.1:0")
    assert at.rpc is not None
    return at.rpc, registry


@virtual_time(seed=3)
async def test_the_first_address_that_answers_serves_and_the_next_takes_over() -> None:
    one, first = await address_and_registry()
    two, second = await address_and_registry()
    async with Client(NOWHERE, one, two) as client:
        await client.kv.put("who", b"first")
        await first.close()
        asked_s = virtual_now()
        assert await client.kv.get("who") is None, "this is the other one, which knows nothing of it"
        assert virtual_now() - asked_s < 1.0
        first = await registry_at(one)
        await second.close()
        assert await client.wait_relinked(2, 10.0)
        await client.kv.put("who", b"first again")
        assert client.link_epoch == 3
    await first.close()


Call = Callable[[Client], Awaitable[Any]]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.resolve("orders", timeout_s=7.0),
        lambda client: client.resolver().follow("orders", timeout_s=7.0),
        lambda client: client.register("orders", port=1).start(),
        lambda client: client.kv.get("a"),
        lambda client: client.services(),
    ],
    ids=["resolve", "follow", "register", "get", "services"],
)
@pytest.mark.parametrize("addresses", [(NOWHERE,), (NOWHERE, "127.0.0.1:10", "127.0.0.1:11")], ids=["one", "three"])
def test_a_timeout_is_for_all_of_a_call_however_often_it_tries(call: Call, addresses: tuple[str, ...]) -> None:
    @virtual_time(seed=4)
    async def run() -> None:
        async with Client(*addresses) as client:
            asked_s = virtual_now()
            with pytest.raises(Unavailable):
                await call(client)
            assert 4.9 < virtual_now() - asked_s < 7.1, "5 s where nobody says otherwise"

    run()


@virtual_time(seed=5)
async def test_a_timeout_is_for_all_of_a_call_whose_links_break_again_and_again() -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.sleep(0.3)
        writer.close()

    server = await asyncio.start_server(breaks, "127.0.0.1", 8300)
    async with Client("127.0.0.1:8300") as client:
        asked_s = virtual_now()
        with pytest.raises(HomeportError):
            await client.resolve("orders", timeout_s=3.0)
        assert 2.9 < virtual_now() - asked_s < 3.1
    server.close()


@virtual_time(seed=6)
async def test_an_address_where_nobody_says_hello_costs_its_own_time_and_no_more() -> None:
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 8300)
    two, second = await address_and_registry()
    async with Client("127.0.0.1:8300", two) as client:
        asked_s = virtual_now()
        assert await client.wait_connected(30.0)
        assert virtual_now() - asked_s < CONNECT_S + 1.0
        await client.kv.put("a", b"1")
    silent.close()
    await second.close()
