"""The access log: a line for each request where it was asked for, and no secret in it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from homeport.registry import Registry
from homeport.registry.fronts.http import HttpFront

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.conftest import Eventually
    from tests.registry.http.conftest import Http

LOGGER = "homeport.registry.http.access"


@pytest.fixture
async def logged(registry: Registry, http: Http) -> AsyncIterator[Http]:
    front = HttpFront(registry.operations, rng=random.Random(1), access_log=True)
    http.at = await front.listen("127.0.0.1:0")
    http.front = front
    yield http
    await front.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == LOGGER]


async def test_each_request_is_one_line_of_json(logged: Http, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=LOGGER):
        await logged("PUT", "/v1/kv/a?flags=1", b"12345", User_Agent="tester")
        await logged("GET", "/v1/kv/a?raw")
        await logged("GET", "/nowhere")
    first, second, third = lines(caplog)
    assert (first["method"], first["target"], first["endpoint"]) == ("PUT", "/v1/kv/a?flags=1", "PUT /v1/kv/{key}")
    assert (first["status"], first["user_agent"], first["remote"]) == (200, "tester", "127.0.0.1")
    assert (second["bytes"], second["time"][-6:]) == (5, "+00:00")
    assert 0 <= second["duration_ms"] < 10_000
    assert (third["status"], third["endpoint"]) == (404, "none")


async def test_a_token_is_never_written(logged: Http, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        for query in ("?token=hush-1", "?raw&token=hush-2&x=1", "?TOKEN=hush-3"):
            await logged("GET", f"/v1/kv/a{query}", X_Consul_Token="hush-4", Authorization="Bearer hush-5")
    assert len(lines(caplog)) == 3
    assert all("hush" not in record.getMessage() for record in caplog.records if record.name.startswith("homeport"))


async def test_what_a_client_sends_cannot_make_a_line_of_its_own(
    logged: Http, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger=LOGGER):
        await logged("GET", "/v1/kv/a%0A%7B%22status%22%3A200%7D", User_Agent='x" \\ \u2028 {"status": 1}')
    (line,) = (record.getMessage() for record in caplog.records if record.name == LOGGER)
    assert "\n" not in line
    assert json.loads(line)["status"] == 404


async def test_a_client_that_hangs_up_is_logged_as_one(
    logged: Http, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    with caplog.at_level("INFO", logger=LOGGER):
        waiting = await logged.blocked("/v1/kv/a?index=1")
        waiting.cancel()
        await asyncio.wait([waiting])
        await eventually(lambda: lines(caplog))
    assert lines(caplog)[0]["status"] == 499


async def test_nothing_is_logged_unless_it_was_asked_for(http: Http, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await http("GET", "/v1/kv/a")
    assert lines(caplog) == []
