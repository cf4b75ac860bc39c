"""What is shown although nothing says so in the store: the overlay while it is read-only, and the mass-expiry guard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from homeport.client import Check, Client, Instance
from homeport.client.core.errors import ReadOnly
from homeport.client.core.messages import (
    Deregister,
    KvPut,
    LeaseGrant,
    Register,
    Registered,
    Renew,
    ReportCheck,
    Resolve,
    Stats,
)
from homeport.mesh.testing import running_loop, virtual_time
from homeport.registry import Registry
from homeport.registry.core.health import Verdict
from homeport.registry.core.leases import TICK_S

Eventually = Callable[..., Awaitable[None]]

TTL_S = 5.0


async def register(client: Client, service: str, at: int, **more: object) -> Registered:
    instance = Instance(service=service, id=f"{service}-{at}", port=at + 1, ttl_s=TTL_S, **more)  # type: ignore[arg-type]
    return await client.call(Register(instance=instance))


async def everything(client: Client, service: str) -> dict[str, Instance]:
    found = await client.call(Resolve(service=service, passing=False))
    return {one.id: one for one in found.instances}


async def served(client: Client, service: str) -> set[str]:
    return {one.id for one in (await client.call(Resolve(service=service))).instances}


async def number(client: Client, name: str) -> int:
    return (await client.call(Stats())).numbers[name]


def fill_the_disk(registry: Registry, why: str | None = "the disk is full") -> None:
    registry.store.read_only = why


# --- the removing overlay -------------------------------------------------------------------------------------------


@virtual_time(seed=1)
async def test_while_nothing_can_be_written_an_expired_instance_leaves_the_answers() -> None:
    async with Registry() as registry, registry.client() as client:
        await register(client, "orders", 0)
        revision = registry.store.mvcc.revision
        fill_the_disk(registry)
        await asyncio.sleep(TTL_S - 0.01)
        assert await served(client, "orders") == {"orders-0"}
        await asyncio.sleep(TICK_S + 0.01)
        assert await served(client, "orders") == set()
        kept = (await everything(client, "orders"))["orders-0"]
        assert (kept.status, kept.mark) == ("critical", "unwritten")
        assert await number(client, "instances_unwritten") == 1
        assert registry.store.mvcc.revision == revision
        assert registry.store.mvcc.get(b"s/orders/" + kept.node.encode() + b"/orders-0"), "the store still says it"


@virtual_time(seed=2)
async def test_a_late_renewal_brings_it_back_as_long_as_its_end_is_not_written() -> None:
    async with Registry() as registry, registry.client() as client:
        lease = (await register(client, "orders", 0)).lease
        fill_the_disk(registry)
        await asyncio.sleep(TTL_S + TICK_S)
        assert await served(client, "orders") == set()
        assert (await client.call(Renew(leases=(lease,)))).ttls_s == (TTL_S,)
        assert await served(client, "orders") == {"orders-0"}
        assert (await everything(client, "orders"))["orders-0"].mark == ""
        await asyncio.sleep(TTL_S + TICK_S)
        assert await served(client, "orders") == set(), "and leaves again when that was the last one"


@virtual_time(seed=19)
async def test_who_renews_while_very_many_ends_are_being_written_is_healthy_again() -> None:
    async with Registry(guard=False) as registry, registry.client() as client:
        leases = [(await register(client, "orders", at)).lease for at in range(900)]  # several turns of the loop
        fill_the_disk(registry)
        await asyncio.sleep(TTL_S + TICK_S)
        assert await served(client, "orders") == set()
        renewed: dict[int, float | asyncio.Future[float]] = {}

        def renew_one(_revision: int, _changes: object) -> None:
            if len(registry.store.leases()) == 300 and not renewed:
                last = registry.store.leases()[-1]
                renewed[last] = registry.store.lease_renew(last)

        registry.store.listen(renew_one)
        fill_the_disk(registry, None)
        await asyncio.sleep(TICK_S)
        assert list(renewed.values()) == [TTL_S]
        assert registry.store.leases() == list(renewed)
        assert await served(client, "orders") == {f"orders-{leases.index(lease)}" for lease in renewed}


@virtual_time(seed=3)
async def test_what_the_overlay_said_is_written_when_the_store_recovers() -> None:
    async with Registry() as registry, registry.client() as client:
        await register(client, "orders", 0)
        fill_the_disk(registry)
        await asyncio.sleep(TTL_S + TICK_S)
        fill_the_disk(registry, None)
        await asyncio.sleep(TICK_S)
        assert await everything(client, "orders") == {}
        assert await number(client, "instances_unwritten") == 0


@virtual_time(seed=4)
async def test_followers_are_told_of_what_cannot_be_written() -> None:
    async with Registry() as registry, registry.client() as client:
        await register(client, "orders", 0)
        events = client.watch("orders")
        assert [one.available for one in (await anext(events)).changed] == [True]
        fill_the_disk(registry)
        change = await anext(events)
        assert [(one.status, one.mark) for one in change.changed] == [("critical", "unwritten")]
        await events.aclose()  # type: ignore[attr-defined]  # it is a generator


@virtual_time(seed=5)
async def test_a_ttl_check_that_falls_silent_counts_without_being_written() -> None:
    async with Registry() as registry, registry.client() as client:
        beat = Check(name="beat", kind="ttl", ttl_s=1.0, initial="passing")
        instance = Instance(service="orders", id="o", port=1, checks=(beat,))
        await client.call(Register(instance=instance))
        await client.call(ReportCheck(id="o", check="beat", status="passing"))
        fill_the_disk(registry)
        await asyncio.sleep(1.0 + TICK_S)
        assert await served(client, "orders") == set()
        fill_the_disk(registry, None)
        await asyncio.sleep(TICK_S)
        only = (await everything(client, "orders"))["o"]
        assert (only.status, only.mark) == ("critical", ""), "by what is written now"


@virtual_time(seed=6)
async def test_a_verdict_that_cannot_be_written_removes_and_never_adds() -> None:
    async with Registry() as registry, registry.client() as client:
        at = await client.call(Register(instance=Instance(service="orders", id="o", port=1)))
        key = (registry.node, "o")
        fill_the_disk(registry)
        registry._statuses.report(key, at.create_revision, "connect", Verdict("critical", "refused", refused=True))
        await asyncio.sleep(0.01)
        assert await served(client, "orders") == set()
        registry._statuses.report(key, at.create_revision, "connect", Verdict("passing"))
        await asyncio.sleep(1.1)
        assert await served(client, "orders") == {"o"}, "the overlay let go, and the store never said otherwise"
        fill_the_disk(registry, None)
        await asyncio.sleep(1.1)
        registry._statuses.report(key, at.create_revision, "connect", Verdict("critical", "refused", refused=True))
        await asyncio.sleep(0.01)
        fill_the_disk(registry)
        registry._statuses.report(key, at.create_revision, "connect", Verdict("passing"))
        await asyncio.sleep(1.1)
        assert await served(client, "orders") == set(), "what is written as critical is not lifted by what is not"


@virtual_time(seed=7)
async def test_a_verdict_on_an_earlier_registration_is_dropped() -> None:
    async with Registry() as registry, registry.client() as client:
        at = await client.call(Register(instance=Instance(service="orders", id="o", port=1)))
        fill_the_disk(registry)
        registry._statuses.report((registry.node, "o"), at.create_revision - 1, "connect", Verdict("critical"))
        await asyncio.sleep(1.1)
        assert await served(client, "orders") == {"o"}


@virtual_time(seed=8)
async def test_nothing_is_acknowledged_while_nothing_can_be_written() -> None:
    async with Registry() as registry, registry.client() as client:
        fill_the_disk(registry)
        with pytest.raises(ReadOnly, match="the disk is full"):
            await client.call(KvPut(key=b"a", value=b"1"))
        with pytest.raises(ReadOnly):
            await register(client, "orders", 0)


# --- the mass-expiry guard ------------------------------------------------------------------------------------------


@virtual_time(seed=9)
async def test_when_all_leases_end_at_once_the_instances_are_served_for_one_more_ttl() -> None:
    loop = running_loop()
    async with Registry() as registry, registry.client() as client:
        for at in range(300):  # more than one turn of the loop ends
            await register(client, "orders", at)
        last = loop.time()
        empty: list[float] = []
        following = client.subscribe("orders")
        await following.wait_known(1.0)
        following.listen(lambda _event: empty.append(loop.time()) if not following.instances else None)
        await asyncio.sleep(TTL_S + TICK_S)
        assert len(registry.store.leases()) == 0, "the leases themselves ended in time"
        found = await everything(client, "orders")
        assert {one.mark for one in found.values()} == {"stale"}
        assert len(await served(client, "orders")) == 300
        assert (await number(client, "instances_stale"), await number(client, "mass_expiries")) == (300, 1)
        await asyncio.sleep(TTL_S - 2 * TICK_S)
        assert len(await served(client, "orders")) == 300
        assert empty == []
        await asyncio.sleep(4 * TICK_S)
        assert await everything(client, "orders") == {}
        assert [2 * TTL_S <= when - last <= 2 * TTL_S + 3 * TICK_S for when in empty] == [True]


@virtual_time(seed=10)
async def test_instances_that_ended_just_before_the_rest_come_back_with_it() -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(30):
            await register(client, "orders", at)
            await asyncio.sleep(0.02)
        await asyncio.sleep(TTL_S + TICK_S)
        assert len(await served(client, "orders")) == 30


@virtual_time(seed=11)
@pytest.mark.parametrize(("ending", "renewing"), [(19, 0), (30, 30), (200, 250)])
async def test_fewer_than_twenty_or_half_of_them_just_end(ending: int, renewing: int) -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(ending):
            await register(client, "orders", at)
        kept = tuple([(await register(client, "users", at)).lease for at in range(renewing)])
        await asyncio.sleep(TTL_S / 2)
        await client.call(Renew(leases=kept))
        await asyncio.sleep(TTL_S / 2 + TICK_S)
        assert await everything(client, "orders") == {}
        assert len(await served(client, "users")) == renewing


@virtual_time(seed=18)
async def test_leases_of_anything_else_that_end_with_some_instances_make_no_mass_of_them() -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(25):
            await register(client, "orders", at)
        for _ in range(600):  # sessions, locks and keys: more than one turn of the loop ends
            await client.call(LeaseGrant(ttl_s=TTL_S))
        kept = tuple([(await register(client, "users", at)).lease for at in range(75)])
        await asyncio.sleep(TTL_S / 2)
        await client.call(Renew(leases=kept))
        await asyncio.sleep(TTL_S / 2 + TICK_S)
        assert registry.store.leases() == list(kept), "all others ended"
        assert await everything(client, "orders") == {}


@virtual_time(seed=12)
async def test_stale_instances_are_not_served_where_half_of_a_service_remains() -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(10):
            await register(client, "orders", at)
        for at in range(40):
            await register(client, "users", at)
        leases = tuple([(await register(client, "orders", 100 + at)).lease for at in range(10)])
        await asyncio.sleep(TTL_S / 2)
        await client.call(Renew(leases=leases))
        await asyncio.sleep(TTL_S / 2 + TICK_S)
        assert len(await served(client, "users")) == 40
        assert await served(client, "orders") == {f"orders-{100 + at}" for at in range(10)}
        assert sum(one.mark == "stale" for one in (await everything(client, "orders")).values()) == 10
        await client.call(Deregister(id="orders-100"))
        assert len(await served(client, "orders")) == 19, "fewer than half remain: now they are"


@virtual_time(seed=13)
async def test_a_stale_instance_that_registers_again_is_an_ordinary_one() -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(30):
            await register(client, "orders", at)
        await asyncio.sleep(TTL_S + TICK_S)
        await register(client, "orders", 0)
        moved = Instance(service="users", id="orders-1", port=2, ttl_s=TTL_S)
        await client.call(Register(instance=moved))
        found = await everything(client, "orders")
        assert (found["orders-0"].mark, len(found)) == ("", 29)
        assert set(await everything(client, "users")) == {"orders-1"}
        assert await number(client, "instances_stale") == 28


@virtual_time(seed=14)
async def test_neither_a_failing_check_nor_its_owner_is_overruled() -> None:
    async with Registry() as registry, registry.client() as client:
        created = [(await register(client, "orders", at)).create_revision for at in range(30)]
        at_node = registry.node
        registry._statuses.report((at_node, "orders-0"), created[0], "connect", Verdict("critical", refused=True))
        await asyncio.sleep(TTL_S + TICK_S)
        assert "orders-0" not in await everything(client, "orders"), "it failed before"
        registry._statuses.report((at_node, "orders-1"), created[1], "connect", Verdict("critical", refused=True))
        assert "orders-1" not in await everything(client, "orders"), "it fails now"
        assert (await client.call(Deregister(id="orders-2"))).applied
        assert "orders-2" not in await everything(client, "orders")
        assert not (await client.call(Deregister(id="orders-2"))).applied


@virtual_time(seed=15)
async def test_keys_know_no_such_mercy() -> None:
    async with Registry() as registry, registry.client() as client:
        for at in range(30):
            await register(client, "orders", at)
        lease = (await client.call(LeaseGrant(ttl_s=TTL_S))).lease
        await client.kv.put("a", b"1", lease=lease)
        await asyncio.sleep(TTL_S + TICK_S)
        assert await client.kv.get("a") is None
        assert len(await served(client, "orders")) == 30


@virtual_time(seed=16)
async def test_without_the_guard_they_all_go() -> None:
    async with Registry(guard=False) as registry, registry.client() as client:
        for at in range(30):
            await register(client, "orders", at)
        await asyncio.sleep(TTL_S + TICK_S)
        assert await everything(client, "orders") == {}


@virtual_time(seed=17)
async def test_who_was_to_be_kept_and_lives_on_after_all_is_an_ordinary_one_again() -> None:
    async with Registry() as registry, registry.client() as client:
        leases = tuple([(await register(client, "orders", at)).lease for at in range(30)])
        registry._doubts.ending(
            leases, 0, 1.0, 0.0
        )  # then the journal fails, so they do not end, and renewals are heard again
        for _ in range(4):
            await asyncio.sleep(TTL_S / 2)
            await client.call(Renew(leases=leases))
        await client.call(Deregister(id="orders-0"))
        assert set(await everything(client, "orders")) == {f"orders-{at}" for at in range(1, 30)}
        assert await number(client, "instances_stale") == 0
        await client.call(Renew(leases=leases[10:]))
        await asyncio.sleep(TTL_S / 2)
        await client.call(Renew(leases=leases[10:]))
        await asyncio.sleep(TTL_S / 2 + TICK_S)
        assert set(await everything(client, "orders")) == {f"orders-{at}" for at in range(10, 30)}
