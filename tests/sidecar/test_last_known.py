"""What a sidecar makes of the file of the last known endpoints."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homeport.client import Client
from homeport.client.core import limits, snapshot
from homeport.client.core.model import Instance
from homeport.client.core.snapshot import Known, Snapshot
from homeport.client.last_known import LastKnown, replace
from homeport.registry import Registry
from homeport.sidecar import Sidecar

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net

NOW_S = 1_800_000_000.0


def instance(number: int = 1) -> Instance:
    return Instance(service="orders", id=f"orders-{number}", address="127.0.0.1", port=number, tags=("a",))


def made(*instances: Instance, confirmed_at_s: float = NOW_S) -> Snapshot:
    return Snapshot("a-history", (Known("orders", 7, confirmed_at_s, instances),))


async def test_a_damaged_file_is_said_aloud_and_ignored(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "endpoints"
    path.write_bytes(snapshot.encode(made(instance(1), confirmed_at_s=time.time()))[:-1])
    with caplog.at_level(logging.ERROR, "homeport.client"):
        sidecar = await net.sidecar(state_file=path)
    assert "checksum" in caplog.text
    assert sidecar.outbound is not None
    assert sidecar.outbound.clusters == {}


async def test_the_file_follows_what_is_known(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("homeport.client.last_known.SAVE_DELAY_S", 0.01)
    path = tmp_path / "endpoints"
    upstream = await net.answering(net.ok())
    sidecar = await net.sidecar(state_file=path)
    feed = net.registrar.feed("orders")
    feed.say(upstream.instance())
    await net.ask(sidecar, net.get())
    feed.say(upstream.instance(), instance(2))
    reader = LastKnown(path, lambda _now: made())

    def held() -> int:
        last = reader.load()
        return len(last.services[0].instances) if last is not None and last.services else 0

    await eventually(lambda: held() == 2)
    feed.say(upstream.instance())
    await sidecar.close()
    assert held() == 1


async def test_a_sidecar_that_starts_without_a_registry_serves_from_the_file_and_says_how_old_it_is(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECALL_S", 0.05)
    path = tmp_path / "endpoints"
    upstream = await net.answering(net.ok())
    replace(path, snapshot.encode(made(upstream.instance(), confirmed_at_s=time.time() - 3600.0)))
    async with (
        Client("127.0.0.1:1", rng=random.Random(net.seed)) as client,
        Sidecar(client, outbound="127.0.0.1:0", admin="127.0.0.1:0", state_file=path) as sidecar,
    ):
        answer = await net.ask(sidecar, net.get(extra="x-homeport-stale: ?\r\n"))
        assert answer.endswith(b"hi")
        assert b"\r\nx-homeport-stale: 36" in answer
        assert b"x-homeport-stale" not in await net.ask(sidecar, net.get())
        assert b"x-homeport-stale" not in upstream.heads[0]
        listed = await net.ask(sidecar, net.get("/metrics"), "admin")
        age = next(line for line in listed.splitlines() if line.startswith(b"homeport_subscription_age_seconds{"))
        assert float(age.split()[1]) >= 3600.0


async def test_what_the_file_says_gives_way_to_the_registry_before_the_first_request(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    upstream = await net.answering(net.ok())
    replace(path, snapshot.encode(made(instance(1), confirmed_at_s=time.time())))
    async with Registry() as registry:
        client = registry.client()
        async with (
            client,
            client.register("orders", port=upstream.port),
            Sidecar(client, outbound="127.0.0.1:0", state_file=path) as sidecar,
        ):
            answer = await net.ask(sidecar, net.get(extra="x-homeport-stale: ?\r\n"))
            assert answer.endswith(b"hi")
            assert b"\r\nx-homeport-stale: 0\r\n" in answer
            assert sidecar.outbound is not None
            (endpoint,) = sidecar.outbound.clusters["orders"].endpoints.values()
            assert endpoint.port == upstream.port


async def test_an_empty_registry_does_not_empty_what_the_file_says(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    upstream = await net.answering(net.ok())
    replace(path, snapshot.encode(made(upstream.instance(), confirmed_at_s=time.time())))
    async with Registry() as registry:
        client = registry.client()
        async with client, Sidecar(client, outbound="127.0.0.1:0", state_file=path) as sidecar:
            assert sidecar.outbound is not None
            assert sidecar.outbound.subscriptions["orders"].held
            assert (await net.ask(sidecar, net.get())).endswith(b"hi")


async def test_a_sidecar_without_a_registry_does_not_wait_for_ever(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    replace(path, snapshot.encode(made(instance(1), confirmed_at_s=time.time())))
    async with asyncio.timeout(net.patience_s):
        async with Client("127.0.0.1:1") as client, Sidecar(client, outbound="127.0.0.1:0", state_file=path):
            pass
