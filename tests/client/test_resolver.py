"""The cached resolver: lookups that stay in the process, balanced picks, and what outcomes and silence do to both."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from homeport.client import (
    Client,
    Closed,
    Instance,
    InvalidArgument,
    LimitExceeded,
    Outliers,
    Pick,
    Stale,
    Subset,
    Unavailable,
    WrongLoop,
)
from homeport.client.core import snapshot
from homeport.client.core.balancing.settings import PolicyName
from homeport.client.core.group import SUSPECT_S
from homeport.client.core.snapshot import Known, Snapshot
from homeport.client.following import SWEEP_S
from homeport.client.last_known import replace
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry

SWEPT_S = SWEEP_S + 0.01


@asynccontextmanager
async def registered(*ids: str, **each: Any) -> AsyncIterator[tuple[Registry, Client]]:
    """A registry with instances of `orders`, and a client of it."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(Registry(guard=False))
        client = await stack.enter_async_context(registry.client())
        for port, id_ in enumerate(ids, 1):
            await stack.enter_async_context(client.register("orders", id=id_, port=port, **each))
        yield registry, client


def ids(instances: tuple[Instance, ...]) -> set[str]:
    return {instance.id for instance in instances}


# --- lookups ----------------------------------------------------------------------------------------------------


@virtual_time(seed=1)
async def test_a_lookup_follows_what_the_registry_says() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders") as resolver:
        assert ids(resolver.lookup("orders")) == {"a", "b"}
        third = client.register("orders", id="c", port=3)
        await third.start()
        await asyncio.sleep(0.1)
        assert ids(resolver.lookup("orders")) == {"a", "b", "c"}
        await third.set_state("draining")
        await asyncio.sleep(0.1)
        assert ids(resolver.lookup("orders")) == {"a", "b"}
        assert ids(resolver.state("orders").instances) == {"a", "b", "c"}
        await third.stop()


@virtual_time(seed=2)
async def test_a_first_lookup_says_that_nothing_is_known_yet_and_a_later_one_answers() -> None:
    async with registered("a") as (_, client):
        resolver = client.resolver()
        with pytest.raises(Unavailable, match="follow"):
            resolver.lookup("orders")
        await asyncio.sleep(0.1)
        assert ids(resolver.lookup("orders")) == {"a"}
        await resolver.follow("empty")
        assert resolver.lookup("empty") == ()
        assert resolver.services() == ("orders", "empty")
        assert resolver.forget("empty")
        assert not resolver.forget("empty")
        await resolver.close()
        with pytest.raises(Closed):
            resolver.lookup("orders")


@virtual_time(seed=3)
async def test_what_another_subscription_knows_is_there_at_once() -> None:
    async with registered("a") as (_, client), client.resolver("orders"), client.resolver() as second:
        assert ids(second.lookup("orders")) == {"a"}
        assert second.pick("orders").instance.id == "a"


@virtual_time(seed=4)
async def test_a_resolver_says_why_it_cannot_be_used() -> None:
    async with Registry() as registry:
        client = registry.client()
        with pytest.raises(Closed, match="not started"):
            client.resolver().lookup("orders")
        async with client:
            resolver = client.resolver()
            with pytest.raises(InvalidArgument, match="512"):
                resolver.lookup("x" * 600)
            with pytest.raises(InvalidArgument, match="max_age_s"):
                client.resolver(max_age_s=0.0)
            with pytest.raises(InvalidArgument, match="allowed: least-request, peak-ewma, round-robin, maglev"):
                client.resolver(policy="random")  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="panic"):
                client.resolver(panic=2.0)
            await resolver.close()


@virtual_time(seed=5)
async def test_entering_does_not_fail_for_want_of_a_registry() -> None:
    async with Client("127.0.0.1:1") as client, client.resolver("orders") as resolver:
        with pytest.raises(Unavailable):
            resolver.lookup("orders")
        with pytest.raises(Unavailable, match="after"):
            await resolver.follow("orders", timeout_s=0.5)
        assert not resolver.state("orders").known


@virtual_time(seed=6)
async def test_names_asked_for_by_accident_make_room_and_services_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.client.following.FOLLOWED_MAX", 2)
    async with (
        registered("a") as (_, client),
        client.resolver("orders", "typo") as resolver,
        client.register("users", port=9),
    ):
        await resolver.follow("users")
        assert resolver.services() == ("orders", "users")
        with pytest.raises(LimitExceeded, match="2"):
            await resolver.follow("more")


