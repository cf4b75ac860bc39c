"""Consul's published recipes for leader election and semaphores, followed by many at once while members die.

In virtual time, by plain requests: sessions with a TTL, acquire, and blocking queries, as the recipes say.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from homeport.mesh.testing import connector_factory, virtual_now, virtual_time
from homeport.registry import Registry

TTL_S = 10.0
LOCK_DELAY_S = 2.0


class Member:
    """One who takes part: a session it renews until it dies, and plain requests."""

    def __init__(self, client: aiohttp.ClientSession, at: str) -> None:
        self._client = client
        self._at = at
        self.session = ""
        self.requests = 0

    async def ask(self, method: str, path: str, body: object = None) -> tuple[Any, int, int]:
        self.requests += 1
        data = None if body is None else json.dumps(body).encode()
        async with self._client.request(method, self._at + path, data=data) as response:
            assert response.status in (200, 404), await response.text()
            found = await response.json(content_type=None) if response.status == 200 else None
            return found, int(response.headers.get("X-Consul-Index", "0")), response.status

    async def begin(self) -> None:
        asked = {"TTL": f"{TTL_S:.0f}s", "LockDelay": f"{LOCK_DELAY_S:.0f}s"}
        self.session = (await self.ask("PUT", "/v1/session/create", asked))[0]["ID"]

    async def renew(self) -> None:
        while True:
            await at(virtual_now() + TTL_S / 2)
            await self.ask("PUT", f"/v1/session/renew/{self.session}")


async def at(when: float) -> None:
    come = asyncio.Event()
    asyncio.get_running_loop().call_at(when, come.set)
    await come.wait()


@asynccontextmanager
async def members(seed: int, count: int) -> AsyncIterator[list[Member]]:
    async with Registry(node="home", rng=random.Random(seed)) as registry:
        where = f"http://{(await registry.serve(http='127.0.0.1:8500')).http}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector_factory(), timeout=timeout) as client:
            made = [Member(client, where) for _ in range(count)]
            for member in made:
                await member.begin()
            yield made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_there_is_never_more_than_one_leader_and_soon_one_again(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    leaders: list[Member] = []  # who leads now, and has not died
    terms: list[float] = []

    async def campaign(member: Member) -> None:
        """Consul's recipe: acquire; else wait until the key has no session, and for the lock delay."""
        while True:
            won, _, _ = await member.ask("PUT", f"/v1/kv/lead?acquire={member.session}", "me")
            if won:
                assert not leaders, "two leaders at once"
                leaders.append(member)
                terms.append(virtual_now())
                try:
                    await at(virtual_now() + 1e9)
                finally:
                    leaders.remove(member)
            found, index, _ = await member.ask("GET", "/v1/kv/lead")
            while found and found[0].get("Session"):
                found, index, _ = await member.ask("GET", f"/v1/kv/lead?index={index}")
            await at(virtual_now() + LOCK_DELAY_S / 2)

    @virtual_time(seed=seed)
    async def run() -> None:
        async with members(seed, 5) as everyone:
            lives = {one: [asyncio.create_task(one.renew()), asyncio.create_task(campaign(one))] for one in everyone}
            for number in range(1, 5):
                while len(terms) < number:
                    await at(virtual_now() + 0.5)
                await at(virtual_now() + rng.uniform(0, 20))
                (leader,) = leaders
                died = virtual_now()
                for task in lives.pop(leader):  # killed: it renews no more, and says nothing
                    task.cancel()
                while len(terms) == number:
                    assert virtual_now() < died + 2 * TTL_S + 2 * LOCK_DELAY_S + 2, "nobody leads"
                    await at(virtual_now() + 0.5)
                assert terms[-1] >= died + TTL_S + LOCK_DELAY_S, "the dead had not been given their time"
            assert max(one.requests for one in everyone) < 200, "somebody spins"
            for tasks in lives.values():
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    run()
    assert len(terms) == 5


@pytest.mark.parametrize("seed", [1, 2])
def test_a_semaphore_has_no_more_holders_than_places_and_no_place_is_lost(seed: int) -> None:
    """Consul's recipe: a contender key per session, held by it, and one key with the list of holders, moved by cas."""
    print(f"seed {seed}")
    places = 2
    inside: set[str] = set()
    passed: list[str] = []

    async def contend(member: Member, dies: bool) -> None:
        await member.ask("PUT", f"/v1/kv/sem/{member.session}?acquire={member.session}", "me")
        index = 0
        while True:
            found, index, _ = await member.ask("GET", f"/v1/kv/sem/?recurse&index={index}")
            lock = next((one for one in found if one["Key"] == "sem/.lock"), None)
            alive = {one["Session"] for one in found if one.get("Session")}
            held = json.loads(base64.b64decode(lock["Value"]))["Holders"] if lock else []
            holders = [one for one in held if one in alive]
            if len(holders) < places:
                cas = lock["ModifyIndex"] if lock else 0
                body = {"Limit": places, "Holders": [*holders, member.session]}
                if (await member.ask("PUT", f"/v1/kv/sem/.lock?cas={cas}", body))[0]:
                    break
                index = 0
        inside.add(member.session)
        assert len(inside) <= places
        passed.append(member.session)
        await at(virtual_now() + 3)
        if dies:
            return  # its session ends by itself, and it is inside until then
        while True:
            (lock,), _, _ = await member.ask("GET", "/v1/kv/sem/.lock")
            held = json.loads(base64.b64decode(lock["Value"]))["Holders"]
            body = {"Limit": places, "Holders": [one for one in held if one != member.session]}
            inside.discard(member.session)
            if (await member.ask("PUT", f"/v1/kv/sem/.lock?cas={lock['ModifyIndex']}", body))[0]:
                break
        await member.ask("DELETE", f"/v1/kv/sem/{member.session}")
        await member.ask("PUT", f"/v1/session/destroy/{member.session}")

    @virtual_time(seed=seed)
    async def run() -> None:
        async with members(seed, 8) as everyone:
            renewals = [asyncio.create_task(one.renew()) for one in everyone]

            async def live(number: int, member: Member) -> None:
                dies = number in (2, 5)
                await contend(member, dies)
                renewals[number].cancel()
                if dies:
                    # A session ends no earlier than this: until then its place must not be given away.
                    await at(virtual_now() + TTL_S)
                    inside.discard(member.session)

            await asyncio.gather(*[live(number, one) for number, one in enumerate(everyone)])
            for renewal in renewals:
                renewal.cancel()
            await asyncio.wait(renewals)
            assert max(one.requests for one in everyone) < 200, "somebody spins"

    run()
    assert len(passed) == 8
