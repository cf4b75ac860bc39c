"""How a sidecar begins, drains and ends, and what it does when the registry is silent or gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession

from homeport.sidecar import Sidecar, Timeouts
from homeport.sidecar.core import limits

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw


class Registration:
    """Remembers what it was asked, in order, in a diary shared with the rest of the test."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary
        self.started = asyncio.Event()
        self.drained = asyncio.Event()

    async def start(self) -> None:
        self.diary.append("start")
        self.started.set()

    async def drain(self) -> None:
        self.diary.append("drain")
        self.drained.set()

    async def stop(self) -> None:
        self.diary.append("stop")


async def test_while_the_drain_is_announced_answers_already_say_that_the_connection_ends(net: Net) -> None:
    app = await net.answering(net.ok())
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address)
    acknowledged = asyncio.Event()

    class Announcing(Registration):
        async def drain(self) -> None:
            await super().drain()
            await acknowledged.wait()

    registration, sigterm = Announcing([]), asyncio.Event()

    async def stop_app() -> None:
        registration.diary.append("stop app")

    serving = asyncio.create_task(
        sidecar.serve_app(registration, stopping=sigterm.wait(), exited=asyncio.Event().wait(), stop_app=stop_app)
    )
    async with asyncio.timeout(net.patience_s):
        await registration.started.wait()
        sigterm.set()
        await registration.drained.wait()
        answer = await net.ask(sidecar, net.get(close=False), "inbound")
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"hi")
        acknowledged.set()
        await serving
    assert registration.diary == ["start", "drain", "stop", "stop app"]


async def test_more_requests_than_the_app_takes_go_to_another_instance_whatever_their_method(net: Net) -> None:
    slow = Slow(net)
    busy = await net.sidecar(
        outbound=None, inbound="127.0.0.1:0", app=(await net.upstream(slow.script)).address, concurrency_max=1
    )
    free = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=(await net.answering(net.ok())).address)
    sidecar = await net.sidecar(static={"orders": [busy.at["inbound"], free.at["inbound"]]})
    holding = await net.dial(busy, "inbound")
    holding.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await slow.arrived.wait()
    answers = [await net.ask(sidecar, net.get(method="POST")) for _ in range(8)]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert busy.inbound is not None
    assert busy.inbound.refusals.get("UO", 0) > 0
    slow.release.set()


async def test_a_tunnel_takes_the_place_of_no_request_however_long_it_lives(net: Net, eventually: Eventually) -> None:
    async def script(raw: Raw) -> None:
        if b"Upgrade: websocket" not in await raw.head():
            raw.send(net.ok(b"done"))
            return
        raw.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await raw.until_end()

    app = await net.upstream(script)
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address, concurrency_max=1)
    inbound = sidecar.inbound
    assert inbound is not None
    chats = []
    for _ in range(3):
        chats.append(await net.dial(sidecar, "inbound"))
        chats[-1].send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await chats[-1].head()).startswith(b"HTTP/1.1 101 ")
    assert (await net.ask(sidecar, net.get(), "inbound")).endswith(b"done")
    assert (inbound.active, inbound.tunnels) == (3, 3)
    chats[0].writer.transport.abort()
    chats[1].writer.write_eof()
    await eventually(lambda: (inbound.active, inbound.tunnels) == (1, 1))
    inbound.close()
    assert (inbound.active, inbound.tunnels) == (0, 0)


async def test_failures_of_the_app_are_told_to_whoever_watches_it(net: Net) -> None:
    told = asyncio.Event()
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app="127.0.0.1:1")
    assert sidecar.inbound is not None
    sidecar.inbound.on_trouble = told.set
    assert (await net.ask(sidecar, net.get(), "inbound")).startswith(b"HTTP/1.1 503 ")
    async with asyncio.timeout(net.patience_s):
        await told.wait()


class Slow:
    """An application that answers when it is let go."""

    def __init__(self, net: Net) -> None:
        self.arrived = asyncio.Event()
        self.release = asyncio.Event()
        self.net = net

    async def script(self, raw: Raw) -> None:
        while True:
            await raw.head()
            self.arrived.set()
            await self.release.wait()
            raw.send(self.net.ok(b"done"))


async def test_a_slow_handler_finishes_before_the_application_is_stopped(net: Net) -> None:
    slow = Slow(net)
    app = await net.upstream(slow.script)
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address)
    diary: list[str] = []
    registration, sigterm = Registration(diary), asyncio.Event()

    async def stop_app() -> None:
        diary.append("stop app")

    serving = asyncio.create_task(
        sidecar.serve_app(registration, stopping=sigterm.wait(), exited=asyncio.Event().wait(), stop_app=stop_app)
    )
    async with asyncio.timeout(net.patience_s):
        await registration.started.wait()
        client = await net.dial(sidecar, "inbound")
        client.send(net.get(close=False))
        await slow.arrived.wait()
        sigterm.set()
        await registration.drained.wait()
        late = await net.dial(sidecar, "inbound")
        late.send(net.get(close=False))
        assert diary == ["start", "drain"]
        slow.release.set()
        answer = await client.until_end()
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"done")
        assert (await late.until_end()).endswith(b"done")
        await serving
    assert diary == ["start", "drain", "stop", "stop app"]