# --- picks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["least-request", "peak-ewma", "round-robin", "maglev"])
def test_every_policy_shares_the_work(policy: PolicyName) -> None:
    @virtual_time(seed=7)
    async def run() -> None:
        async with registered("a", "b", "c") as (_, client), client.resolver("orders", policy=policy) as resolver:
            shares: Counter[str] = Counter()
            for _ in range(300):
                with resolver.pick("orders") as instance:
                    shares[instance.id] += 1
            assert set(shares) == {"a", "b", "c"}
            assert min(shares.values()) > 50

    run()


@virtual_time(seed=8)
async def test_what_is_busy_is_picked_less() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders") as resolver:
        first = resolver.pick("orders")
        with first as busy:
            for _ in range(20):
                assert resolver.pick("orders").instance is not busy
        assert {resolver.pick("orders").instance.id for _ in range(50)} == {"a", "b"}
        with pytest.raises(Closed, match="once"):
            first.__enter__()


@virtual_time(seed=9)
async def test_a_key_goes_to_one_instance_where_the_policy_heeds_keys() -> None:
    async with registered("a", "b", "c") as (_, client):
        async with client.resolver("orders", policy="maglev") as resolver:
            seen = {key: {resolver.pick("orders", key).instance.id for _ in range(5)} for key in ("x", "y", "z", "u")}
            assert all(len(each) == 1 for each in seen.values())
            assert resolver.pick("orders", b"x").instance.id in seen["x"], "text and bytes are the same key"
        async with client.resolver("orders") as resolver:
            with pytest.raises(InvalidArgument, match="maglev"):
                resolver.pick("orders", "x")


@virtual_time(seed=10)
async def test_a_zone_is_preferred_and_a_subset_is_kept_to() -> None:
    async with registered("a", zone="one") as (_, client), client.register("orders", id="far", port=9, zone="two"):
        async with client.resolver("orders", zone="one") as near:
            assert {near.pick("orders").instance.id for _ in range(50)} == {"a"}
        async with client.resolver("orders", subset=Subset(zone="two", fallback="none")) as some:
            assert {some.pick("orders").instance.id for _ in range(50)} == {"far"}
        async with client.resolver("orders", subset=Subset(tag="no", fallback="none")) as none:
            with pytest.raises(Unavailable, match="none of its 2 instances"):
                none.pick("orders")


@virtual_time(seed=11)
async def test_who_was_tried_is_avoided_while_there_are_others() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders") as resolver:
        for _ in range(20):
            first = resolver.pick("orders")
            second = resolver.pick("orders", tried=[first])
            assert {first.instance.id, second.instance.id} == {"a", "b"}
            assert resolver.pick("orders", tried=[first, second]).instance.id in ("a", "b")


# --- outcomes ---------------------------------------------------------------------------------------------------


def only(resolver_picks: list[Pick], id_: str) -> Pick:
    return next(each for each in resolver_picks if each.instance.id == id_)


@virtual_time(seed=12)
async def test_who_failed_is_the_second_choice_for_a_moment() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders") as resolver:
        with pytest.raises(OSError, match="refused"), resolver.pick("orders") as bad:
            raise OSError("refused")
        assert bad.id not in {resolver.pick("orders").instance.id for _ in range(50)}
        await asyncio.sleep(SUSPECT_S + SWEPT_S)
        assert {resolver.pick("orders").instance.id for _ in range(50)} == {"a", "b"}


@virtual_time(seed=13)
async def test_who_fails_again_and_again_is_left_alone_and_comes_back() -> None:
    rules = Outliers(consecutive_5xx=3, ejection_s=30.0, jitter_s=0.0)
    async with registered("a", "b") as (_, client), client.resolver("orders", outliers=rules) as resolver:
        bad = next(each for each in resolver.lookup("orders") if each.id == "a")
        for _ in range(3):
            assert resolver.report(bad, ok=False, status=500)
        assert resolver.state("orders").ejected == 1
        await asyncio.sleep(25.0)
        assert {resolver.pick("orders").instance.id for _ in range(50)} == {"b"}
        assert resolver.lookup("orders"), "a lookup says what the registry says, not what was met"
        await asyncio.sleep(5.0 + SWEPT_S)
        assert {resolver.pick("orders").instance.id for _ in range(50)} == {"a", "b"}
        assert resolver.state("orders").ejected == 0
        assert not resolver.report(Instance(service="orders", id="gone"), ok=False)
        assert not resolver.report(Instance(service="other", id="a"), ok=True)


