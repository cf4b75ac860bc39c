"""What type checkers make of the public API, said by `assert_type`: mypy reads this with `make check`, pyright with
`make types`. Nothing here runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import assert_type

from homeport.client import (
    CasFailed,
    Check,
    Client,
    HomeportError,
    Instance,
    InstanceKey,
    KeyValue,
    KvEvents,
    KvSnapshot,
    Lost,
    Registration,
    ServiceEvent,
    Subscription,
)
from homeport.client.core.messages import KvGet, KvPut, KvWritten, Resolve, Resolved
from homeport.client.integrations.asgi import registered
from homeport.mesh.testing import Answer, Mesh, run_virtual, virtual_now, virtual_time
from homeport.registry import At, Registry, RegistryThread
from homeport.sidecar import Options, ServiceSettings, Sidecar


async def services(client: Client) -> None:
    async with client as entered:
        assert_type(entered, Client)
    async with client.register(
        "orders", port=8080, checks=[Check(name="up", kind="tcp", address="h:1")]
    ) as registration:
        assert_type(registration, Registration)
        assert_type(registration.instance, Instance)
        assert_type(registration.lease, int)
    assert_type(await client.resolve("orders"), tuple[Instance, ...])
    assert_type(await client.services(), dict[str, tuple[str, ...]])
    assert_type(await client.deregister("orders-1"), bool)
    assert_type(client.subscribe("orders"), Subscription)
    assert_type(client.watch("orders"), AsyncIterator[ServiceEvent])
    async for change in client.watch("orders"):
        assert_type(change.changed, tuple[Instance, ...])
        assert_type(change.removed, tuple[InstanceKey, ...])


async def keys(client: Client) -> None:
    assert_type(await client.kv.get("a"), KeyValue | None)
    assert_type(await client.kv.put("a", b"1", cas=0), int)
    assert_type(await client.kv.delete("a"), int)
    assert_type(await client.kv.list("a/"), list[KeyValue])
    assert_type(await client.kv.snapshot("a/"), KvSnapshot)
    async for change in client.kv.watch("a"):
        assert_type(change, KvEvents | Lost)


async def requests(client: Client) -> None:
    """The answer's type follows from the request's."""
    assert_type(await client.call(Resolve(service="orders")), Resolved)
    assert_type(await client.call(KvPut(key=b"a", value=b"1")), KvWritten)
    assert_type((await client.call(KvGet(key=b"a"))).entry, KeyValue | None)


def errors(error: CasFailed) -> HomeportError:
    assert_type(error.message, str)
    assert_type(error.details, dict[str, object])
    return error


async def registry() -> None:
    async with Registry(data_dir="state") as registry:
        assert_type(registry, Registry)
        at = await registry.serve(rpc="127.0.0.1:0")
        assert_type(at, At)
        assert_type(at.rpc, str | None)
        assert_type(registry.client(), Client)
    with Registry.in_thread() as thread:
        assert_type(thread, RegistryThread)


async def sidecar(client: Client) -> None:
    async with Sidecar(client, outbound="127.0.0.1:0", settings=ServiceSettings()) as sidecar:
        assert_type(sidecar, Sidecar)
        assert_type(sidecar.at, dict[str, str])
        assert_type(sidecar.options, Options)


@virtual_time(seed=7)
async def testing() -> float:
    async with Mesh() as mesh:
        assert_type(await mesh.call("orders", "/"), Answer)
        assert_type(mesh.failed, int)
    return virtual_now()


def lifespans() -> None:
    assert_type(registered("orders", port=1)(object()), AbstractAsyncContextManager[None])


def returns() -> None:
    async def answer() -> int:
        return 1

    assert_type(run_virtual(answer(), seed=1), int)
    assert_type(testing(), float)
