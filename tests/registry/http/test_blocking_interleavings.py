"""Any interleaving of writes and blocking queries: the last state always arrives, and no index goes backwards."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from homeport.mesh.testing import connector_factory, virtual_now, virtual_time
from homeport.registry import Registry
from homeport.registry.core import keys
from homeport.registry.core.head import Head
from homeport.registry.core.indexes import Indexes
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Delete, Put, Txn

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http

NAMES = ("a", "a/b", "a/c", "b")
READS = ("kv/a", "kv/a?recurse", "kv/a/?keys", "kv/b", "kv/?recurse", "kv/none", "session/list", "session/node/far")
CATALOGUE_READS = (
    "catalog/nodes",
    "catalog/nodes?node-meta=os:a",
    "catalog/services",
    "catalog/services?node-meta=os:a",
    "catalog/service/s",
    "catalog/service/t?tag=v1",
    "catalog/node/far",
    "catalog/node/home",
    "catalog/node-services/far",
    "health/service/s",
    "health/service/s?passing",
    "health/service/t?passing&tag=v1",
    "health/checks/s",
    "health/node/far",
    "health/state/any",
    "health/state/critical?node-meta=os:a",
    "session/node/far",
)


@asynccontextmanager
async def front(seed: int) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with Registry(node="home", rng=random.Random(seed)) as registry:
        at = (await registry.serve(http="127.0.0.1:8500")).http
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector_factory(), timeout=timeout) as client:
            yield f"http://{at}/v1/", client


async def follow(client: aiohttp.ClientSession, url: str, seen: dict[str, tuple[int, bytes]], name: str) -> None:
    """Wait again and again, as clients do; `seen` holds the newest answer."""
    index = 0
    while True:
        async with client.get(f"{url}{name}{'&' if '?' in name else '?'}index={index}&wait=5m") as response:
            body = await response.read()
            now = int(response.headers["X-Consul-Index"])
        assert now >= index, f"the index of {name} went back from {index} to {now}"
        assert now > 0
        index = now
        seen[name] = (now, body)


def catalogue_write(rng: random.Random) -> tuple[str, object]:
    """Some change of the catalogue: by the agent, by the catalogue, or by a transaction."""
    status = rng.choice(["passing", "warning", "critical"])
    node, name = rng.choice(["far", "far", "home"]), rng.choice(["s", "t"])
    service = {"ID": name, "Service": name, "Port": rng.randrange(2), "Tags": rng.choice([[], ["v1"]])}
    at: dict[str, object] = {"Node": node, "Address": "127.0.0.1" if node == "home" else f"10.0.0.{rng.randrange(2)}"}
    check = {"CheckID": rng.choice(["c", "d", "_node_maintenance"]), "Status": status}
    of_it = {"CheckID": "of it", "ServiceID": name, "Status": status}
    changes: list[tuple[str, object]] = [
        ("catalog/register", at | {"NodeMeta": {"os": rng.choice("ab")}}),
        ("catalog/register", at | {"Service": service}),
        ("catalog/register", at | {"Service": service, "Checks": [check, of_it]}),
        ("catalog/register", {"Node": node, "SkipNodeUpdate": True, "Check": check}),
        ("catalog/deregister", {"Node": node}),
        ("catalog/deregister", {"Node": node, "ServiceID": name}),
        ("catalog/deregister", {"Node": node, "CheckID": rng.choice(["c", "of it", "_node_maintenance"])}),
        ("agent/service/register", {"Name": name, "Check": {"TTL": "30s", "Status": status}}),
        (f"agent/service/maintenance/{name}?enable={rng.choice(['true', 'false'])}", None),
        (f"agent/check/pass/service:{name}", None),
        ("agent/check/register", {"Name": "beat", "TTL": "30s", "Status": status}),
        ("agent/check/deregister/beat", None),
        (f"agent/maintenance?enable={rng.choice(['true', 'false'])}", None),
        ("session/create", {"Node": "far", "NodeChecks": rng.choice([[], ["c"]])}),
        (
            "txn",
            [
                {"Node": {"Verb": "set", "Node": at}},
                {"Service": {"Verb": rng.choice(["set", "delete"]), "Node": node, "Service": service}},
                {"Check": {"Verb": rng.choice(["set", "delete"]), "Check": {"Node": node, **check}}},
            ],
        ),
    ]
    return rng.choice(changes)


async def write_to_the_catalogue(client: aiohttp.ClientSession, url: str, rng: random.Random) -> None:
    target, body = catalogue_write(rng)
    async with client.put(url + target, json=body) as response:
        # A node, a service or a check may not be there; a check of a service may be one that the registry runs.
        assert response.status in (200, 404, 409, 500), (target, body, await response.text())
        assert "log says more" not in await response.text(), (target, body)


async def write(client: aiohttp.ClientSession, url: str, rng: random.Random, sessions: list[str]) -> None:
    name, holder = rng.choice(NAMES), rng.choice(sessions or ["none"])
    path, body = rng.choice(
        [
            (f"PUT kv/{name}", b"%d" % rng.randrange(3)),
            (f"PUT kv/{name}?flags={rng.randrange(2)}", b"1"),
            (f"PUT kv/{name}?acquire={holder}", b"2"),
            (f"PUT kv/{name}?release={holder}", b"3"),
            (f"DELETE kv/{name}", b""),
            ("DELETE kv/a?recurse", b""),
            ("PUT session/create", b'{"LockDelay": "0s", "Behavior": "%s"}' % rng.choice([b"delete", b"release"])),
            (f"PUT session/destroy/{holder}", b""),
            ("PUT agent/service/register", b'{"Name": "s", "Port": %d}' % rng.randrange(3)),
            ("PUT agent/service/deregister/s", b""),
        ]
    )
    method, _, target = path.partition(" ")
    async with client.request(method, url + target, data=body) as response:
        if target == "session/create":
            sessions.append((await response.json())["ID"])
        elif target.startswith("session/destroy") and holder in sessions:
            sessions.remove(holder)
        else:
            assert response.status in (200, 404, 500), await response.text()


@pytest.mark.parametrize("seed", range(8))
def test_every_last_state_arrives_and_no_index_goes_back(seed: int) -> None:
    sessions: list[str] = []
    _interleave(seed, READS, lambda client, url, rng: write(client, url, rng, sessions))


@pytest.mark.parametrize("seed", range(8))
def test_every_last_state_of_the_catalogue_arrives_and_no_index_goes_back(seed: int) -> None:
    _interleave(seed, CATALOGUE_READS, write_to_the_catalogue)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 250))
def test_every_last_state_of_the_catalogue_arrives_with_many_seeds(seed: int) -> None:
    _interleave(seed, CATALOGUE_READS, write_to_the_catalogue)


Write = Callable[[aiohttp.ClientSession, str, random.Random], Awaitable[None]]


def _interleave(seed: int, reads: tuple[str, ...], change: Write) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)

    @virtual_time(seed=seed)
    async def run() -> None:
        async with front(seed) as (url, client):
            seen: dict[str, tuple[int, bytes]] = {}
            readers = [asyncio.create_task(follow(client, url, seen, name)) for name in reads]

            async def writer() -> None:
                for _ in range(40):
                    await change(client, url, rng)
                    if rng.random() < 0.3:
                        await rest(rng.random())

            await asyncio.gather(*[writer() for _ in range(4)])
            await rest(1.0)
            for reader in readers:
                assert not reader.done(), reader
            for name in reads:
                async with client.get(url + name) as response:
                    truth = (int(response.headers["X-Consul-Index"]), await response.read())
                assert seen[name] == truth, name
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)

    run()


async def rest(seconds: float) -> None:
    come = asyncio.Event()
    asyncio.get_running_loop().call_at(virtual_now() + seconds, come.set)
    await come.wait()


@pytest.mark.parametrize("seed", range(20))
def test_a_kept_index_of_a_prefix_is_what_a_pass_over_all_would_find(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    mvcc, head = Mvcc(), None
    head = Head(mvcc)
    kept = Indexes(mvcc, keys.USER, remembered=rng.choice([2, 100]))
    deleted: dict[bytes, int] = {}
    for _ in range(300):
        key = keys.USER + bytes(rng.choice(b"ab/") for _ in range(rng.randrange(1, 4)))
        op = Put(key, b"") if rng.random() < 0.6 else Delete(key, keys.prefix_end(key))
        outcome = head.decide(Txn(then=(op,)))
        if outcome.changes:
            revision = outcome.result.revision
            mvcc.apply(revision, outcome.changes)
            head.settle(revision, outcome.changes)
            kept.apply(revision, outcome.changes)
            for change in outcome.changes:
                if change.kv is None:
                    deleted[change.key] = revision
        prefix = keys.USER + bytes(rng.choice(b"ab/") for _ in range(rng.randrange(3)))
        live = (mvcc.get(name) for name in mvcc.keys(prefix, keys.prefix_end(prefix)))
        revisions = [kv.mod_revision for kv in live if kv is not None]
        revisions += [revision for name, revision in deleted.items() if name.startswith(prefix)]
        assert kept.under(prefix) == max(revisions, default=1), prefix


async def test_a_hash_waits_for_other_content_and_not_for_an_index(http: Http) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    first = await http("GET", "/v1/kv/?keys&hash=")
    known = first.headers["X-Consul-ContentHash"]
    waiting = await http.blocked(f"/v1/kv/?keys&hash={known}")
    await http("PUT", "/v1/kv/k", b"2")
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    assert not waiting.done(), "the names are the same"
    await http("PUT", "/v1/kv/l", b"2")
    woken = await waiting
    assert woken.json == ["k", "l"]
    assert woken.headers["X-Consul-ContentHash"] != known
    assert "X-Consul-ContentHash" not in (await http("GET", "/v1/kv/k")).headers


async def test_many_wait_at_once_and_none_of_them_polls(http: Http) -> None:
    await _many(http, 300)


@pytest.mark.long
async def test_ten_thousand_wait_at_once_and_none_of_them_polls(http: Http) -> None:
    await _many(http, 10_000)


CROWD = """
import selectors, socket, sys
host, port, count, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sockets = []
for number in range(count):
    one = socket.create_connection((host, port))
    path = "shared" if number % 2 else f"own/{number}"
    one.sendall(f"GET /v1/kv/{path}?index={at}&wait=10m HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    sockets.append(one)
print(sockets[0].recv(12).decode(), flush=True)
print(len([1 for one in sockets[1::2] if one.recv(12) == b"HTTP/1.1 200"]), flush=True)
"""


async def _many(http: Http, count: int) -> None:
    """Half wait for a key of their own, half for one and the same; from another process, for its own file limit."""
    host, port = http.at.split(":")
    numbers = http.front.numbers
    at = (await http("GET", "/v1/kv/shared")).index
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CROWD, host, port, str(count), str(at), stdout=asyncio.subprocess.PIPE
    )
    assert crowd.stdout is not None
    try:
        async with asyncio.timeout(100):
            while numbers.blocked < count:
                await _turn()
            wakes = numbers.wakes
            await http("PUT", "/v1/kv/other", b"")
            assert numbers.wakes == wakes, "somebody woke for what it did not wait for"
            assert _ready() < 50, "somebody is busy"
            await http("PUT", "/v1/kv/own/0", b"")
            assert await crowd.stdout.readline() == b"HTTP/1.1 200\n"
            assert numbers.wakes == wakes + 1
            await http("PUT", "/v1/kv/shared", b"")
            assert int(await crowd.stdout.readline()) == count // 2
            assert numbers.wakes == wakes + 1 + count // 2
            await crowd.wait()
            while numbers.blocked:
                await _turn()
    finally:
        if crowd.returncode is None:
            crowd.kill()
            await crowd.wait()


async def _turn() -> None:
    come = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, come.set)
    await come.wait()


def _ready() -> int:
    loop: Any = asyncio.get_running_loop()
    return len(loop._ready)