@virtual_time(seed=14)
async def test_the_last_one_is_never_left_alone_and_without_rules_nobody_is() -> None:
    async with registered("a") as (_, client), client.resolver("orders") as resolver:
        for _ in range(20):
            with resolver.pick("orders") as instance:
                assert instance.id == "a"
        async with client.resolver("orders", outliers=None) as lenient:
            for _ in range(20):
                lenient.report(instance, ok=False)
            assert lenient.state("orders").ejected == 0


@virtual_time(seed=15)
async def test_what_is_said_of_a_pick_stands_whatever_becomes_of_the_block() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders") as resolver:

        def well(instance: Instance) -> bool:
            return instance.id in {resolver.pick("orders").instance.id for _ in range(50)}

        picked = resolver.pick("orders")
        with suppress(ValueError), picked as instance:
            picked.succeeded()
            raise ValueError
        assert well(instance)
        with pytest.raises(asyncio.CancelledError), resolver.pick("orders") as instance:
            raise asyncio.CancelledError
        assert well(instance), "nobody knows how it would have gone"
        picked = resolver.pick("orders")
        with picked as instance:
            picked.failed(status=503)
            picked.succeeded()
        assert not well(instance)


@virtual_time(seed=16)
async def test_every_block_leaves_its_load_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders", policy="peak-ewma") as resolver:
        picked = [resolver.pick("orders") for _ in range(9)]
        for number, each in enumerate(picked):
            error = (None, OSError(), asyncio.CancelledError())[number % 3]
            try:
                with each:
                    assert each._endpoint.active == 1
                    await asyncio.sleep(0.01)
                    if error is not None:
                        raise error
            except (OSError, asyncio.CancelledError):
                pass
        assert {each._endpoint.active for each in picked} == {0}


@virtual_time(seed=17)
async def test_the_slow_one_is_picked_less_by_peak_ewma() -> None:
    async with registered("a", "b") as (_, client), client.resolver("orders", policy="peak-ewma") as resolver:
        shares: Counter[str] = Counter()
        for _ in range(200):
            with resolver.pick("orders") as instance:
                shares[instance.id] += 1
                await asyncio.sleep(0.5 if instance.id == "a" else 0.001)
        assert shares["b"] > 3 * shares["a"]
        await asyncio.sleep(300.0)
        tried = set()
        for _ in range(20):
            with resolver.pick("orders") as instance:
                tried.add(instance.id)
                await asyncio.sleep(0.001)
        assert tried == {"a", "b"}, "what was slow once is tried again"


@virtual_time(seed=18)
async def test_a_newcomer_s_share_grows() -> None:
    async with registered("a") as (_, client), client.resolver("orders", slow_start_s=60.0) as resolver:

        def share() -> float:
            return sum(resolver.pick("orders").instance.id == "new" for _ in range(2000)) / 2000

        async with client.register("orders", id="new", port=9):
            await asyncio.sleep(1.0)
            assert share() < 0.25
            await asyncio.sleep(61.0)
            assert 0.45 < share() < 0.55


# --- without a registry -----------------------------------------------------------------------------------------


@virtual_time(seed=19)
async def test_what_is_known_outlives_the_registry_and_says_how_old_it_is() -> None:
    registry = Registry(node="n")
    await registry.start()
    at = await registry.serve(rpc="127.0.0.1:0")
    async with Client(at.rpc or "") as client, client.resolver("orders") as resolver:
        async with registry.client() as inside:
            await inside.register("orders", id="a", port=1, ttl_s=0).start()
        await asyncio.sleep(0.1)
        assert resolver.state("orders").live
        assert resolver.state("orders").age_s == 0.0
        await registry.close()
        await asyncio.sleep(60.0)
        state = resolver.state("orders")
        assert (state.live, state.known) == (False, True)
        assert 59.0 < state.age_s < 61.0
        assert ids(resolver.lookup("orders")) == {"a"}
        async with Registry(node="n") as another:
            await another.serve(rpc=at.rpc or "")
            await asyncio.sleep(10.0)
            assert resolver.state("orders").held, "a registry that comes back empty empties nothing at once"
            assert ids(resolver.lookup("orders")) == {"a"}


