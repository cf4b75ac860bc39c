"""How long calls may take: each as long as its caller says, all that it asks included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from homeport.client import Client, ConnectionLost, Unavailable
from homeport.mesh.testing import virtual_time
from tests.client.coordination.sites import REGISTRY, Site, host

READS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "get": lambda client: client.kv.get("k", timeout_s=0.5),
    "list": lambda client: client.kv.list("k", timeout_s=0.5),
    "snapshot": lambda client: client.kv.snapshot("k", timeout_s=0.5),
    "typed get": lambda client: client.kv.typed(int).get("k", timeout_s=0.5),
    "typed list": lambda client: client.kv.typed(int).list("k", timeout_s=0.5),
    "update": lambda client: client.kv.typed(int).update("k", lambda old: 1, timeout_s=0.5),
    "services": lambda client: client.services(timeout_s=0.5),
    "leader": lambda client: client.election("e").leader(timeout_s=0.5),
    "length": lambda client: client.queue("q").length(timeout_s=0.5),
}
WRITES: dict[str, Callable[[Client], Awaitable[object]]] = {
    "put": lambda client: client.kv.put("k", b"", timeout_s=0.5),
    "cas": lambda client: client.kv.cas("k", b"", 0, timeout_s=0.5),
    "delete": lambda client: client.kv.delete("k", timeout_s=0.5),
    "typed put": lambda client: client.kv.typed(int).put("k", 1, timeout_s=0.5),
    "typed cas": lambda client: client.kv.typed(int).cas("k", 1, 0, timeout_s=0.5),
    "typed delete": lambda client: client.kv.typed(int).delete("k", timeout_s=0.5),
    "deregister": lambda client: client.deregister("orders-1", timeout_s=0.5),
}


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_a_call_ends_when_its_caller_says(name: str) -> None:
    @virtual_time(seed=1)
    async def run() -> None:
        async with Site() as site:
            client = await site.client(0)
            await client.wait_connected()
            site.network.partition(REGISTRY, host(0))
            begun_at = site.loop.time()
            with pytest.raises(Unavailable) as raised:
                await (READS.get(name) or WRITES[name])(client)
            assert site.loop.time() - begun_at == pytest.approx(0.5, abs=0.01)
            assert isinstance(raised.value, ConnectionLost) == (name in WRITES), "a write may have happened"

    run()


@virtual_time(seed=2)
async def test_all_pages_of_a_list_have_one_budget() -> None:
    async with Site() as site:
        client = await site.client(0)
        for number in range(5):
            await client.kv.put(f"k/{number}", bytes(600_000))
        call, given = client.call, []

        async def slow(request: Any, *, timeout_s: float) -> Any:
            given.append(timeout_s)
            return await call(request, timeout_s=timeout_s)

        client.call = slow  # type: ignore[assignment]
        assert len(await client.kv.list("k/", timeout_s=60.0)) == 5
        assert len(given) > 1, "it came in pages"
        assert given == sorted(given, reverse=True), "later pages have what earlier ones left"
        assert given[0] == 60.0
        assert given[-1] < 60.0
        given.clear()
        await client.kv.list("k/")
        assert set(given) == {5.0}, "however many pages there are"
