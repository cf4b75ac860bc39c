"""What a changed configuration changes in a running sidecar, and what it leaves alone."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from homeport.sidecar import Balancing, ServiceSettings, Sidecar, Subset, Timeouts, UpstreamTls

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net, Raw


def only(version: str) -> ServiceSettings:
    return ServiceSettings(balancing=Balancing(subset=Subset(version=version)))


def changed(sidecar: Sidecar, **fields: Any) -> None:
    sidecar.reconfigure(msgspec.structs.replace(sidecar.options, **fields))


async def test_static_services_come_change_and_go(net: Net) -> None:
    one, two = await net.answering(net.ok(b"one")), await net.answering(net.ok(b"two"))
    sidecar = await net.sidecar(static={"database": [one.address], "old": [one.address]})
    assert (await net.ask(sidecar, net.get(host="database"))).endswith(b"one")
    assert (await net.ask(sidecar, net.get(host="old"))).endswith(b"one")
    changed(sidecar, static={"database": [two.address], "new": [two.address]})
    assert (await net.ask(sidecar, net.get(host="database"))).endswith(b"two")
    assert (await net.ask(sidecar, net.get(host="new"))).endswith(b"two")
    assert b" 404 " in await net.ask(sidecar, net.get(host="old"))


async def test_a_service_moves_between_the_registry_and_the_file(net: Net) -> None:
    one, two = await net.answering(net.ok(b"one")), await net.answering(net.ok(b"two"))
    sidecar = await net.proxy_to(one)
    assert (await net.ask(sidecar, net.get())).endswith(b"one")
    changed(sidecar, static={"orders": [two.address]})
    assert (await net.ask(sidecar, net.get())).endswith(b"two")
    assert net.registrar.feeds["orders"].closed
    changed(sidecar, static={})
    assert (await net.ask(sidecar, net.get())).endswith(b"one")


async def test_requests_under_way_end_as_they_began(net: Net) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slowly(raw: Raw) -> None:
        await raw.head()
        asked.set()
        await answer.wait()
        raw.send(net.ok(b"late"))

    sidecar = await net.sidecar(static={"database": [(await net.upstream(slowly)).address]})
    asking = asyncio.ensure_future(net.ask(sidecar, net.get(host="database")))
    await asked.wait()
    changed(sidecar, static={})
    answer.set()
    assert (await asking).endswith(b"late")


async def test_a_request_that_waits_for_the_registry_is_served_by_the_file(net: Net) -> None:
    sidecar = await net.sidecar()
    asking = asyncio.ensure_future(net.ask(sidecar, net.get()))
    await net.registrar.asked.wait()
    changed(sidecar, static={"orders": [(await net.answering(net.ok(b"file"))).address]})
    assert (await asking).endswith(b"file")


async def test_a_host_that_may_be_passed_to_no_more_is_refused(net: Net) -> None:
    upstream = await net.answering(net.ok(b"outside"))
    sidecar = await net.sidecar(passthrough=[upstream.address])
    assert (await net.ask(sidecar, net.get(host=upstream.address))).endswith(b"outside")
    changed(sidecar, passthrough=[])
    assert b" 404 " in await net.ask(sidecar, net.get(host=upstream.address))


async def test_timeouts_hold_for_the_next_request_of_a_known_service(net: Net) -> None:
    async def never(raw: Raw) -> None:
        await raw.until_end()

    sidecar = await net.proxy_to(await net.upstream(never))
    assert sidecar.outbound is not None
    sidecar.outbound.cluster_of("orders")
    changed(sidecar, timeouts=dataclasses.replace(Timeouts(), first_byte_s=0.05))
    assert b" 504 " in await net.ask(sidecar, net.get())


async def test_a_tcp_port_goes_where_the_file_says_now_and_what_is_open_stays(net: Net) -> None:
    def naming(name: bytes) -> Any:
        async def script(raw: Raw) -> None:
            raw.send(name)
            while data := await raw.reader.read(100):
                raw.send(data)

        return script

    one, two = await net.upstream(naming(b"1")), await net.upstream(naming(b"2"))
    sidecar = await net.sidecar(static={"database": [one.address]}, tcp={"database": "127.0.0.1:0"})
    old = await net.dial(sidecar, "tcp:database")
    assert await old.exactly(1) == b"1"
    changed(sidecar, static={"database": [two.address]})
    assert await (await net.dial(sidecar, "tcp:database")).exactly(1) == b"2"
    old.send(b"still")
    assert await old.exactly(5) == b"still"


async def test_settings_change_under_a_client_that_stays_connected(net: Net) -> None:
    one, two = await net.answering(net.ok(b"one")), await net.answering(net.ok(b"two"))
    net.registrar.feed("orders").say(one.instance(version="1"), two.instance(version="2"))
    sidecar = await net.sidecar()
    raw = await net.dial(sidecar)

    async def bodies() -> set[bytes]:
        found = set()
        for _ in range(30):
            raw.send(net.get(close=False))
            await raw.head()
            found.add(await raw.exactly(3))
        return found

    assert await bodies() == {b"one", b"two"}
    changed(sidecar, services={"Orders": only("1")})
    assert await bodies() == {b"one"}
    changed(sidecar, services={}, settings=only("2"))
    assert await bodies() == {b"two"}
    changed(sidecar, settings=ServiceSettings())
    assert await bodies() == {b"one", b"two"}


async def test_a_service_that_is_met_over_tls_from_now_on_is_asked_on_no_old_connection(
    net: Net, tmp_path: Path
) -> None:
    said: list[bytes] = []

    async def script(raw: Raw) -> None:
        while True:
            first = await raw.exactly(1)
            said.append(first)
            if first != b"G":
                return  # the beginning of TLS, which is not spoken here
            await raw.head()
            raw.send(net.ok())

    sidecar = await net.proxy_to(await net.upstream(script))
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")
    changed(sidecar, services={"orders": ServiceSettings(tls=UpstreamTls(verify=False))})
    assert b" 503 " in await net.ask(sidecar, net.get())
    assert said[0] == b"G"
    assert set(said[1:]) == {b"\x16"}
    with pytest.raises(FileNotFoundError):
        changed(sidecar, services={"orders": ServiceSettings(tls=UpstreamTls(ca=str(tmp_path / "none")))})
    changed(sidecar, services={})
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")