async def test_an_application_that_exits_by_itself_is_deregistered_at_once(net: Net) -> None:
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app="127.0.0.1:1")
    diary: list[str] = []
    registration, exited = Registration(diary), asyncio.Event()

    async def stop_app() -> None:
        diary.append("stop app")

    exited.set()
    async with asyncio.timeout(net.patience_s):
        await sidecar.serve_app(registration, stopping=asyncio.Event().wait(), exited=exited.wait(), stop_app=stop_app)
    assert "drain" not in diary
    assert diary[-1] == "stop"


async def test_cancelling_serve_app_still_deregisters_and_stops_the_application(net: Net) -> None:
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app="127.0.0.1:1")
    diary: list[str] = []
    registration = Registration(diary)

    async def stop_app() -> None:
        diary.append("stop app")

    serving = asyncio.create_task(
        sidecar.serve_app(
            registration, stopping=asyncio.Event().wait(), exited=asyncio.Event().wait(), stop_app=stop_app
        )
    )
    async with asyncio.timeout(net.patience_s):
        await registration.started.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert diary == ["start", "stop", "stop app"]


async def test_whoever_drains_hears_of_the_end_also_if_others_do_too(net: Net) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slowly(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await release.wait()
        raw.send(net.ok())

    app = await net.upstream(slowly)
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address)
    raw = await net.dial(sidecar, "inbound")
    raw.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
        draining = [asyncio.create_task(sidecar.drain(net.patience_s)) for _ in range(2)]
        assert not await sidecar.drain(0.01)
        release.set()
        assert await asyncio.gather(*draining) == [True, True]


async def test_drain_gives_up_after_its_time(net: Net) -> None:
    slow = Slow(net)
    app = await net.upstream(slow.script)
    sidecar = await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address)
    client = await net.dial(sidecar, "inbound")
    client.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await slow.arrived.wait()
    assert not await sidecar.drain(0.05)


async def test_the_first_request_waits_until_its_service_is_known(net: Net) -> None:
    made = await net.answering(net.ok())
    sidecar = await net.sidecar()
    client = await net.dial(sidecar)
    client.send(net.get())
    async with asyncio.timeout(net.patience_s):
        await net.registrar.asked.wait()
    net.registrar.feed("orders").say(made.instance())
    assert (await client.until_end()).endswith(b"hi")


