"""Sessions and the locks that hang on them, as Consul's clients use them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from homeport.mesh.testing import connector_factory, virtual_now, virtual_time
from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

NO_DELAY = {"LockDelay": "0s"}
NOBODY = "00000000-0000-4000-8000-000000000000"


async def session(http: Http, body: dict[str, object] | None = None) -> str:
    made = await http("PUT", "/v1/session/create", {"LockDelay": "0s"} if body is None else body)
    assert made.status == 200, made
    id_: str = made.json["ID"]
    return id_


async def key(http: Http, name: str = "k") -> dict[str, Any]:
    found: dict[str, Any] = (await http("GET", f"/v1/kv/{name}")).json[0]
    return found


async def test_a_session_is_shown_as_consul_shows_it(http: Http) -> None:
    made = await http("PUT", "/v1/session/create")
    (shown,) = (await http("GET", f"/v1/session/info/{made.json['ID']}")).json
    assert shown.pop("CreateIndex") == shown.pop("ModifyIndex") > 1
    assert shown == {
        "ID": made.json["ID"],
        "Name": "",
        "Node": "home",
        "LockDelay": 15_000_000_000,
        "Behavior": "release",
        "TTL": "",
        "NodeChecks": ["serfHealth"],
        "ServiceChecks": None,
    }
    asked = {"name": "n", "Node": "home", "lockdelay": 5, "Behavior": "delete", "TTL": "90s", "Checks": []}
    id_ = await session(http, asked)
    (shown,) = (await http("GET", f"/v1/session/info/{id_}")).json
    assert (shown["Name"], shown["LockDelay"], shown["Behavior"]) == ("n", 5_000_000_000, "delete")
    assert (shown["TTL"], shown["NodeChecks"]) == ("90s", [])
    listed = (await http("GET", "/v1/session/list")).json
    assert shown in listed
    assert len(listed) == 2
    assert (await http("GET", "/v1/session/node/home")).json == listed
    assert (await http("GET", "/v1/session/node/elsewhere")).json == []
    assert (await http("PUT", f"/v1/session/renew/{id_}")).json == [shown]


async def test_an_unknown_session_is_empty_not_found_or_ended_already(http: Http) -> None:
    info = await http("GET", f"/v1/session/info/{NOBODY}")
    assert (info.status, info.json) == (200, [])
    assert info.index >= 1
    assert (await http("PUT", f"/v1/session/renew/{NOBODY}")).status == 404
    assert (await http("PUT", f"/v1/session/destroy/{NOBODY}")).json is True
    refused = await http("PUT", f"/v1/kv/k?acquire={NOBODY}", b"v")
    assert (refused.status, refused.text) == (500, f'invalid session "{NOBODY}"')
    assert (await http("PUT", f"/v1/kv/k?release={NOBODY}", b"v")).json is False
    assert (await http("GET", "/v1/kv/k")).status == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"TTL": "9s"}, "must be between [10s=24h0m0s]"),
        ({"TTL": "25h"}, "must be between [10s=24h0m0s]"),
        ({"TTL": "soon"}, "invalid"),
        ({"Behavior": "forget"}, "Invalid Behavior"),
        ({"Node": "elsewhere"}, "Missing node registration"),
        ({"Checks": ["none"]}, "Missing check"),
        ({"LockDelay": "long"}, "LockDelay"),
        ({"TTL": 15}, "decode failed"),
    ],
)
async def test_a_session_that_cannot_be_is_refused_with_the_reason(
    http: Http, body: dict[str, object], message: str
) -> None:
    refused = await http("PUT", "/v1/session/create", body)
    assert refused.status in (400, 500)
    assert message in refused.text
    assert (await http("GET", "/v1/session/list")).json == []


async def test_a_key_has_one_holder_and_counts_its_locks(http: Http) -> None:
    first, second = await session(http), await session(http)
    assert (await http("PUT", f"/v1/kv/k?acquire={first}&flags=7", b"1")).json is True
    held = await key(http)
    assert (held["Session"], held["LockIndex"], held["Flags"]) == (first, 1, 7)
    assert (await http("PUT", f"/v1/kv/k?acquire={second}", b"2")).json is False
    assert (await http("PUT", f"/v1/kv/k?release={second}", b"2")).json is False
    assert (await key(http)) == held
    assert (await http("PUT", f"/v1/kv/k?acquire={first}&flags=7", b"1")).json is True
    assert (await key(http)) == held, "locking again what is held changes nothing"
    assert (await http("PUT", f"/v1/kv/k?acquire={first}", b"3")).json is True
    again = await key(http)
    assert (again["LockIndex"], again["Flags"]) == (1, 0)
    assert again["ModifyIndex"] > held["ModifyIndex"]
    assert (await http("PUT", f"/v1/kv/k?release={first}", b"4")).json is True
    free = await key(http)
    assert "Session" not in free
    assert free["LockIndex"] == 1
    assert free["ModifyIndex"] > again["ModifyIndex"]
    assert (await http("PUT", f"/v1/kv/k?acquire={second}", b"5")).json is True, "a release has no delay"
    assert (await key(http))["LockIndex"] == 2


async def test_a_plain_write_ignores_locks_and_leaves_them(http: Http) -> None:
    holder = await session(http)
    await http("PUT", f"/v1/kv/k?acquire={holder}", b"1")
    assert (await http("PUT", "/v1/kv/k", b"2")).json is True
    held = await key(http)
    assert (held["Session"], held["LockIndex"], held["Value"]) == (holder, 1, "Mg==")
    assert (await http("PUT", f"/v1/kv/k?cas={held['ModifyIndex']}", b"3")).json is True
    assert (await key(http))["Session"] == holder
    assert (await http("DELETE", "/v1/kv/k")).json is True
    other = await session(http)
    assert (await http("PUT", f"/v1/kv/k?acquire={other}", b"4")).json is True
    assert (await key(http))["LockIndex"] == 1, "a key made anew counts anew"


@pytest.mark.parametrize("query", ["cas=0&acquire=x", "cas=0&release=x", "acquire=x&release=x"])
async def test_a_write_is_of_one_kind(http: Http, query: str) -> None:
    refused = await http("PUT", f"/v1/kv/k?{query}", b"")
    assert refused.status == 400
    assert "Conflicting" in refused.text


async def test_the_end_of_a_session_releases_its_keys_and_wakes_their_readers(http: Http) -> None:
    holder = await session(http)
    for name in ("a", "b"):
        await http("PUT", f"/v1/kv/{name}?acquire={holder}", b"v")
    held = await key(http, "a")
    waiting = await http.blocked(f"/v1/kv/a?index={held['ModifyIndex']}")
    listed = (await http("GET", "/v1/session/list")).index
    assert (await http("PUT", f"/v1/session/destroy/{holder}")).json is True
    (free,) = (await waiting).json
    assert "Session" not in free
    assert free["ModifyIndex"] > held["ModifyIndex"]
    assert (free["LockIndex"], free["Value"]) == (1, "dg==")
    assert "Session" not in await key(http, "b")
    assert (await http("GET", "/v1/session/list")).index > listed


async def test_the_end_of_a_session_deletes_its_keys_where_asked_for_in_one_revision(
    http: Http, registry: Registry
) -> None:
    holder = await session(http, {"Behavior": "delete", "LockDelay": "0s"})
    for name in ("a", "b"):
        await http("PUT", f"/v1/kv/{name}?acquire={holder}", b"v")
    await http("PUT", "/v1/kv/b", b"written by another")
    await http("PUT", f"/v1/kv/c?acquire={holder}", b"v")
    await http("PUT", f"/v1/kv/c?release={holder}", b"kept")
    revision = registry.store.mvcc.revision
    await http("PUT", f"/v1/session/destroy/{holder}")
    assert registry.store.mvcc.revision == revision + 1
    assert [(await http("GET", f"/v1/kv/{name}")).status for name in "abc"] == [404, 404, 200]
    assert not list(registry.store.mvcc.keys(b"l/", b"l0")), "nothing is left of it"


@pytest.mark.parametrize("behaviour", ["release", "delete"])
async def test_after_the_end_of_its_holder_a_key_rests_for_the_lock_delay(
    http: Http, behaviour: str, registry: Registry
) -> None:
    holder, other = await session(http, {"Behavior": behaviour, "LockDelay": "30s"}), await session(http)
    await http("PUT", f"/v1/kv/k?acquire={holder}", b"1")
    await http("PUT", f"/v1/session/destroy/{holder}")
    assert (await http("PUT", f"/v1/kv/k?acquire={other}", b"2")).json is False
    assert (await http("PUT", f"/v1/kv/k?acquire={NOBODY}", b"2")).json is False, "the delay counts first"
    assert (await http("PUT", "/v1/kv/k", b"3")).json is True, "plain writes do not care"
    delay = registry.store.mvcc.get(b"d/k")
    assert delay is not None
    assert 25 < (registry.store.lease_remaining_s(delay.lease) or 0) <= 30
    await registry.store.lease_revoke(delay.lease)
    assert (await http("PUT", f"/v1/kv/k?acquire={other}", b"2")).json is True


async def test_a_deleted_key_has_no_delay_from_a_holder_that_lost_it(http: Http, registry: Registry) -> None:
    holder, other = await session(http, {"Behavior": "delete", "LockDelay": "30s"}), await session(http)
    await http("PUT", f"/v1/kv/k?acquire={holder}", b"1")
    await http("DELETE", "/v1/kv/k")
    assert (await http("PUT", f"/v1/kv/k?acquire={other}", b"2")).json is True
    await http("PUT", f"/v1/session/destroy/{holder}")
    assert (await key(http))["Session"] == other
    assert registry.store.mvcc.get(b"d/k") is None


async def test_a_check_that_turns_critical_ends_the_sessions_that_stand_on_it(
    http: Http, eventually: Eventually, registry: Registry
) -> None:
    for name in ("web", "db"):
        await http("PUT", "/v1/agent/service/register", {"Name": name, "Check": {"TTL": "1h", "Status": "passing"}})
    web = await session(http, {"NodeChecks": ["serfHealth", "service:web"], "LockDelay": "0s"})
    db = await session(http, {"ServiceChecks": [{"ID": "service:db"}], "LockDelay": "0s"})
    assert (await http("GET", f"/v1/session/info/{db}")).json[0]["ServiceChecks"] == [
        {"ID": "service:db", "Namespace": ""}
    ]
    await http("PUT", f"/v1/kv/k?acquire={web}", b"1")
    await http("PUT", "/v1/agent/check/warn/service:web")
    await http("PUT", "/v1/agent/check/fail/service:web")
    await eventually(lambda: registry.store.mvcc.get(b"n/" + web.encode()) is None)
    await registry.operations.sessions.settled(web)
    assert "Session" not in await key(http)
    assert (await http("GET", f"/v1/session/info/{db}")).json != []
    await http("PUT", "/v1/agent/service/deregister/db")
    await eventually(lambda: registry.store.mvcc.get(b"n/" + db.encode()) is None)
    refused = await http("PUT", "/v1/session/create", {"NodeChecks": ["service:web"]})
    assert (refused.status, "critical" in refused.text) == (500, True)


async def test_of_many_who_lock_at_once_one_has_it(http: Http) -> None:
    ids = [await session(http) for _ in range(20)]
    answers = await asyncio.gather(*[http("PUT", f"/v1/kv/k?acquire={id_}", id_.encode()) for id_ in ids])
    (winner,) = [id_ for id_, answer in zip(ids, answers, strict=True) if answer.json is True]
    assert (await key(http))["Session"] == winner
    assert (await key(http))["LockIndex"] == 1


async def test_sessions_are_waited_for(http: Http) -> None:
    id_ = await session(http)
    one = await http.blocked(f"/v1/session/info/{id_}?index={(await http('GET', f'/v1/session/info/{id_}')).index}")
    absent = await http.blocked(f"/v1/session/info/{NOBODY}?index=1")
    every = await http.blocked(f"/v1/session/list?index={(await http('GET', '/v1/session/list')).index}")
    await http("PUT", f"/v1/session/renew/{id_}")
    await http("PUT", "/v1/kv/k", b"")
    assert not every.done()
    await session(http)
    assert len((await every).json) == 2
    assert not one.done()
    await http("PUT", f"/v1/session/destroy/{id_}")
    assert (await one).json == []
    assert not absent.done()
    absent.cancel()
    await asyncio.wait([absent])


@pytest.mark.parametrize("behaviour", ["release", "delete"])
async def test_an_end_that_a_crash_interrupted_is_carried_on(tmp_path: Path, behaviour: str) -> None:
    """The session is gone and its keys were not seen to: what a restart finds."""
    for run in range(2):
        async with Registry(node="home", rng=random.Random(run), data_dir=tmp_path) as registry:
            at = (await registry.serve(http="127.0.0.1:0")).http
            async with aiohttp.ClientSession(f"http://{at}") as client:
                if run == 0:
                    body = {"Behavior": behaviour, "LockDelay": "30s"}
                    async with client.put("/v1/session/create", json=body) as made:
                        id_ = (await made.json())["ID"]
                    async with client.put(f"/v1/kv/k?acquire={id_}", data=b"v") as locked:
                        assert await locked.json() is True
                    session = registry.operations.sessions.find(id_)
                    assert session is not None
                    await registry.operations.sessions.close()  # the crash, as far as sessions are concerned
                    await registry.store.lease_revoke(session.lease)
                    continue
                async with client.put("/v1/session/create") as made:
                    id_ = (await made.json())["ID"]
                async with client.put(f"/v1/kv/k?acquire={id_}", data=b"w") as locked:
                    assert await locked.json() is False
                delay = registry.store.mvcc.get(b"d/k")
                assert delay is not None
                assert registry.store.lease_remaining_s(delay.lease) is not None
                async with client.get("/v1/kv/k") as found:
                    assert found.status == (200 if behaviour == "release" else 404)
                    assert b"Session" not in await found.read()


# --- on time: in virtual time ---------------------------------------------------------------------------------------


@asynccontextmanager
async def virtual_front() -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with Registry(node="home", rng=random.Random(3)) as registry:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector_factory(), timeout=timeout) as client:
            yield f"http://{at}", client


async def put(client: aiohttp.ClientSession, url: str, body: object = None) -> Any:
    async with client.put(url, data=None if body is None else json.dumps(body)) as response:
        assert response.status == 200, await response.text()
        return await response.json(content_type=None)


@pytest.mark.parametrize("behaviour", ["release", "delete"])
def test_a_session_ends_after_twice_its_ttl_and_its_lock_delay_follows(behaviour: str) -> None:
    @virtual_time(seed=7)
    async def run() -> None:
        async with virtual_front() as (at, client):
            asked = {"TTL": "10s", "LockDelay": "5s", "Behavior": behaviour}
            holder = (await put(client, f"{at}/v1/session/create", asked))["ID"]
            other = (await put(client, f"{at}/v1/session/create"))["ID"]
            assert await put(client, f"{at}/v1/kv/k?acquire={holder}") is True
            loop = asyncio.get_running_loop()
            await _at(loop.time() + 15)
            await put(client, f"{at}/v1/session/renew/{holder}")
            renewed = virtual_now()
            async with client.get(f"{at}/v1/kv/k") as found:
                index = found.headers["X-Consul-Index"]
            async with client.get(f"{at}/v1/kv/k?index={index}") as woken:
                await woken.read()
            ended = virtual_now()
            assert 20 <= ended - renewed <= 20.5
            while await put(client, f"{at}/v1/kv/k?acquire={other}") is False:
                await _at(loop.time() + 0.1)
            assert 5 <= virtual_now() - ended <= 5.5

    run()


async def _at(when: float) -> None:
    """Virtual time has come to `when`."""
    loop = asyncio.get_running_loop()
    come = asyncio.Event()
    loop.call_at(when, come.set)
    await come.wait()