@virtual_time(seed=20)
async def test_what_is_older_than_allowed_is_refused_until_a_registry_confirms_it() -> None:
    registry = Registry(node="n")
    await registry.start()
    at = await registry.serve(rpc="127.0.0.1:0")
    async with Client(at.rpc or "") as client, client.resolver("orders", max_age_s=30.0) as resolver:
        registration = client.register("orders", id="a", port=1)
        await registration.start()
        await resolver.follow("orders")
        await registry.close()
        await asyncio.sleep(29.0)
        assert resolver.pick("orders").instance.id == "a"
        await asyncio.sleep(3.0)
        with pytest.raises(Stale, match="allowed: 30"):
            resolver.pick("orders")
        with pytest.raises(Stale) as stale:
            resolver.lookup("orders")
        assert 30.0 < float(str(stale.value.details["age_s"])) < 40.0
        async with Registry(node="n") as another:
            await another.serve(rpc=at.rpc or "")
            await asyncio.sleep(10.0)
            assert resolver.pick("orders").instance.id == "a"
            await registration.stop()


def kept(path: Path, *instances: Instance, age_s: float = 0.0) -> None:
    replace(path, snapshot.encode(Snapshot("a-history", (Known("orders", 7, time.time() - age_s, instances),))))


async def test_a_process_without_a_registry_begins_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "known"
    async with registered("a") as (_, client), client.resolver("orders", state_file=path) as resolver:
        assert resolver.state("orders").live
    async with Client("127.0.0.1:1") as client:
        resolver = client.resolver(state_file=path)
        await resolver.start()
        assert ids(resolver.lookup("orders")) == {"a"}
        state = resolver.state("orders")
        assert (state.known, state.live) == (True, False)
        await resolver.close()
        assert path.exists()


async def test_a_file_that_is_too_old_for_the_caller_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "known"
    kept(path, Instance(service="orders", id="a", port=1), age_s=3600.0)
    async with Client("127.0.0.1:1") as client:
        async with client.resolver(state_file=path) as resolver:
            assert 3599.0 < resolver.state("orders").age_s < 3700.0
            assert ids(resolver.lookup("orders")) == {"a"}
        async with client.resolver(state_file=path, max_age_s=60.0) as resolver:
            with pytest.raises(Stale):
                resolver.lookup("orders")


async def test_a_damaged_file_is_said_aloud_and_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "known"
    kept(path, Instance(service="orders", id="a", port=1))
    path.write_bytes(path.read_bytes()[:-1])
    async with registered() as (_, client), client.resolver("orders", state_file=path) as resolver:
        assert resolver.lookup("orders") == ()
    assert "checksum" in caplog.text


# --- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["least-request", "round-robin"])
async def test_threads_may_pick_at_the_same_time(policy: PolicyName) -> None:
    async with registered("a", "b", "c") as (_, client), client.resolver("orders", policy=policy) as resolver:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for number in range(2000):
                    with resolver.pick("orders") as instance:
                        resolver.report(instance, ok=number % 100 != 0)
                    resolver.lookup("orders")
            except BaseException as error:  # noqa: BLE001 - told below
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert not errors
        actives = [each.active for each in resolver._followed["orders"].group.endpoints.values()]
        assert actives == [0, 0, 0], "no count was lost"


async def test_a_first_lookup_from_a_thread_has_the_loop_follow() -> None:
    async with registered("a") as (_, client), client.resolver() as resolver:
        with pytest.raises(Unavailable):
            await asyncio.to_thread(resolver.lookup, "orders")
        await resolver.follow("orders")
        assert ids(await asyncio.to_thread(resolver.lookup, "orders")) == {"a"}
        idle = client.resolver()
        with pytest.raises(WrongLoop, match="begun"):
            await asyncio.to_thread(idle.lookup, "orders")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
async def test_the_child_of_a_fork_is_not_told_what_nobody_keeps_current() -> None:
    async with registered("a") as (_, client), client.resolver("orders") as resolver:
        child = os.fork()
        if not child:
            try:
                resolver.lookup("orders")
            except Closed as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
        assert resolver.lookup("orders")
