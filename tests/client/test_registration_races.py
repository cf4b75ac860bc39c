"""A registration whose registry goes, comes, or answers late just as it is drained, stopped or started; and rivals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from homeport.client import (
    Client,
    Closed,
    ConnectionLost,
    HomeportError,
    InvalidArgument,
    LeaseGone,
    Link,
    Receiver,
    Registration,
    StreamTransport,
)
from homeport.client.core.messages import LeaseRevoke, Notice, Register, Renew, Request, Welcome
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry

Eventually = Callable[..., Awaitable[None]]
R = TypeVar("R")


class LateAnswers:
    """A transport to a real registry on which the answers to some requests come only once `gate` is open."""

    def __init__(self, address: str, *late: type[Request[Any]]) -> None:
        self._transport = StreamTransport(address)
        self.late = late
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: asyncio.Queue[Request[Any]] = asyncio.Queue()  # the late ones, once the registry has them

    async def connect(self, receiver: Receiver) -> Link:
        return LateLink(await self._transport.connect(receiver), self)


class LateLink:
    def __init__(self, link: Link, answers: LateAnswers) -> None:
        self._link = link
        self._answers = answers

    @property
    def welcome(self) -> Welcome:
        return self._link.welcome

    def call(self, request: Request[R]) -> Awaitable[R]:
        answer = asyncio.ensure_future(self._link.call(request))
        return self._held(request, answer) if isinstance(request, self._answers.late) else answer

    async def _held(self, request: Request[R], answer: asyncio.Future[R]) -> R:
        done = await answer
        self._answers.asked.put_nowait(request)
        await self._answers.gate.wait()
        return done

    def notify(self, notice: Notice) -> None:
        self._link.notify(notice)

    async def close(self) -> None:
        await self._link.close()


def instances(registry: Registry) -> dict[str, str]:
    """What stands, by id, with its state."""
    found = registry.catalogue.services.values()
    return {e.registered.id: e.registered.state for service in found for e in service.entries.values()}


def stands(registration: Registration) -> tuple[bool, type[HomeportError] | None]:
    return registration.registered, type(registration.error) if registration.error is not None else None


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
async def test_an_instance_whose_start_was_cancelled_does_not_stay(ttl_s: float) -> None:
    async with Registry() as registry:
        transport = LateAnswers((await registry.serve(rpc="127.0.0.1:0")).rpc or "", Register)
        async with Client(transport=transport) as client:
            transport.gate.clear()
            starting = asyncio.ensure_future(client.register("orders", port=1, id="o", ttl_s=ttl_s).start())
            await asyncio.wait_for(transport.asked.get(), 30.0)
            assert "o" in instances(registry)
            starting.cancel()
            asyncio.get_running_loop().call_later(0.02, transport.gate.set)
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert instances(registry) == {}


async def test_stopping_while_it_is_registered_again_leaves_nothing_behind(
    unused_port: int, eventually: Eventually
) -> None:
    address = f"127.0.0.1:{unused_port}"
    transport = LateAnswers(address, Register)
    async with Client(transport=transport) as client:
        registration = client.register("orders", port=1, id="o", ttl_s=30.0)
        async with Registry() as registry:
            await registry.serve(rpc=address)
            await registration.start()
            await asyncio.wait_for(transport.asked.get(), 30.0)
        await eventually(lambda: not client.connected)
        transport.gate.clear()
        transport.asked = asyncio.Queue()
        async with Registry() as registry:
            await registry.serve(rpc=address)
            await asyncio.wait_for(transport.asked.get(), 30.0)
            assert "o" in instances(registry)
            asyncio.get_running_loop().call_later(0.02, transport.gate.set)
            await registration.stop()
            assert instances(registry) == {}


async def test_draining_while_it_is_registered_again_takes_it_out_of_rotation(
    unused_port: int, eventually: Eventually
) -> None:
    address = f"127.0.0.1:{unused_port}"
    transport = LateAnswers(address, Register)
    async with Client(transport=transport) as client:
        registration = client.register("orders", port=1, id="o", ttl_s=30.0)
        async with Registry() as registry:
            await registry.serve(rpc=address)
            await registration.start()
            await asyncio.wait_for(transport.asked.get(), 30.0)
        await eventually(lambda: not client.connected)
        transport.gate.clear()
        transport.asked = asyncio.Queue()
        async with Registry() as registry:
            await registry.serve(rpc=address)
            await asyncio.wait_for(transport.asked.get(), 30.0)
            asyncio.get_running_loop().call_later(0.02, transport.gate.set)
            await registration.drain(min_s=0.0)
            assert instances(registry) == {"o": "draining"}
            await registration.stop()


async def test_a_state_reaches_the_registry_although_the_lease_ended_before(eventually: Eventually) -> None:
    async with Registry() as registry, registry.client() as client:
        async with client.register("orders", port=1, id="o", ttl_s=30.0) as registration:
            before = registration.lease
            await client.call(LeaseRevoke(lease=before))
            assert instances(registry) == {}
            revision = await registration.set_state("draining")
            assert instances(registry) == {"o": "draining"}
            assert registration.lease != before
            assert revision == registry.catalogue.services["orders"].index
            await client.kv.put("unrelated", b"1")
            assert await registration.set_state("draining") == revision, "saying it again changes nothing"
        assert instances(registry) == {}


async def test_a_registration_that_was_not_started_or_was_stopped_changes_nobodys_state() -> None:
    async with Registry() as registry, registry.client() as client:
        other = client.register("orders", port=2, id="o")
        with pytest.raises(Closed):
            await other.set_state("draining")
        async with client.register("orders", port=1, id="o"):
            for act in (other.set_state("draining"), other.drain()):
                with pytest.raises(Closed):
                    await act
            assert instances(registry) == {"o": "up"}


@pytest.mark.parametrize("ack_timeout_s", [60.0, -1.0, float("nan")])
async def test_a_drain_that_no_registry_would_wait_for_is_refused_before_anything_happens(ack_timeout_s: float) -> None:
    async with (
        Registry() as registry,
        registry.client() as client,
        client.register("orders", port=1, id="o") as registration,
    ):
        with pytest.raises(InvalidArgument, match="allowed: 0 to 30"):
            await registration.drain(ack_timeout_s=ack_timeout_s)
        assert instances(registry) == {"o": "up"}


@virtual_time(seed=11)
async def test_of_two_that_register_the_same_id_the_later_stays_and_the_earlier_waits() -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        async with Client(at, rng=running_loop().rng) as one, Client(at, rng=running_loop().rng) as two:
            first = one.register("orders", port=1, id="same", ttl_s=3.0)
            second = two.register("orders", port=2, id="same", ttl_s=3.0)
            await first.start()
            await asyncio.sleep(1.5)
            await second.start()
            await asyncio.sleep(2.0)
            index = registry.catalogue.services["orders"].index
            lease = second.lease
            await asyncio.sleep(60.0)
            assert registry.catalogue.services["orders"].index == index, "the address alternates"
            assert stands(second) == (True, None)
            assert second.lease == lease
            assert stands(first) == (False, LeaseGone)
            with pytest.raises(LeaseGone):
                await first.set_state("draining")
            assert instances(registry) == {"same": "up"}
            await second.stop()
            await asyncio.sleep(2.0)
            assert stands(first) == (True, None)
            await first.stop()
            assert instances(registry) == {}


@virtual_time(seed=12)
async def test_stopping_the_one_that_lost_its_id_leaves_the_other_registered() -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        async with Client(at, rng=running_loop().rng) as one, Client(at, rng=running_loop().rng) as two:
            first, second = one.register("orders", port=1, id="same"), two.register("orders", port=2, id="same")
            await first.start()
            await second.start()
            await asyncio.sleep(20.0)
            await first.stop()
            assert instances(registry) == {"same": "up"}
            await second.stop()


@virtual_time(seed=13)
async def test_after_failed_renewals_the_next_one_comes_within_a_renewal_period() -> None:
    loop = running_loop()
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        transport = LateAnswers(at, Renew)
        async with (
            Client(transport=transport, rng=loop.rng) as client,
            client.register("orders", port=1, id="o", ttl_s=1.5) as registration,
        ):
            for _ in range(3):
                transport.gate.clear()  # answers stay away for longer than calls wait
                await asyncio.sleep(30.0)
                assert registration.error is not None
                transport.gate.set()
                opened = loop.time()
                transport.asked = asyncio.Queue()
                await asyncio.wait_for(transport.asked.get(), 30.0)
                await asyncio.wait_for(transport.asked.get(), 30.0)
                assert loop.time() - opened <= 2 * 0.5 * 1.1 + 5.0
                await asyncio.sleep(0.0)
            await asyncio.sleep(1.0)
            assert registration.error is None
            assert registration.registered


async def test_a_registration_ends_with_its_client(eventually: Eventually) -> None:
    async with Registry() as registry:
        at = (await registry.serve(rpc="127.0.0.1:0")).rpc or ""
        async with Client(at) as client:
            registration = client.register("orders", port=1)
            await registration.start()
            assert registration.registered
        await eventually(lambda: not registration.registered)
        assert isinstance(registration.error, Closed)
        await registration.stop()


async def test_a_registration_without_a_port_gets_an_id_of_its_own() -> None:
    client = Client("127.0.0.1:1", rng=random.Random(1))
    ids = {client.register("orders").instance.id for _ in range(100)}
    assert len(ids) == 100
    assert client.register("orders", port=7).instance.id == client.register("orders", port=7).instance.id


@virtual_time(seed=14)
async def test_a_registration_whose_answer_was_lost_is_not_mistaken_for_a_rival() -> None:
    async with Registry() as registry:
        transport = LateAnswers((await registry.serve(rpc="127.0.0.1:0")).rpc or "")
        async with (
            Client(transport=transport, rng=running_loop().rng) as client,
            client.register("orders", port=1, id="o", ttl_s=3.0) as registration,
        ):
            await asyncio.sleep(2.0)
            await client.call(LeaseRevoke(lease=registration.lease))
            transport.late = (Register,)
            transport.gate.clear()
            with pytest.raises(ConnectionLost):
                await registration.set_state("draining")
            await asyncio.sleep(5.0)
            transport.gate.set()
            transport.late = ()
            await asyncio.sleep(3.0)
            assert registration.registered
            assert registration.error is None
            assert instances(registry) == {"o": "draining"}