async def test_a_service_that_the_registry_does_not_tell_of_in_time_is_503_and_one_it_does_not_know_404(
    net: Net,
) -> None:
    sidecar = await net.sidecar(timeouts=Timeouts(known_s=0.1))
    answer = await net.ask(sidecar, net.get(host="silent"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"flags: UH\r\n" in answer
    net.registrar.feed("nothing").say()
    assert (await net.ask(sidecar, net.get(host="nothing"))).startswith(b"HTTP/1.1 404 ")


async def test_a_service_whose_instances_are_all_unwell_is_503_uh(net: Net) -> None:
    made = await net.answering(net.ok())
    feed = net.registrar.feed("orders")
    sidecar = await net.sidecar()
    for unwell in ({"status": "critical"}, {"state": "draining"}, {"state": "maintenance"}):
        feed.say(made.instance(**unwell))
        answer = await net.ask(sidecar, net.get())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"flags: UH\r\n" in answer
    feed.say(made.instance(status="warning"))
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")


async def test_made_up_names_are_bounded_and_forgotten(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SERVICES_MAX", 5)
    sidecar = await net.sidecar()
    assert sidecar.outbound is not None
    for number in range(9):
        net.registrar.feed(f"fake{number}").say()
    answers = [await net.ask(sidecar, net.get(host=f"fake{number}")) for number in range(9)]
    assert [answer[9:12] for answer in answers] == [b"404"] * 5 + [b"503"] * 4
    monkeypatch.setattr(limits, "UNUSED_S", 0.2)  # not before: nine requests may take longer
    async with asyncio.timeout(net.patience_s):
        while sidecar.outbound.clusters:
            turn = asyncio.Event()
            asyncio.get_running_loop().call_later(0.02, turn.set)
            await turn.wait()
    assert net.registrar.feeds["fake0"].closed
    net.registrar.feed("orders").say((await net.answering(net.ok())).instance())
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")


async def test_idle_connections_are_closed_before_the_instance_would(net: Net) -> None:
    ended = asyncio.Event()

    async def script(raw: Raw) -> None:
        await raw.head()
        raw.send(net.ok())
        assert await raw.until_end() == b""
        ended.set()

    made = await net.upstream(script)
    net.registrar.feed("orders").say(made.instance(idle_timeout_s=1.2))
    sidecar = await net.sidecar()
    assert (await net.ask(sidecar, net.get())).endswith(b"hi")
    assert sidecar.outbound is not None
    (endpoint,) = sidecar.outbound.clusters["orders"].endpoints.values()
    (idle,) = endpoint.idle
    instance_would = asyncio.Event()
    asyncio.get_running_loop().call_at(idle.idle_since_s + 1.2, instance_would.set)  # of one loop: load delays both
    async with asyncio.timeout(net.patience_s):
        await instance_would.wait()
        assert endpoint.idle == []
        await ended.wait()


@pytest.mark.parametrize("sent", [{"Origin": "http://somewhere.test"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_a_page_of_the_web_cannot_drain(net: Net, sent: dict[str, str]) -> None:
    sidecar = await net.sidecar(admin="127.0.0.1:0")
    async with ClientSession() as session:
        async with session.post(f"http://{sidecar.at['admin']}/drain", headers=sent) as answer:
            assert answer.status == 403
        assert not sidecar.draining
        async with session.post(f"http://{sidecar.at['admin']}/drain") as answer:
            assert await answer.json() == {"drained": True}
        async with session.get(f"http://{sidecar.at['admin']}/stats?format=xml") as answer:
            assert answer.status == 400
            assert "allowed: json, text" in await answer.text()


async def test_the_admin_port_tells_and_drains(net: Net) -> None:
    made = await net.answering(net.ok())
    net.registrar.feed("orders").say(made.instance())
    sidecar = await net.sidecar(admin="127.0.0.1:0")
    await net.ask(sidecar, net.get())
    await net.ask(sidecar, net.get(host="1.2.3.4"))
    at = f"http://{sidecar.at['admin']}"
    async with ClientSession() as session:
        async with session.get(f"{at}/ready") as answer:
            assert answer.status == 200
        async with session.get(f"{at}/clusters") as answer:
            (cluster,) = await answer.json()
            assert cluster["service"] == "orders"
            assert cluster["endpoints"][0]["address"] == made.address
        async with session.get(f"{at}/stats") as answer:
            assert (await answer.json())["listeners"]["outbound"]["own_answers"] == {"NR": 1}
        async with session.get(f"{at}/metrics") as answer:
            text = await answer.text()
        for line in (
            'homeport_downstream_rq_total{listener="outbound"} 2.0',
            'homeport_upstream_rq_total{code_class="2xx",direction="outbound",service="orders"} 1.0',
            'homeport_upstream_rq_retry_total{direction="outbound",service="orders"} 0.0',
            'homeport_upstream_cx_connect_fail_total{direction="outbound",service="orders"} 0.0',
        ):
            assert line in text
        async with session.post(f"{at}/drain", headers={"Origin": "http://elsewhere.example"}) as answer:
            assert answer.status == 403, "a web page must not take a service down"
        async with session.get(f"{at}/ready") as answer:
            assert answer.status == 200
        async with session.post(f"{at}/drain") as answer:
            assert await answer.json() == {"drained": True}
        async with session.get(f"{at}/ready") as answer:
            assert answer.status == 503


async def test_what_was_forwarded_is_kept_outbound_and_distrusted_inbound(net: Net) -> None:
    made = await net.answering(net.ok())
    sidecar = await net.sidecar(inbound="127.0.0.1:0", app=made.address, static={"orders": [made.address]})
    extra = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\nX-Homeport-Evil: 1\r\n"
    await net.ask(sidecar, net.get(extra=extra))
    await net.ask(sidecar, net.get(extra=extra), "inbound")
    out, into = made.heads
    assert b"X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\n" in out
    assert b"X-Forwarded-Proto: https\r\n" in out
    assert b"9.9.9.9" not in into
    assert b"X-Forwarded-For: 127.0.0.1\r\n" in into
    assert b"X-Forwarded-Proto: http\r\n" in into
    assert b"evil" not in into.lower()


async def test_a_listener_can_be_off_and_a_failed_start_leaves_nothing_open(net: Net) -> None:
    off = await net.sidecar(outbound="off")
    assert off.at == {}
    assert off.outbound is None
    taken = await net.sidecar()
    broken = Sidecar(outbound="127.0.0.1:0", admin=taken.at["outbound"])
    with pytest.raises(OSError, match="in use"):
        await broken.start()
    host, port = broken.at["outbound"].split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize(
    "options", [{"outbound": "nonsense"}, {"inbound": "127.0.0.1:0"}, {"static": {"db": ["127.0.0.1"]}}, {"app": "x:0"}]
)
def test_wrong_options_are_refused_when_they_are_given(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        Sidecar(None, **options)  # type: ignore[arg-type]
