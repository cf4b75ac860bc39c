"""A registry with a data directory, stopped and started again: Consul's clients go on where they were."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp

from homeport.registry import Registry


async def test_after_a_restart_everything_is_there_and_no_index_has_gone_back(tmp_path: Path) -> None:
    paths = ("/v1/kv/k", "/v1/kv/gone", "/v1/kv/?recurse", "/v1/health/service/web", "/v1/health/service/none")
    bodies: list[bytes] = []
    indexes: list[list[int]] = []
    for run in range(2):
        async with Registry(node="home", rng=random.Random(run), data_dir=tmp_path) as registry:
            at = (await registry.serve(http="127.0.0.1:0")).http
            async with aiohttp.ClientSession(f"http://{at}") as session:
                if run == 0:
                    check = {"TTL": "1h", "Status": "passing", "Name": "own", "DeregisterCriticalServiceAfter": "1h"}
                    writes: list[tuple[str, str, dict[str, object] | None]] = [
                        ("PUT", "/v1/kv/k?flags=9", {"v": 1}),
                        ("PUT", "/v1/kv/gone", {"v": 2}),
                        ("PUT", "/v1/agent/service/register", {"Name": "web", "Check": check}),
                        ("PUT", "/v1/agent/check/pass/service:web?note=well", None),
                        ("DELETE", "/v1/kv/gone", None),
                    ]
                    for method, path, body in writes:
                        async with session.request(method, path, json=body) as response:
                            assert response.status == 200
                else:
                    async with session.put("/v1/agent/check/pass/service:web?note=well") as response:
                        assert response.status == 200, "the check is known by its id again"
                answers = []
                indexes.append([])
                for path in paths:
                    async with session.get(path) as response:
                        answers.append(await response.read())
                        indexes[-1].append(int(response.headers["X-Consul-Index"]))
                bodies.append(b"\n".join(answers))
    assert bodies[0] == bodies[1]
    assert all(after >= before for before, after in zip(*indexes, strict=True)), indexes


async def test_what_meets_on_one_key_is_decided_anew_until_each_has_its_turn(tmp_path: Path) -> None:
    """Decisions are made on the durable state, which lags behind: most of those that meet must be made again."""
    async with Registry(node="home", rng=random.Random(1), data_dir=tmp_path) as registry:
        at = (await registry.serve(http="127.0.0.1:0")).http
        async with aiohttp.ClientSession(f"http://{at}", connector=aiohttp.TCPConnector(limit=0)) as session:
            ids = []
            for _ in range(30):
                async with session.put("/v1/session/create", json={"LockDelay": "0s"}) as response:
                    ids.append((await response.json())["ID"])

            async def append(number: int) -> None:
                operations = [
                    {"KV": {"Verb": "get-or-empty", "Key": "shared"}},
                    {"KV": {"Verb": "set", "Key": "shared", "Value": "", "Flags": number}},
                ]
                async with session.put("/v1/txn", json=operations) as response:
                    assert response.status == 200, await response.text()

            async def lock(id_: str) -> bool:
                async with session.put(f"/v1/kv/lock?acquire={id_}") as response:
                    assert response.status == 200, await response.text()
                    return await response.json() is True

            won, _ = await asyncio.gather(
                asyncio.gather(*[lock(id_) for id_ in ids]),
                asyncio.gather(*[append(number) for number in range(1, 101)]),
            )
            assert sum(won) == 1
            async with session.get("/v1/kv/lock") as response:
                (found,) = await response.json()
                assert found["Session"] == ids[won.index(True)]
            shared = registry.store.mvcc.get(b"k/shared")
            assert shared is not None
            assert shared.version == 100, "each wrote once"
