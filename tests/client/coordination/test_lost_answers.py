"""Coordination when answers are lost, requests come late, and looks are a moment old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from homeport.client import Claim, Client, Closed, ConnectionLost, LeaseGone, Session, Unavailable
from homeport.client.coordination import Holding
from homeport.client.core.messages import KvList, KvPage, KvTxn
from homeport.client.core.txn import Delete, Put
from homeport.mesh.testing import virtual_time
from tests.client.coordination.sites import REGISTRY, Site, host

KINDS: dict[str, Callable[[Client | Session], Holding]] = {
    "lock": lambda of: of.lock("x"),
    "semaphore": lambda of: of.semaphore("x", 1),
    "election": lambda of: of.election("x"),
    "claim": lambda of: of.queue("x").claim(),
    "double barrier": lambda of: of.double_barrier("x", 2),
}


def writes(key: bytes) -> Callable[[Any], bool]:
    """Whether a request is a transaction that writes this key."""

    def found(request: Any) -> bool:
        ops: Sequence[Any] = request.then if isinstance(request, KvTxn) else ()
        return any(isinstance(op, Put | Delete) and op.key == key for op in ops)

    return found


class Losing:
    """Loses the first answer to a request of some kind; with `late` the request too, until it is to `arrive`."""

    def __init__(self, client: Client, kind: Callable[[Any], bool], *, late: bool, then: Any = None) -> None:
        self.lost: Any = None
        self._call = client.call
        self._kind = kind
        self._late = late
        self._then = then
        client.call = self.call  # type: ignore[method-assign]

    async def call(self, request: Any, **timeout: float) -> Any:
        if self.lost is not None or not self._kind(request):
            return await self._call(request, **timeout)
        self.lost = request
        if not self._late:
            await self._call(request, **timeout)
        if self._then is not None:
            await self._then()
        raise ConnectionLost("the connection broke")

    async def arrive(self) -> None:
        assert self.lost is not None, "nothing was lost"
        await self._call(self.lost)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ttl_s", [1.0, 10.0, 60.0])
def test_who_does_not_wait_is_told_that_no_registry_answers(kind: str, ttl_s: float) -> None:
    @virtual_time(seed=1)
    async def run() -> None:
        async with Site() as site:
            client = await site.client(0)
            await client.wait_connected()
            holding = KINDS[kind](client)
            holding._ttl_s = ttl_s
            call = client.call

            async def cut_off(request: Any, **timeout: float) -> Any:  # once it has its lease
                if isinstance(request, KvTxn):
                    site.network.cut(REGISTRY, host(0))
                return await call(request, **timeout)

            client.call = cut_off  # type: ignore[method-assign]
            begun_at = site.loop.time()
            with pytest.raises(Unavailable):
                await holding.acquire(wait=False)
            assert site.loop.time() - begun_at <= 6.0, "within what a call has, however long the lease would live"

    run()


@virtual_time(seed=2)
async def test_who_does_not_wait_is_told_what_really_ended_it() -> None:
    async with Site() as site:
        client = await site.client(0)
        async with client.session(ttl_s=2.0) as session:
            site.network.cut(REGISTRY, host(0))
            with pytest.raises(LeaseGone):
                await session.lock("x").acquire(wait=False)
        site.network.heal()
        assert await client.wait_connected(30.0)
        site.network.stall(REGISTRY)
        trying = asyncio.ensure_future(client.lock("x").acquire(wait=False))
        await asyncio.sleep(0.5)
        await client.close()
        with pytest.raises((Closed, ConnectionLost)):
            await trying


@virtual_time(seed=3)
async def test_a_request_to_hold_that_comes_after_the_release_closes_no_gate() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        losing = Losing(a, writes(b"gate"), late=True)
        await a.barrier("gate").hold()
        assert not await b.barrier("gate").wait(timeout_s=1.0)
        await b.barrier("gate").release()
        await losing.arrive()
        assert await b.barrier("gate").wait(timeout_s=1.0), "it was released, and nobody has held it since"


@virtual_time(seed=4)
async def test_a_request_to_release_that_comes_after_the_next_hold_opens_no_gate() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        await b.barrier("gate").hold()
        losing = Losing(a, writes(b"gate"), late=True)
        await a.barrier("gate").release()
        assert await b.barrier("gate").wait(timeout_s=1.0)
        await b.barrier("gate").hold()
        await losing.arrive()
        assert not await b.barrier("gate").wait(timeout_s=1.0), "it was held anew, and nobody has released it since"


@virtual_time(seed=5)
async def test_a_gate_is_held_once_although_the_answer_to_that_was_lost() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        Losing(a, writes(b"gate"), late=False, then=b.barrier("gate").release)
        await a.barrier("gate").hold()
        assert await b.barrier("gate").wait(timeout_s=1.0), "it was held, then released"


@virtual_time(seed=6)
async def test_a_gate_whose_registry_began_anew_is_held_and_released_as_ever() -> None:
    async with Site() as site:
        client = await site.client(0)
        gate = client.barrier("gate")
        await gate.hold()
        await gate.release()
        await site.registry.close()
        await site.start_registry()
        await gate.hold()
        assert not await gate.wait(timeout_s=1.0)
        await gate.release()
        assert await gate.wait(timeout_s=1.0)


@virtual_time(seed=7)
async def test_a_consumer_whose_look_at_the_claims_is_old_does_not_take_what_another_has() -> None:
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        await a.queue("q").put(b"only")
        call = b.call
        old: list[KvList] = []

        async def behind(request: Any, **timeout: float) -> Any:  # as a replica may be, by a moment
            if isinstance(request, KvList) and request.prefix.endswith(b"/claims/") and not old:
                old.append(request)
                return KvPage(1, (), more=False)
            return await call(request, **timeout)

        async with a.queue("q").claim() as first:
            b.call = behind  # type: ignore[method-assign]
            second: Claim = b.queue("q").claim()
            assert not await second.acquire(timeout_s=2.0), "the item is claimed"
            assert old, "it looked"
            assert second.value == b""
            assert first.held
        assert site.user_keys() == [b"q/~queue/tail"], "the first has done it"


@virtual_time(seed=8)
async def test_a_registry_that_forgets_leaves_two_holders_for_a_third_of_the_ttl_at_most() -> None:
    """The exception that is told with the promise of one holder."""
    async with Site() as site:
        a, b = await site.client(0), await site.client(1)
        lock = a.lock("l", ttl_s=9.0)
        await lock.acquire()
        epoch = a.link_epoch
        await site.registry.close()
        await site.start_registry()
        assert await a.wait_relinked(epoch, 30.0)
        async with b.lock("l") as other, asyncio.timeout(3.0 + 0.5):
            assert other.held
            await lock.lost.wait()
