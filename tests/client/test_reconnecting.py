"""After a restart of the registry clients are back soon, not all at once, and know exactly what they should."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from homeport.client import Client, Instance
from homeport.client.core.backoff import CAP_S, Backoff
from homeport.client.core.messages import Register
from homeport.mesh.testing import running_loop, virtual_time
from tests.client.coordination.sites import ADDRESS, Site, host

SERVICES = 1000
CLIENTS = 300
WINDOW_S = 0.1
AWAY_S = 10.0


async def bump(client: Client, services: range, version: int) -> None:
    """One change of each of these services."""
    for number in services:
        instance = Instance(service=f"s{number}", id=f"i{number}", port=1, version=str(version))
        await client.call(Register(instance=instance))


def test_a_client_of_a_thousand_services_loses_and_repeats_no_event_over_restarts(tmp_path: Path) -> None:
    @virtual_time(seed=1)
    async def run() -> None:
        async with Site(str(tmp_path)) as site:
            async with site.registry.client() as inside:
                await bump(inside, range(SERVICES), 0)
            client = await site.client(0)
            seen: list[list[str]] = [[] for _ in range(SERVICES)]
            revisions: list[list[int]] = [[] for _ in range(SERVICES)]
            subscriptions = [client.subscribe(f"s{number}") for number in range(SERVICES)]

            def listen(number: int) -> None:
                def changed(event: Any) -> None:
                    seen[number] += [instance.version for instance in event.changed]
                    assert not event.removed
                    revisions[number].append(event.revision)

                subscriptions[number].listen(changed)

            for number in range(SERVICES):
                listen(number)
            await asyncio.sleep(5.0)
            assert seen == [["0"]] * SERVICES
            for restart in range(3):
                await site.registry.close()
                await asyncio.sleep(2.0)
                assert all(subscription.instances for subscription in subscriptions), "what is known stays known"
                await site.start_registry()
                async with site.registry.client() as inside:
                    # Before the client is back, while it comes back, and when it is there.
                    await bump(inside, range(0, SERVICES, 2), restart + 1)
                    await client.wait_connected()
                    await bump(inside, range(1, SERVICES, 2), restart + 1)
                    await asyncio.sleep(1.0)
            assert seen == [["0", "1", "2", "3"]] * SERVICES
            assert all(each == sorted(set(each)) for each in revisions if len(each) == 4)
            assert client.link_epoch == 4
            for subscription in subscriptions:
                subscription.close()

    run()


def returns_s(seed: int, away_s: float) -> list[float]:
    """When each of many clients is back, in seconds after the registry is, if that was away for a while."""

    async def run() -> list[float]:
        async with Site() as site:
            clients = []
            for number in range(CLIENTS):
                with site.network.host(host(number)):
                    client = Client(ADDRESS, rng=random.Random(site.loop.rng.getrandbits(64)))
                    await client.start()
                site.clients[host(number)] = client
                clients.append(client)
            for client in clients:
                assert await client.wait_connected()
            await asyncio.sleep(10.0)
            await site.registry.close()
            back_at: list[float] = []

            async def back(client: Client) -> None:
                assert await client.wait_relinked(1, 60.0)
                back_at.append(running_loop().time())

            waiting = [asyncio.ensure_future(back(client)) for client in clients]
            await asyncio.sleep(away_s)
            began = running_loop().time()
            await site.start_registry()
            await asyncio.gather(*waiting)
            return sorted(at - began for at in back_at)

    found: list[float] = []

    @virtual_time(seed=seed)
    async def virtual() -> None:
        found.extend(await run())

    virtual()
    return found


def busiest(returns: list[float]) -> float:
    """The largest share of them within one window."""
    most = max(sum(at <= other < at + WINDOW_S for other in returns) for at in returns)
    return most / len(returns)


@pytest.mark.parametrize("seed", range(3))
def test_clients_come_back_spread_out_and_soon(seed: int) -> None:
    returns = returns_s(seed, AWAY_S)
    assert len(returns) == CLIENTS
    assert busiest(returns) < 0.15, "in step it would be all of them"
    assert returns[-1] - returns[0] > CAP_S / 2
    assert returns[-1] < CAP_S + 1.0


def test_delays_without_jitter_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_step(self: Backoff) -> float:
        self._last_s = min(self._cap_s, self._last_s * 2)
        return self._last_s

    monkeypatch.setattr(Backoff, "next_s", in_step)
    assert busiest(returns_s(1, AWAY_S)) > 0.9
