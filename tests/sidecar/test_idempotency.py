"""Idempotency keys over real sockets: what an inbound runs, answers again and refuses, and what an outbound sends."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from homeport.client.core.model import Instance
from homeport.sidecar import (
    Idempotency,
    Limits,
    Mirror,
    Observing,
    Remembering,
    Route,
    Routing,
    ServerTls,
    ServiceSettings,
    Sidecar,
    Workers,
)
from tests.conftest import Eventually
from tests.sidecar.conftest import Net, Raw, Upstream

KEYED = ServiceSettings(idempotency=Idempotency())


async def app_of(net: Net, answer: Callable[[bytes, bytes], bytes] | None = None) -> Upstream:
    """An application that keeps heads, and answers each request with how many there were."""
    made: Upstream

    async def script(raw: Raw) -> None:
        while True:
            head = await raw.head()
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            body = await raw.exactly(length)
            made.heads.append(head)
            raw.send(answer(head, body) if answer is not None else net.ok(b"run %d" % len(made.heads)))

    made = await net.upstream(script)
    return made


async def inbound_to(net: Net, app: Upstream, **options: Any) -> Sidecar:
    options.setdefault("remembering", Remembering())
    return await net.sidecar(outbound=None, inbound="127.0.0.1:0", app=app.address, static={}, **options)


def post(body: str = "order", *, path: str = "/", key: str = '"k"', extra: str = "", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: orders\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    keys = f"Idempotency-Key: {key}\r\n" if key else ""
    return f"{head}{keys}{extra}\r\n{body}".encode()


def status(answer: bytes) -> int:
    return int(answer[9:12])


async def test_the_same_again_gets_the_same_answer_and_does_not_run(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app)
    first = await net.ask(inbound, post(), "inbound")
    again = await net.ask(inbound, post(), "inbound")
    assert first.endswith(b"run 1")
    assert again.endswith(b"run 1")
    assert b"Idempotent-Replayed: true" in again
    assert b"Idempotent-Replayed" not in first
    assert b'Idempotency-Key: "k"' in app.heads[0]
    assert b"x-homeport-idempotency" not in first + again


@pytest.mark.parametrize(
    "request_", [post(key=""), post(key='"other"'), post(extra="Authorization: b\r\n"), post(extra="Cookie: a=b\r\n")]
)
async def test_another_key_or_another_caller_is_another_request(net: Net, request_: bytes) -> None:
    inbound = await inbound_to(net, await app_of(net))
    await net.ask(inbound, post(), "inbound")
    assert (await net.ask(inbound, request_, "inbound")).endswith(b"run 2")


@pytest.mark.parametrize("request_", [post("other"), post(path="/other"), post(method="PATCH")])
async def test_the_same_key_for_another_request_is_422(net: Net, request_: bytes) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app)
    await net.ask(inbound, post(), "inbound")
    answer = await net.ask(inbound, request_, "inbound")
    assert status(answer) == 422
    assert b"x-homeport-response-flags: IX" in answer
    assert len(app.heads) == 1


async def test_what_is_no_key_is_400(net: Net) -> None:
    inbound = await inbound_to(net, await app_of(net))
    assert status(await net.ask(inbound, post(extra='Idempotency-Key: "l"\r\n'), "inbound")) == 400


async def test_methods_that_may_be_repeated_anyway_are_not_remembered(net: Net) -> None:
    inbound = await inbound_to(net, await app_of(net))
    await net.ask(inbound, post(method="PUT"), "inbound")
    assert (await net.ask(inbound, post(method="PUT"), "inbound")).endswith(b"run 2")


async def test_a_concurrent_duplicate_waits_for_the_first(net: Net, eventually: Eventually) -> None:
    let_go = asyncio.Event()
    runs = 0

    async def script(raw: Raw) -> None:
        nonlocal runs
        await raw.head()
        runs += 1
        await let_go.wait()
        raw.send(net.ok(b"once"))
        await raw.until_end()

    inbound = await inbound_to(net, await net.upstream(script))
    asking = [asyncio.create_task(net.ask(inbound, post(""), "inbound")) for _ in range(5)]
    assert inbound.inbound is not None
    memory = inbound.inbound.memory
    assert memory is not None
    await eventually(lambda: runs == 1 and memory.waited == 4)
    let_go.set()
    assert all(answer.endswith(b"once") for answer in await asyncio.gather(*asking))
    assert runs == 1


async def test_an_answer_that_its_client_did_not_wait_for_is_there_when_it_asks_again(
    net: Net, eventually: Eventually
) -> None:
    let_go = asyncio.Event()
    app = await net.upstream(lambda raw: _slow(net, raw, let_go, app))
    inbound = await inbound_to(net, app)
    raw = await net.dial(inbound, "inbound")
    raw.send(post())
    await eventually(lambda: app.heads)
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    raw.writer.get_extra_info("socket").setsockopt(1, 13, linger)  # SO_LINGER 0: what breaks, and does not just end
    raw.reset()
    assert inbound.inbound is not None
    proxy = inbound.inbound
    await eventually(lambda: len(proxy.left) == 1)
    let_go.set()
    await eventually(lambda: not proxy.left)
    assert (await net.ask(inbound, post(), "inbound")).endswith(b"late")
    assert len(app.heads) == 1
    assert proxy.active == 0


async def _slow(net: Net, raw: Raw, let_go: asyncio.Event, app: Upstream) -> None:
    app.heads.append(await raw.head())
    await let_go.wait()
    raw.send(net.ok(b"late"))
    await raw.until_end()


async def test_chunks_and_trailers_are_remembered_and_compared_without_their_framing(net: Net) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nChecksum: 7\r\n\r\n"

    async def script(raw: Raw) -> None:
        while True:
            await raw.until(b"0\r\n\r\n")
            raw.send(chunked)

    inbound = await inbound_to(net, await net.upstream(script))
    head = (
        b"POST / HTTP/1.1\r\nHost: o\r\nIdempotency-Key: k\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    first = await net.ask(inbound, head + b"5\r\norder\r\n0\r\n\r\n", "inbound")
    again = await net.ask(inbound, head + b"2\r\nor\r\n3\r\nder\r\n0\r\n\r\n", "inbound")
    assert first.endswith(b"3\r\nabc\r\n0\r\nChecksum: 7\r\n\r\n")
    assert again.endswith(b"3\r\nabc\r\n0\r\nChecksum: 7\r\n\r\n")


async def test_a_client_that_waits_for_100_continue_gets_it(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app)
    raw = await net.dial(inbound, "inbound")
    whole = post(extra="Expect: 100-continue\r\n")
    raw.send(whole[:-5])
    assert (await raw.head()).startswith(b"HTTP/1.1 100 ")
    raw.send(whole[-5:])
    assert (await raw.until_end()).endswith(b"run 1")
    assert b"Expect" not in app.heads[0]


async def test_bodies_that_come_in_pieces_are_taken_in_before_anything_runs(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app)
    raw = await net.dial(inbound, "inbound")
    for byte in post():
        raw.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await raw.until_end()).endswith(b"run 1")
    assert (await net.ask(inbound, post(), "inbound")).endswith(b"run 1")


async def test_a_body_too_large_to_hold_passes_once_and_is_refused_again(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app, limits=Limits(replay_bytes=1000))
    assert (await net.ask(inbound, post("x" * 100_000), "inbound")).endswith(b"run 1")
    assert status(await net.ask(inbound, post("x" * 100_000), "inbound")) == 409
    assert len(app.heads) == 1


async def test_what_could_not_be_handed_on_may_come_again(net: Net) -> None:
    app = await app_of(net)
    inbound = await net.sidecar(
        outbound=None, inbound="127.0.0.1:0", app="127.0.0.1:1", static={}, remembering=Remembering()
    )
    assert inbound.inbound is not None
    answer = await net.ask(inbound, post(), "inbound")
    assert status(answer) == 503
    assert b"x-homeport-undelivered: 1" in answer
    inbound.inbound.app.update({(each := app.instance("app")).key: each})
    assert (await net.ask(inbound, post(), "inbound")).endswith(b"run 1")


async def test_an_answer_that_broke_is_never_asked_for_again(net: Net) -> None:
    async def script(raw: Raw) -> None:
        await raw.until(b"order")
        raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    app = await net.upstream(script)
    inbound = await inbound_to(net, app)
    assert (await net.ask(inbound, post(), "inbound")).endswith(b"half")
    answer = await net.ask(inbound, post(), "inbound")
    assert status(answer) == 409
    assert b"its answer broke off" in answer
    assert app.connections == 1


async def test_an_inbound_that_does_not_remember_refuses_who_believes_it_does(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app, remembering=None)
    answer = await net.ask(inbound, post(extra="x-homeport-idempotency: abc.1\r\n"), "inbound")
    assert status(answer) == 425
    assert not app.heads
    assert (await net.ask(inbound, post(), "inbound")).endswith(b"run 1")


async def test_a_key_that_got_lost_on_the_way_is_missed(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app)
    assert status(await net.ask(inbound, post(key="", extra="x-homeport-idempotency: -\r\n"), "inbound")) == 400
    assert not app.heads


async def test_an_inbound_that_stopped_remembering_is_sent_to_as_any_other(net: Net) -> None:
    app = await app_of(net)
    inbound = await inbound_to(net, app, remembering=None)
    host, _, port = inbound.at["inbound"].rpartition(":")
    known = Instance(service="orders", id="a", address=host, port=int(port), meta={"idempotency": "true"})
    net.registrar.feed("orders").say(known)
    outbound = await net.sidecar(settings=KEYED)
    for number in (1, 2):
        answer = await net.ask(outbound, post(key=""))
        assert (status(answer), answer[-5:]) == (200, b"run %d" % number)


async def test_callers_with_certificates_are_told_apart_and_known_again_with_a_new_one(
    net: Net, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    issued = authority.issue_cert("orders.test")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    tls = ServerTls(cert=tmp_path / "cert", key=tmp_path / "key", client_ca=tmp_path / "ca")
    inbound = await inbound_to(net, await app_of(net), inbound_tls=tls)
    host, _, port = inbound.at["inbound"].rpartition(":")

    async def asked(name: str) -> bytes:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
        authority.issue_cert(name).configure_cert(context)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="orders.test")
        writer.write(post())
        async with asyncio.timeout(net.patience_s):
            answer = await reader.read()
        writer.close()
        return answer[-5:]

    assert [await asked("a.test"), await asked("b.test"), await asked("a.test")] == [b"run 1", b"run 2", b"run 1"]


async def test_a_copy_for_a_mirror_bears_the_key_and_no_token(net: Net, eventually: Eventually) -> None:
    app, copied = await app_of(net), await app_of(net)
    inbound = await inbound_to(net, app)
    host, _, port = inbound.at["inbound"].rpartition(":")
    known = Instance(service="orders", id="a", address=host, port=int(port), meta={"idempotency": "true"})
    net.registrar.feed("orders").say(known)
    net.registrar.feed("shadow").say(copied.instance("shadow"))
    routes = {"orders": Routing(routes=(Route(mirror=Mirror(service="shadow")),))}
    outbound = await net.sidecar(settings=KEYED, routes=routes)
    raw = await net.dial(outbound)
    whole = post(key="")
    raw.send(whole[:-3])  # the copy is sent when all is here, after the original has begun
    assert outbound.outbound is not None
    clusters = outbound.outbound.clusters
    await eventually(
        lambda: "orders" in clusters and any(each.active for each in clusters["orders"].endpoints.values())
    )
    raw.send(whole[-3:])
    assert (await raw.until_end()).endswith(b"run 1")
    await eventually(lambda: copied.heads)
    assert b"Idempotency-Key: " in copied.heads[0]
    assert b"x-homeport" not in copied.heads[0]


async def test_an_outbound_gives_keys_and_keeps_those_that_are_there(net: Net) -> None:
    app = await app_of(net)
    sidecar = await net.proxy_to(app, settings=KEYED)
    await net.ask(sidecar, post(key=""))
    await net.ask(sidecar, post(key=""))
    await net.ask(sidecar, post(key='"mine"'))
    await net.ask(sidecar, net.get())
    first, second, third = ([line for line in head.split(b"\r\n") if b"dempotency" in line] for head in app.heads[:3])
    assert len(first) == len(second) == 1
    assert first != second
    assert third == [b'Idempotency-Key: "mine"']
    assert b"dempotency" not in app.heads[3]
    assert sidecar.outbound is not None
    assert sidecar.outbound.keys_given == 2


async def test_without_the_setting_nothing_is_added(net: Net) -> None:
    app = await app_of(net)
    sidecar = await net.proxy_to(app)
    await net.ask(sidecar, post(key=""))
    assert b"dempotency" not in app.heads[0]


async def test_replays_and_refusals_are_counted_and_logged(net: Net, tmp_path: Path, eventually: Eventually) -> None:
    log = tmp_path / "log"
    inbound = await inbound_to(net, await app_of(net), observing=Observing(access_log=str(log)), admin="127.0.0.1:0")
    for body in ("order", "order", "other"):
        await net.ask(inbound, post(body), "inbound")
    await eventually(lambda: log.exists() and log.read_text().count("\n") == 3)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(each["status"], each.get("flags", "")) for each in entries] == [(200, ""), (200, "IR"), (422, "IX")]
    async with aiohttp.ClientSession() as session, session.get(f"http://{inbound.at['admin']}/metrics") as answer:
        metrics = await answer.text()
    assert "homeport_idempotency_run_total 1.0" in metrics
    assert "homeport_idempotency_replayed_total 1.0" in metrics
    assert 'homeport_idempotency_refused_total{reason="mismatch"} 1.0' in metrics
    assert "homeport_idempotency_answers 1.0" in metrics


def test_several_workers_do_not_remember_and_say_why() -> None:
    options: dict[str, Any] = {"inbound": "127.0.0.1:0", "app": "127.0.0.1:1", "remembering": Remembering()}
    with pytest.raises(ValueError, match="which may reach another one"):
        Workers(None, count=2, command=["true"], **options)
    Workers(None, count=1, command=["true"], **options)


def test_remembering_needs_an_inbound() -> None:
    with pytest.raises(ValueError, match="inbound"):
        Sidecar(None, static={}, remembering=Remembering())
