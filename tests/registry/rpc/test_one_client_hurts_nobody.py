"""What one client asks for, or is, costs the others nothing; and its own calls apply in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgpack
import pytest

from homeport.client import Check, Client, InvalidArgument, LeaseGone
from homeport.client.core.messages import Deregister, Register, Renew, SetState
from homeport.client.core.model import Instance
from homeport.mesh.testing import virtual_time
from homeport.registry import Registry

Eventually = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("durable", [True, False])
async def test_calls_of_one_connection_take_effect_in_the_order_they_came(tmp_path: Path, durable: bool) -> None:
    async with Registry(tmp_path if durable else None) as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client:
            instance = Instance(service="orders", id="o", port=1, ttl_s=30.0)
            _, drained, gone, again, out = await asyncio.gather(
                client.call(Register(instance=instance)),
                client.call(SetState(id="o", state="draining")),
                client.call(Deregister(id="o")),
                client.call(Register(instance=instance)),
                client.call(Deregister(id="o")),
            )
            assert drained.applied
            assert gone.applied
            assert again.lease
            assert out.applied
            assert await client.services() == {}
            assert registry.store.leases() == []


async def test_a_client_that_asks_for_more_than_it_reads_is_told_busy_and_fills_no_memory() -> None:
    async with Registry() as registry, registry.client() as inside:
        await inside.kv.put("big", b"x" * 1_000_000)
        at = await registry.serve(rpc="127.0.0.1:0")
        assert at.rpc is not None
        host, port = at.rpc.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(msgpack.packb([0, 0, "hello", [{"version": 1}]]))
        writer.write(b"".join(msgpack.packb([0, 1 + n, "kv_get", [{"key": b"big"}]]) for n in range(400)))
        await writer.drain()
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        answers: list[list[object]] = []
        while len(answers) < 401:
            unpacker.feed(await reader.read(1 << 20))
            answers += list(unpacker)
        busy = [answer for answer in answers if answer[2]]
        assert {answer[2][0] for answer in busy} == {"busy"}  # type: ignore[index]  # an error is a list
        assert len(answers) - len(busy) < 60, "16 MiB unsent is the bound"
        writer.close()


@virtual_time(seed=21)
async def test_an_instance_whose_names_are_too_long_together_is_refused_and_others_are_checked() -> None:
    async with Registry() as registry, registry.client() as client:
        name = "é" * 256
        check = Check(name=name, kind="tcp", address="127.0.0.1:1", interval_s=1.0)
        with pytest.raises(InvalidArgument, match="longer than 4096 bytes"):
            await client.call(Register(instance=Instance(service="x", id=name, node=name, checks=(check,))))
        app = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        port = app.sockets[0].getsockname()[1]
        well = Check(name="c", kind="tcp", address=f"127.0.0.1:{port}", interval_s=1.0)
        async with client.register("orders", port=port, checks=[well]):
            subscription = client.subscribe("orders")
            passing = asyncio.Event()
            subscription.listen(
                lambda _event: passing.set() if any(i.available for i in subscription.instances.values()) else None
            )
            async with asyncio.timeout(30.0):
                await passing.wait()
        app.close()
        await app.wait_closed()


async def test_many_services_come_in_pages_and_all_of_them() -> None:
    async with Registry() as registry, registry.client() as inside:
        tags = tuple(f"{number:03}-" + "t" * 480 for number in range(60))
        names = [f"service-{number:02}" for number in range(60)]
        for name in names:
            await inside.call(Register(instance=Instance(service=name, id=name, port=1, tags=tags)))
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client:
            assert await client.services() == dict.fromkeys(names, tags)


async def test_a_state_that_an_operator_set_survives_a_broken_connection_of_the_instance(
    eventually: Eventually,
) -> None:
    async with Registry() as registry, registry.client() as operator:
        at = await registry.serve(rpc="127.0.0.1:0")
        async with Client(at.rpc or "") as client, client.register("orders", port=1, id="o") as registration:
            await operator.call(SetState(id="o", state="maintenance"))
            before = client.link_epoch
            for connection in tuple(registry._rpc.connections):
                assert connection._transport is not None
                connection._transport.abort()
            await eventually(lambda: client.link_epoch > before and registration.registered)
            (instance,) = await operator.resolve("orders", passing=False)
            assert instance.status == "maintenance"


async def test_an_id_that_another_registration_holds_is_refused_where_it_must_be_free() -> None:
    async with Registry() as registry, registry.client() as client:
        mine = Instance(service="orders", id="o", port=1, ttl_s=30.0)
        theirs = Instance(service="orders", id="o", port=2, ttl_s=30.0)
        standing = await client.call(Register(instance=theirs))
        with pytest.raises(LeaseGone, match="another registration has taken the place"):
            await client.call(Register(instance=mine, expect_free=True))
        assert (await client.call(Renew(leases=(standing.lease,)))).ttls_s == (30.0,)


@virtual_time(seed=22)
async def test_the_end_of_very_many_leases_at_once_takes_one_transaction_each(tmp_path: Path) -> None:
    async with Registry(tmp_path) as registry, registry.client() as client:
        for number in range(300):
            await client.call(Register(instance=Instance(service="s", id=f"{number}", port=1, ttl_s=2.0)))
        commits = registry.store.numbers()["commits"]
        subscription = client.subscribe("s")
        gone = asyncio.Event()
        subscription.listen(lambda _event: None if subscription.instances else gone.set())
        await gone.wait()
        assert registry.store.leases() == []
        assert registry.store.numbers()["commits"] - commits <= 301
