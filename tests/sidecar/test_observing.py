"""The access log and traces: one line and one span per hop, whatever happened; nothing at all when they are off."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from homeport.client.core.errors import InvalidArgument
from homeport.sidecar import Observing, Retries, ServiceSettings, Sidecar, Timeouts
from homeport.sidecar.core import traces
from homeport.sidecar.core.histogram import BOUNDS_S, SIZE, quantile
from homeport.sidecar.log_file import BACKLOG_BYTES_MAX, LogFile
from homeport.sidecar.metrics import metrics
from homeport.sidecar.otlp import QUEUE_MAX, Exporter, Span

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw

PARENT = re.compile(rb"traceparent: (00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\r\n")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_request_leaves_a_line(net: Net, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    upstream = await net.answering(net.ok(b"hello"))
    sidecar = await net.proxy_to(upstream, observing=Observing(access_log=str(log)))
    await net.ask(sidecar, b"POST /a?b HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: 3\r\n\r\nxyz")
    await sidecar.close()
    (entry,) = entries(log)
    assert entry.pop("duration_ms") > 0
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "listener": "outbound",
        "client": "127.0.0.1",
        "method": "POST",
        "target": "/a?b",
        "protocol": "HTTP/1.1",
        "host": "orders",
        "status": 200,
        "bytes_in": 3,
        "bytes_out": 5,
        "service": "orders",
        "upstream": upstream.address,
    }


async def test_the_common_format_cannot_be_broken_out_of(net: Net, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options = Observing(access_log=str(log), log_format="common")
    sidecar = await net.proxy_to(await net.answering(net.ok(b"hello")), observing=options)
    await net.ask(sidecar, net.get('/"\\x'))
    await sidecar.close()
    line = log.read_text()
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /\\x22\\x5cx HTTP/1.1" 200 5 '
        r"- orders 127\.0\.0\.1:\d+ [\d.]+\n",
        line,
    ), line


async def _dies(raw: Raw) -> None:
    await raw.head()
    raw.reset()


async def _stops(raw: Raw) -> None:
    await raw.head()
    raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")
    await raw.writer.drain()


async def _hangs(raw: Raw) -> None:
    await raw.head()
    await raw.until_end()


@pytest.mark.parametrize(("script", "status", "flags"), [(_dies, 502, "UC"), (_stops, 200, "UC"), (_hangs, 504, "UT")])
async def test_what_went_wrong_has_a_flag(net: Net, tmp_path: Path, script: Any, status: int, flags: str) -> None:
    log = tmp_path / "access.log"
    timeouts = Timeouts(first_byte_s=0.05) if script is _hangs else Timeouts()
    options = {"observing": Observing(access_log=str(log)), "timeouts": timeouts}
    sidecar = await net.proxy_to(await net.upstream(script), **options)  # type: ignore[arg-type]
    await net.ask(sidecar, net.get())
    await sidecar.close()
    (entry,) = entries(log)
    assert (entry["status"], entry["flags"]) == (status, flags)


async def test_an_unknown_name_a_client_that_left_and_nonsense_have_flags(
    net: Net, tmp_path: Path, eventually: Eventually
) -> None:
    log = tmp_path / "access.log"
    sidecar = await net.proxy_to(await net.upstream(_hangs), observing=Observing(access_log=str(log)))
    await net.ask(sidecar, net.get(host="example.com"))
    await net.ask(sidecar, b"\x16\x03\x01nonsense\r\n\r\n")
    raw = await net.dial(sidecar)
    raw.send(net.get())
    outbound = sidecar.outbound
    assert outbound is not None
    await eventually(lambda: outbound.active == 1)
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raw.reset()
    await eventually(lambda: outbound.active == 0)
    await sidecar.close()
    assert [(each["status"], each["flags"]) for each in entries(log)] == [(404, "NR"), (400, "DPE"), (0, "DC")]


async def test_retries_that_did_not_help_are_told(net: Net, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    busy = [await net.answering(net.ok(status=b"503 Busy")) for _ in range(2)]
    settings = ServiceSettings(retries=Retries(retries_max=1))
    sidecar = await net.proxy_to(*busy, settings=settings, observing=Observing(access_log=str(log)))
    await net.ask(sidecar, net.get())
    await sidecar.close()
    (entry,) = entries(log)
    assert (entry["status"], entry["flags"], entry["retries"]) == (503, "URX", 1)


async def test_a_tcp_connection_leaves_a_line(net: Net, tmp_path: Path, eventually: Eventually) -> None:
    async def echo(raw: Raw) -> None:
        raw.send(await raw.exactly(5) + b"!")

    log = tmp_path / "access.log"
    sidecar = await net.proxy_to(
        await net.upstream(echo), tcp={"orders": "127.0.0.1:0"}, observing=Observing(access_log=str(log))
    )
    raw = await net.dial(sidecar, "tcp:orders")
    raw.send(b"hello")
    assert await raw.until_end() == b"hello!"
    raw.writer.close()
    await eventually(lambda: not sidecar.tcp[0].connections)
    await sidecar.close()
    (entry,) = entries(log)
    assert (entry["listener"], entry["bytes_in"], entry["bytes_out"]) == ("tcp:orders", 5, 6)


async def test_a_log_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(str(path))
    log.open()
    log.add(b"one\n")
    log.sweep()
    await log.close()
    log.open()
    path.rename(tmp_path / "access.log.1")
    log.add(b"two\n")
    await log.close()
    assert (tmp_path / "access.log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


async def test_a_log_that_cannot_keep_up_drops_and_counts(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "access.log"))
    log.open()
    line = b"x" * 99_999 + b"\n"
    for _ in range(100):
        log.add(line)
    assert log.dropped == 100 - BACKLOG_BYTES_MAX // len(line)
    await log.close()


async def test_without_tracing_trace_headers_pass_as_they_came(net: Net) -> None:
    upstream = await net.answering(net.ok())
    sidecar = await net.proxy_to(upstream)
    await net.ask(sidecar, net.get(extra=f"traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=b\r\n"))
    await net.ask(sidecar, net.get())
    assert f"traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=b\r\n".encode() in upstream.heads[0]
    assert b"traceparent" not in upstream.heads[1]
    assert sidecar.outbound is not None
    assert sidecar.outbound.observer is None


def joined(lines: list[bytes], sampling: float = 0.0) -> tuple[traces.Context, list[bytes]]:
    return traces.join(lines, sampling, random.Random(1))


def test_a_hop_writes_its_own_span_and_keeps_trace_sampling_and_state() -> None:
    context, lines = joined([f"Traceparent: 00-{TRACE}-{SPAN}-01".encode(), b"tracestate: a=b", b"x: y"])
    assert (context.trace, context.parent, context.sampled) == (TRACE, SPAN, True)
    assert context.span != SPAN
    assert lines == [b"x: y", b"tracestate: a=b", f"traceparent: 00-{TRACE}-{context.span}-01".encode()]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01".encode(),
    ],
)
def test_what_is_no_traceparent_starts_a_new_trace_without_the_old_state(value: bytes) -> None:
    context, lines = joined([b"traceparent: " + value, b"tracestate: a=b"])
    assert context.trace != TRACE
    assert not context.parent
    assert lines == [context.line]


def test_a_later_version_is_understood_as_far_as_this_one_goes() -> None:
    context, _ = joined([f"traceparent: 01-{TRACE}-{SPAN}-fd-more".encode()])
    assert context.line.startswith(f"traceparent: 00-{TRACE}-".encode())
    assert context.flags == 1


def test_the_share_of_new_traces_that_is_sampled_is_what_was_asked_for() -> None:
    rng = random.Random(7)
    sampled = sum(traces.join([], 0.25, rng)[0].sampled for _ in range(4000))
    assert 900 < sampled < 1100


async def test_a_trace_that_crosses_two_sidecars_and_two_services_is_one_trace() -> None:
    spans: list[dict[str, Any]] = []

    async def collect(request: web.Request) -> web.Response:
        for resource in (await request.json())["resourceSpans"]:
            (name,) = (each["value"]["stringValue"] for each in resource["resource"]["attributes"])
            spans.extend({**span, "of": name} for span in resource["scopeSpans"][0]["spans"])
        return web.json_response({})

    async def price(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["traceparent"])

    onward = ""

    async def order(request: web.Request) -> web.Response:
        """A service that calls another one, and passes the trace's headers on as every traced service does."""
        headers = {"traceparent": request.headers["traceparent"], "host": "prices"}
        async with aiohttp.ClientSession() as session, session.get(f"http://{onward}/", headers=headers) as answer:
            return web.Response(text=await answer.text())

    async def serve(path: str, handler: Any) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"127.0.0.1:{runner.addresses[0][1]}"

    collector, collects = await serve("/v1/traces", collect)
    orders, orders_at = await serve("/", order)
    prices, prices_at = await serve("/", price)

    def observing(service: str) -> Observing:
        return Observing(tracing=1.0, otlp=f"http://{collects}", service=service)

    any_port = "127.0.0.1:0"
    async with (
        Sidecar(outbound=None, inbound=any_port, app=prices_at, observing=observing("prices")) as callee,
        Sidecar(
            outbound=any_port,
            inbound=any_port,
            app=orders_at,
            static={"prices": [callee.at["inbound"]]},
            observing=observing("orders"),
        ) as caller,
        aiohttp.ClientSession() as session,
    ):
        onward = caller.at["outbound"]
        async with session.get(f"http://{caller.at['inbound']}/") as answer:
            last = (await answer.text()).split("-")
    for runner in (collector, orders, prices):
        await runner.cleanup()

    assert {span["traceId"] for span in spans} == {last[1]}
    by_parent = {span["parentSpanId"]: span for span in spans}
    chain = []
    span_id = ""
    while span_id in by_parent:
        span = by_parent[span_id]
        chain.append((span["of"], span["kind"], span["name"]))
        span_id = span["spanId"]
    assert chain == [("orders", 2, "GET app"), ("orders", 3, "GET prices"), ("prices", 2, "GET app")]
    assert span_id == last[2]
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)


