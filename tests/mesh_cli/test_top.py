"""`homeport top`: rates and latencies of two samples, and one frame in a pipe."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from typing import Any

import aiohttp
from aiohttp import web

from homeport.mesh.commands.top import drawn, frame
from homeport.sidecar import Sidecar
from homeport.sidecar.core.histogram import SIZE
from homeport.sidecar.reports import BOUNDS, CLASSES


def sample(at_s: float, answers: int, errors: int = 0, bucket: int = 3, **endpoint: Any) -> dict[str, Any]:
    counts = [answers if index == bucket else 0 for index in range(SIZE)]
    host = {
        "id": "a", "node": "n", "address": "10.0.0.1:1", "state": "up", "status": "passing", "available": True,
        "active": 2, "suspect": False, "ejected": False, "ejections": 0, "answers": answers,
        "answers_s": answers * 0.001,
    }  # fmt: skip
    service = {
        "service": "orders",
        "direction": "outbound",
        "requests": dict.fromkeys(CLASSES, 0) | {"2xx": answers - errors, "5xx": errors},
        "retries": errors,
        "times": dict(zip(BOUNDS, counts, strict=True)),
    }
    cluster = {"service": "orders", "direction": "outbound", "age_s": 0.0, "endpoints": [host | endpoint]}
    return {
        "at_s": at_s,
        "sidecars": ["127.0.0.1:15000"],
        "silent": [],
        "clusters": [cluster],
        "stats": {"services": [service], "tcp": []},
        "registry": {"orders": 1, "search": 3},
    }


def test_rates_and_latencies_are_those_between_two_looks() -> None:
    made = frame(sample(10.0, 100), sample(12.0, 300, errors=20))
    (service,) = made["services"]
    assert (service["per_s"], service["failed_per_s"], service["retries_per_s"]) == (100.0, 10.0, 10.0)
    assert 1.0 < service["p50_ms"] < 2.0
    (instance,) = made["instances"]
    assert (instance["per_s"], instance["mean_ms"], instance["state"]) == (100.0, 1.0, "passing")
    assert made["unused"] == {"search": 3}


def test_a_sidecar_that_restarted_counts_from_nothing() -> None:
    made = frame(sample(10.0, 100), sample(12.0, 4))
    assert made["services"][0]["per_s"] == 0.0
    assert made["instances"][0]["mean_ms"] is None


def test_the_worst_that_is_said_of_an_instance_is_shown() -> None:
    for endpoint, word in (
        ({"ejected": True, "suspect": True}, "ejected"),
        ({"state": "draining"}, "draining"),
        ({"suspect": True}, "suspect"),
        ({"status": "critical"}, "critical"),
    ):
        assert frame(sample(1.0, 1), sample(2.0, 1, **endpoint))["instances"][0]["state"] == word


def test_a_frame_can_be_drawn_without_anything_in_it() -> None:
    nothing = {"at_s": 1.0, "sidecars": [], "silent": ["x:1"], "clusters": [], "stats": {}, "registry": None}
    assert len(drawn(frame(nothing, nothing), terminal=True).renderables) == 1


async def run_top(*options: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "homeport.mesh.cli", "top", "--registry", "127.0.0.1:1", "--interval", "0.1", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_pipe_gets_one_frame() -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    static = {"orders": [f"127.0.0.1:{runner.addresses[0][1]}"]}
    async with (
        Sidecar(outbound="127.0.0.1:0", admin="127.0.0.1:0", static=static, rng=random.Random(1)) as sidecar,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://{sidecar.at['outbound']}/", headers={"host": "orders"}) as answer:
            assert answer.status == 200
        code, output = await run_top("--admin", sidecar.at["admin"])
        assert code == 0, output
        assert "1 sidecars, the registry does not answer" in output
        assert "orders" in output
        code, output = await run_top("--admin", f"{sidecar.at['admin']},127.0.0.1:1", "--json")
        made = json.loads(output)
        assert made["silent"] == ["127.0.0.1:1"]
        assert [each["service"] for each in made["services"]] == ["orders"]
        assert made["instances"][0]["address"] == static["orders"][0]
    await runner.cleanup()


async def test_without_any_sidecar_the_exit_code_says_so() -> None:
    code, output = await run_top("--admin", "127.0.0.1:1")
    assert code == 3
    assert "no sidecar answers at 127.0.0.1:1" in output
