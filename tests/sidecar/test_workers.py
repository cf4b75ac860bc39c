"""Workers: they share a port and what is known, are replaced when they die, and report as one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from homeport.client.core.balancing import Outliers, Subset
from homeport.sidecar import (
    Destination,
    Limits,
    Observing,
    Options,
    Remembering,
    Route,
    Routing,
    ServerTls,
    Timeouts,
    Workers,
)
from homeport.sidecar.channel import Ejected, Ready, Routes, Setup, Stop, Subscribe, Told, encode, to_worker
from homeport.sidecar.core import sums
from homeport.sidecar.core.settings import Circuit, ServiceSettings, divided
from homeport.sidecar.metrics import added_metrics
from homeport.sidecar.options import Given
from homeport.sidecar.sockets import bind
from homeport.sidecar.worker import Worker

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.sidecar.conftest import Net, Raw

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections among processes")

COMMAND = [sys.executable, "-m", "homeport.mesh.worker", "warning"]


@asynccontextmanager
async def opened(net: Net, **options: Any) -> AsyncIterator[Workers]:
    options = {"client": net.registrar, "outbound": "127.0.0.1:0", "rng": random.Random(net.seed), **options}
    client = options.pop("client")
    async with asyncio.timeout(100), Workers(client, count=2, command=COMMAND, **options) as workers:
        yield workers


async def everyone(net: Net, workers: Workers, request: bytes, listener: str = "outbound") -> list[bytes]:
    """Ask over so many connections that each worker has got some, all but certainly."""
    return [await net.ask(workers, request, listener) for _ in range(24)]


async def test_all_workers_serve_on_one_port_what_the_parent_follows_once(net: Net) -> None:
    upstream = await net.answering(net.ok())
    net.registrar.feed("orders").say(upstream.instance())
    async with opened(net, admin="127.0.0.1:0") as workers:
        assert len(workers.pids) == 2
        answers = await everyone(net, workers, net.get())
        assert all(answer.endswith(b"hi") for answer in answers)
        answer = await net.ask(workers, net.get("/stats"), "admin")
        stats = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert stats["workers"] == workers.pids
        assert stats["listeners"]["outbound"]["requests_total"] == 24
        (cluster,) = json.loads((await net.ask(workers, net.get("/clusters"), "admin")).partition(b"\r\n\r\n")[2])
        assert [each["address"] for each in cluster["endpoints"]] == [upstream.address]
        metrics = await net.ask(workers, net.get("/metrics"), "admin")
        assert b'homeport_downstream_rq_total{listener="outbound"} 24.0\n' in metrics
        assert b'homeport_upstream_rq_time_seconds_count{direction="outbound",service="orders"} 24.0\n' in metrics
        assert b'homeport_upstream_endpoints{direction="outbound",service="orders"} 1.0\n' in metrics
    assert net.registrar.feeds["orders"].closed


async def test_all_workers_forward_tcp_on_one_port(net: Net) -> None:
    async def greets(raw: Raw) -> None:
        raw.send(b"here")
        await raw.until_end()

    net.registrar.feed("orders").say((await net.upstream(greets)).instance())
    async with opened(net, tcp={"orders": "127.0.0.1:0"}) as workers:
        for _ in range(24):
            assert await (await net.dial(workers, "tcp:orders")).exactly(4) == b"here"
        stats: Any = await workers.stats()
        assert [(port["service"], port["connections_total"]) for port in stats["tcp"]] == [("orders", 24)]


async def test_what_changes_reaches_every_worker(net: Net) -> None:
    first, second = await net.answering(net.ok(b"first")), await net.answering(net.ok(b"second"))
    feed = net.registrar.feed("orders")
    feed.say()
    async with opened(net) as workers:
        assert {answer[9:12] for answer in await everyone(net, workers, net.get())} == {b"404"}
        for upstream in (first, second):
            feed.say(upstream.instance())
            want = b"first" if upstream is first else b"second"
            while not all(answer.endswith(want) for answer in await everyone(net, workers, net.get())):
                pass  # a pipe and two loops away; `opened` bounds the wait


async def test_a_request_waits_until_the_registry_has_spoken(net: Net) -> None:
    upstream = await net.answering(net.ok())
    async with opened(net) as workers:
        client = await net.dial(workers)
        client.send(net.get())
        await net.registrar.asked.wait()
        net.registrar.feed("orders").say(upstream.instance())
        assert (await client.until_end()).endswith(b"hi")


async def test_a_worker_that_is_killed_loses_its_own_connections_only_and_is_replaced(
    net: Net, eventually: Eventually
) -> None:
    upstream = await net.answering(net.ok())
    net.registrar.feed("orders").say(upstream.instance())
    async with opened(net) as workers:
        connections = [await net.dial(workers) for _ in range(24)]
        for connection in connections:
            connection.send(net.get(close=False))
            assert (await connection.head()).startswith(b"HTTP/1.1 200 ")
            await connection.exactly(2)
        before = list(workers.pids)
        os.kill(before[0], signal.SIGKILL)
        await eventually(lambda: len(workers.pids) == 2 and workers.pids != before)
        assert before[1] in workers.pids

        async def lives(connection: Raw) -> bool:
            try:
                connection.send(net.get(close=False))
                await connection.head()
            except (asyncio.IncompleteReadError, ConnectionError):
                return False
            await connection.exactly(2)
            return True

        living = [await lives(connection) for connection in connections]
        assert 0 < sum(living) < len(living)
        answers = await everyone(net, workers, net.get())
        assert all(answer.endswith(b"hi") for answer in answers)


async def test_a_connection_that_comes_while_its_worker_is_dead_waits_for_the_successor(
    net: Net, eventually: Eventually
) -> None:
    upstream = await net.answering(net.ok())
    net.registrar.feed("orders").say(upstream.instance())
    async with opened(net) as workers:
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not workers.pids)
        answers = await asyncio.gather(*(net.ask(workers, net.get()) for _ in range(10)))
        assert all(answer.endswith(b"hi") for answer in answers)


@pytest.mark.parametrize("known_to_both", [True, False])
async def test_what_one_worker_ejects_the_others_leave_alone_too(net: Net, known_to_both: bool) -> None:
    turned_bad = False

    def answer(_head: bytes) -> bytes:
        return net.ok(b"oh no", status=b"503 Service Unavailable") if turned_bad else net.ok()

    bad = await net.answering(answer)
    good = [await net.answering(net.ok()) for _ in range(2)]
    net.registrar.feed("orders").say(bad.instance(), *(each.instance() for each in good))
    settings = ServiceSettings(outliers=Outliers(consecutive_5xx=3, consecutive_gateway=3, jitter_s=0.0))
    async with opened(net, settings=settings) as workers:
        if known_to_both:
            await everyone(net, workers, net.get())
        turned_bad = True
        before = len(bad.heads)
        first = await net.dial(workers)
        while await ejections(workers) < 1 + known_to_both:
            first.send(net.get(close=False))
            assert (await first.head()).startswith(b"HTTP/1.1 200 ")
            await first.exactly(2)
        assert len(bad.heads) == before + 3
        answers = await everyone(net, workers, net.get())
        assert all(answer.endswith(b"hi") for answer in answers)
        # Who hears of the service and of its ejections in one moment may have sent one request in between.
        assert len(bad.heads) <= before + 3 + (not known_to_both)


async def ejections(workers: Workers) -> int:
    """How many workers have an endpoint of orders ejected."""
    clusters: list[dict[str, Any]] = await workers.clusters()
    return sum(each["ejections"] for cluster in clusters for each in cluster["endpoints"])


async def test_the_application_behind_workers_is_drained_by_all_of_them(net: Net) -> None:
    arrived, release, troubled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(raw: Raw) -> None:
        await raw.head()
        arrived.set()
        await release.wait()
        raw.send(net.ok(b"done", status=b"500 Oh no"))

    app = await net.upstream(slowly)
    async with opened(net, outbound=None, inbound="127.0.0.1:0", app=app.address) as workers:
        workers.watch_app(troubled.set)
        client = await net.dial(workers, "inbound")
        client.send(net.get(close=False))
        await arrived.wait()
        assert not await workers.drain(0.1)
        draining = asyncio.create_task(workers.drain())
        another = asyncio.create_task(workers.drain())
        await asyncio.sleep(0)  # both have begun
        release.set()
        answer = await client.until_end()
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"done")
        assert await draining
        assert await another
        await troubled.wait()


async def test_it_is_ready_while_any_worker_is_up(
    net: Net, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(net, admin="127.0.0.1:0") as workers:

        async def ready() -> tuple[bytes, bytes]:
            head, _, body = (await net.ask(workers, net.get("/ready"), "admin")).partition(b"\r\n\r\n")
            return head[9:12], body

        monkeypatch.setattr(workers, "_command", ("/nowhere",))  # so that no successor starts
        first, second = workers.pids
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: workers.pids == [second])
        assert await ready() == (b"200", b"ready\n")
        os.kill(second, signal.SIGKILL)
        await eventually(lambda: workers.pids == [])
        assert await ready() == (b"503", b"none of 2 workers is up\n")
        monkeypatch.undo()
        await eventually(lambda: len(workers.pids) == 2)
        assert await ready() == (b"200", b"ready\n")


async def test_a_worker_that_is_still_starting_drains_when_it_is_there(net: Net, eventually: Eventually) -> None:
    async with opened(net) as workers:
        before = workers.pids
        os.kill(before[0], signal.SIGKILL)
        await eventually(lambda: len(workers._workers) == 2 and len(workers.pids) == 1)
        assert await workers.retire()
        starting = [worker for worker in workers._workers if worker.process and worker.process.pid not in before]
        assert all(worker.ready.is_set() for worker in starting)
        assert starting


async def test_a_worker_that_starts_hears_at_once_whom_the_others_have_ejected(net: Net) -> None:
    both = tuple([(await net.answering(net.ok())).instance() for _ in range(2)])
    worker = Worker()
    ready = asyncio.Event()

    def parent(message: Any) -> None:
        if isinstance(message, Subscribe):
            told = Told("orders", known=True, revision=1, live=True, held=False, age_s=0, snapshot=True, changed=both)
            worker._received(told)
            worker._received(Ejected("orders", both[0].key, 30.0))
        elif isinstance(message, Ready):
            ready.set()

    worker.channel.send = parent  # type: ignore[method-assign]
    options = Options(outbound=None, http={"orders": "127.0.0.1:0"})
    bound = bind("127.0.0.1:0")[0].detach()
    worker._received(Setup("here", {"http:orders": [bound]}, options))
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(net.patience_s):
        await ready.wait()
        assert worker._sidecar is not None
        assert worker._sidecar.outbound is not None
        endpoints = worker._sidecar.outbound.clusters["orders"].endpoints
        assert [key for key, endpoint in endpoints.items() if endpoint.ejected] == [both[0].key]
        worker._received(Stop())
        await running


async def test_without_a_registry_an_unknown_name_is_404_from_workers_as_from_one_process(net: Net) -> None:
    async with opened(net, client=None) as workers:
        assert (await net.ask(workers, net.get())).startswith(b"HTTP/1.1 404 ")


async def test_workers_end_with_a_parent_that_is_killed(net: Net, tmp_path: Path, eventually: Eventually) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import asyncio\n"
        "from homeport.sidecar import Workers\n"
        "async def main():\n"
        f"    async with Workers(None, count=2, command={COMMAND!r}, outbound='127.0.0.1:0') as workers:\n"
        "        print(*workers.pids, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(100):
        pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
        assert len(pids) == 2
        parent.kill()
        await parent.wait()
        await eventually(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_workers_that_cannot_start_are_an_error_that_leaves_nothing_open(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.sidecar.workers.START_S", 0.5)
    workers = Workers(None, count=1, command=["/no/such/program"], outbound="127.0.0.1:0")
    with pytest.raises(OSError, match="not all of 1 workers"):
        await workers.start()
    host, port = workers.at["outbound"].split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("exists", [False, True])
async def test_closing_does_not_wait_for_workers_that_are_still_starting(
    net: Net, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr("homeport.sidecar.workers.STOP_S", 3600.0)
    never_there = [sys.executable, "-c", "import time; time.sleep(3600)"]
    workers = Workers(net.registrar, outbound="127.0.0.1:0", count=2, command=never_there)
    starting = asyncio.create_task(workers.start())
    if exists:
        await eventually(lambda: len([each for each in workers._workers if each.process is not None]) == 2)
    else:
        await eventually(lambda: bool(workers._workers))
    starting.cancel()
    async with asyncio.timeout(net.patience_s):
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not workers._workers


def test_every_option_can_be_given_by_itself() -> None:
    assert get_type_hints(Given) == get_type_hints(Options)


def test_a_worker_is_told_all_options(tmp_path: Path) -> None:
    options = Options(
        outbound="127.0.0.1:1",
        inbound="127.0.0.1:2",
        app="127.0.0.1:3",
        static={"db": ["127.0.0.1:4"]},
        tcp={"orders": "127.0.0.1:5"},
        http={"billing": "127.0.0.1:6"},
        passthrough=["example.org"],
        concurrency_max=10,
        limits=Limits(headers=7),
        timeouts=Timeouts(total_s=9.0),
        start_traces=True,
        inbound_tls=ServerTls(cert=tmp_path / "cert", key=tmp_path / "key"),
        remembering=Remembering(kept_s=5.0),
        observing=Observing(access_log="-"),
        settings=ServiceSettings(retries=None),
        services={"orders": ServiceSettings(circuit=Circuit(requests_max=8))},
        routes={"orders": Routing(routes=(Route(name="all", to=(Destination(subset=Subset(meta={"a": "b"})),)),))},
    )
    setup = Setup("name", {}, options.share(1), [Routes("orders", b"{}", 5)], 2)
    told = to_worker.decode(encode(setup))
    assert told == Setup("name", {}, options, setup.documents, 2)
    unlike_default = {name for name in Options.__struct_fields__ if getattr(options, name) != getattr(Options(), name)}
    assert unlike_default == set(Options.__struct_fields__) - {"admin", "state_file"}, "which are the parent's"


def test_limits_are_divided_and_never_to_nothing() -> None:
    settings = ServiceSettings(circuit=Circuit(requests_max=10, pending_max=1, connections_max=7, retries_max=3))
    part = divided(settings, 4)
    assert part.circuit == Circuit(requests_max=2, pending_max=1, connections_max=1, retries_max=1)
    assert part.retries is not None
    assert part.retries.budget is not None
    assert part.retries.budget.reserve_per_s == 2.5
    assert part.outliers == settings.outliers


def test_reports_are_added_field_by_field() -> None:
    one = {"service": "a", "direction": "outbound", "live": True, "held": False, "age_s": 1.5, "endpoints": [
        {"id": "x", "node": "n", "active": 2, "weight": 3, "suspect": False, "address": "h:1"}]}  # fmt: skip
    two = {"service": "a", "direction": "outbound", "live": False, "held": True, "age_s": 0.5, "endpoints": [
        {"id": "x", "node": "n", "active": 5, "weight": 3, "suspect": True, "address": "h:1"},
        {"id": "y", "node": "n", "active": 1, "weight": 1, "suspect": False, "address": "h:2"}]}  # fmt: skip
    other = {"service": "b", "direction": "outbound", "live": None}
    assert sums.added([[one], [two, other]]) == [
        {"service": "a", "direction": "outbound", "live": False, "held": True, "age_s": 1.5, "endpoints": [
            {"id": "x", "node": "n", "active": 7, "weight": 3, "suspect": True, "address": "h:1"},
            {"id": "y", "node": "n", "active": 1, "weight": 1, "suspect": False, "address": "h:2"}]},
        {"service": "b", "direction": "outbound", "live": None},
    ]  # fmt: skip


def test_metrics_are_added_and_ages_are_not() -> None:
    text = b"""# TYPE homeport_downstream_rq counter
homeport_downstream_rq_total{listener="outbound"} 3.0
# TYPE homeport_subscription_age_seconds gauge
homeport_subscription_age_seconds{service="a"} 2.0
# TYPE homeport_latency histogram
homeport_latency_bucket{le="1.0"} 1.0
homeport_latency_bucket{le="+Inf"} 2.0
homeport_latency_count 2.0
homeport_latency_sum 5.0
"""
    lines = added_metrics([text, text.replace(b"} 2.0\n# TYPE homeport_latency", b"} 9.0\n# TYPE homeport_latency")])
    for line in (
        b'homeport_downstream_rq_total{listener="outbound"} 6.0',
        b'homeport_subscription_age_seconds{service="a"} 9.0',
        b'homeport_latency_bucket{le="+Inf"} 4.0',
        b"homeport_latency_sum 10.0",
    ):
        assert line in lines.splitlines()