async def test_a_collector_that_is_gone_costs_spans_and_no_request(net: Net, eventually: Eventually) -> None:
    observing = Observing(tracing=1.0, otlp="http://127.0.0.1:1")
    sidecar = await net.proxy_to(await net.answering(net.ok()), observing=observing)
    for _ in range(5):
        assert (await net.ask(sidecar, net.get())).endswith(b"hi")
    assert sidecar.observer is not None
    exporter = sidecar.observer.exporter
    assert exporter is not None
    await sidecar.close()
    assert exporter.dropped == 5


async def test_spans_are_not_lost_because_an_export_is_under_way_at_the_end(net: Net) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def collects(raw: Raw) -> None:
        head = await raw.head()
        await raw.exactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        arrived.set()
        await release.wait()
        raw.send(net.ok())

    collector = await net.upstream(collects)
    exporter = Exporter(f"http://{collector.address}", "x")
    span = Span("1" * 32, "1" * 16, "", "GET", True, 0.0, 1.0, False, {})
    exporter.start()
    exporter.add(span)
    async with asyncio.timeout(net.patience_s):
        await arrived.wait()
        closing = asyncio.create_task(exporter.close())
        await asyncio.sleep(0)
        release.set()
        await closing
    assert (exporter.exported, exporter.dropped) == (1, 0)


def test_spans_that_wait_are_bounded() -> None:
    exporter = Exporter("http://127.0.0.1:4318", "x")
    for number in range(QUEUE_MAX + 7):
        exporter.add(number)  # type: ignore[arg-type]
    assert exporter.dropped == 7


@pytest.mark.parametrize("options", [{"tracing": 2.0}, {"otlp": "http://x"}, {"tracing": 1.0, "otlp": "host:4318"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"allowed|need"):
        Observing(**options)


async def test_answers_are_counted_by_how_long_they_took(net: Net) -> None:
    async def slowly(raw: Raw) -> None:
        while True:
            await raw.head()
            took = asyncio.Event()
            asyncio.get_running_loop().call_later(0.03, took.set)
            await took.wait()
            raw.send(net.ok())

    sidecar = await net.proxy_to(await net.upstream(slowly))
    await net.ask(sidecar, net.get())
    assert sidecar.outbound is not None
    cluster = sidecar.outbound.clusters["orders"]
    assert sum(cluster.times) == 1
    assert not any(cluster.times[:7])  # nothing under 16 ms
    assert cluster.times_sum_s > 0.02
    text = metrics(sidecar).decode()
    labels = 'direction="outbound",le="%s",service="orders"'
    assert f"homeport_upstream_rq_time_seconds_bucket{{{labels % '0.016'}}} 0.0" in text
    assert f"homeport_upstream_rq_time_seconds_bucket{{{labels % '+Inf'}}} 1.0" in text


def test_quantiles_are_within_their_bucket() -> None:
    counts = [0] * SIZE
    assert quantile(counts, 0.5) is None
    counts[3], counts[10] = 90, 10
    assert BOUNDS_S[2] < (quantile(counts, 0.5) or 0) < BOUNDS_S[3]
    assert BOUNDS_S[9] < (quantile(counts, 0.99) or 0) <= BOUNDS_S[10]
    counts[-1] = 1000
    assert quantile(counts, 0.99) == BOUNDS_S[-1]
