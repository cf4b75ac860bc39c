"""Routes over minutes of virtual time: delays, rates, times, mirrors and splits, to the second."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from homeport.client.core.balancing import Subset
from homeport.client.core.model import Instance
from homeport.mesh.testing import Mesh, running_loop, virtual_time
from homeport.sidecar import (
    Destination,
    Fault,
    Match,
    Mirror,
    RateLimit,
    Redirect,
    Rewrite,
    Route,
    RouteRetries,
    Routing,
)
from homeport.sidecar.core.limits import SWEEP_S
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound
from tests.sidecar.conftest import Registrar

SEED = 20_260_401


class App:
    """Answers with its name and what it was asked for, when `open` is set."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.silent = False
        self.status = "200 OK"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.asked.append(path)
                self.heads.append(head.decode())
                if self.silent:
                    await reader.read()
                    return
                body = f"{self.name} {path}".encode()
                answer = f"HTTP/1.1 {self.status}\r\nServer: kitchen\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(answer.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Asking:
    """Asks through the outbound, each time on a connection of its own; `answer` is the last one as it came."""

    answer = ""

    async def __call__(self, path: str, *, method: str = "GET", extra: str = "") -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", 15_001)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: orders\r\n{extra}Connection: close\r\n\r\n".encode())
        self.answer = (await reader.read()).decode()
        writer.close()
        return int(self.answer[9:12]), self.answer.partition("\r\n\r\n")[2]


@asynccontextmanager
async def mesh(*routes: Route) -> AsyncIterator[tuple[Asking, App, App, Outbound]]:
    """One outbound, and an app in each of two versions; the first value asks through it."""
    loop = running_loop()
    registrar = Registrar()
    apps = [App("old", "10.0.0.1"), App("new", "10.0.0.2")]
    servers = []
    for app in apps:
        with loop.network.host(app.address):
            servers.append(await asyncio.start_server(app.serve, app.address, 80))
    registrar.feed("orders").say(
        *(
            Instance(
                service="orders",
                id=app.name,
                address=app.address,
                port=80,
                version=str(version),
                tags=(f"tag-{app.name}",),
                zone=f"zone-{app.name}",
                meta={"track": app.name},
            )
            for version, app in enumerate(apps, 1)
        )
    )
    registrar.feed("prices").say(Instance(service="prices", id="new", address=apps[1].address, port=80))
    options = Options(routes={"orders": Routing(routes=routes)})
    outbound = Outbound(loop, random.Random(SEED), "me", registrar, options)
    servers.append(await loop.create_server(lambda: Downstream(outbound), "127.0.0.1", 15_001))

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            outbound.sweep(loop.time())

    sweeping = asyncio.create_task(sweep())
    yield Asking(), apps[0], apps[1], outbound
    sweeping.cancel()
    outbound.close()
    for server in servers:
        server.close()


OLD, NEW = Subset(version="1", fallback="none"), Subset(version="2", fallback="none")


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time(seed=SEED)
async def test_a_delay_takes_as_long_as_it_says() -> None:
    async with mesh(Route(fault=Fault(delay_s=7.5, abort_status=504))) as (ask, old, new, _):
        began_s = now()
        assert (await ask("/"))[0] == 504
        assert 7.5 <= now() - began_s < 7.6
        assert not old.asked + new.asked


@virtual_time(seed=SEED)
async def test_a_rate_holds_over_minutes() -> None:
    async with mesh(Route(rate_limit=RateLimit(per_s=2, burst=4))) as (ask, _old, _new, _outbound):
        statuses: Counter[int] = Counter()
        ends_s = now() + 120
        while now() < ends_s:
            statuses[(await ask("/"))[0]] += 1
            await asyncio.sleep(0.1)
        assert 235 <= statuses[200] <= 245
        assert statuses[429] > 900


@virtual_time(seed=SEED)
async def test_times_of_a_route_end_what_takes_longer() -> None:
    tries = Route(match=Match(prefix="/try"), per_try_s=3, retries=RouteRetries(retries_max=1))
    whole = Route(match=Match(prefix="/whole"), timeout_s=5)
    async with mesh(tries, whole) as (ask, old, new, _):
        old.silent = new.silent = True
        began_s = now()
        assert (await ask("/try"))[0] == 504
        assert 6.0 <= now() - began_s < 6.4
        assert len(old.asked + new.asked) == 2
        began_s = now()
        assert (await ask("/whole"))[0] == 504
        assert 5.0 <= now() - began_s < 5.2


@virtual_time(seed=SEED)
async def test_a_mirror_that_never_answers_is_given_up_and_slows_nobody_down() -> None:
    async with mesh(Route(to=(Destination(subset=OLD),), mirror=Mirror(subset=NEW))) as (ask, _old, new, outbound):
        new.silent = True
        began_s = now()
        for _ in range(200):
            assert await ask("/x") == (200, "old /x")
        assert now() - began_s < 5.0
        assert len(outbound.mirrors) == 128
        assert outbound.mirrors_dropped == 200 - 128
        await asyncio.sleep(61)
        assert not outbound.mirrors
        assert outbound.clusters["orders"].active == 0
        assert len(new.asked) == 128


@virtual_time(seed=SEED)
async def test_paths_decide_rewrites_and_redirects() -> None:
    routes = (
        Route(match=Match(path="/moved"), redirect=Redirect(path="/")),
        Route(match=Match(prefix="/api"), rewrite=Rewrite(prefix="/v2"), to=(Destination(subset=NEW),)),
        Route(to=(Destination(subset=OLD),)),
    )
    async with mesh(*routes) as (ask, _old, _new, _outbound):
        assert (await ask("/moved"))[0] == 302
        assert await ask("/api/x?y") == (200, "new /v2/x?y")
        assert await ask("/apix") == (200, "old /apix")


@virtual_time(seed=SEED)
async def test_a_canary_is_shifted_without_a_failed_request() -> None:
    async with mesh() as (ask, old, new, outbound):
        shares = []
        for revision, percent in enumerate((0, 1, 10, 50, 90, 100), 1):
            document = (
                f'{{"routes": [{{"name": "canary", "to": [{{"subset": {{"version": "1"}}, "weight": {100 - percent}}}, '
                f'{{"subset": {{"version": "2"}}, "weight": {percent}}}]}}]}}'
            )
            outbound.take_routes("orders", document.encode(), revision)
            old.asked.clear()
            new.asked.clear()
            assert {status for status, _ in await asyncio.gather(*(ask("/") for _ in range(200)))} == {200}
            shares.append(len(new.asked) / 200)
        print(f"seed {SEED}: {shares}")
        assert shares[0] == 0.0
        assert 0.35 < shares[3] < 0.65
        assert shares[5] == 1.0


@virtual_time(seed=SEED)
async def test_a_bad_document_changes_nothing() -> None:
    async with mesh(Route(to=(Destination(subset=OLD),))) as (ask, _old, _new, outbound):
        await ask("/")
        outbound.take_routes("orders", b'{"routes": [{"to": [{"subset": {"version": "2"}}]}]}', 5)
        assert (await ask("/"))[1] == "new /"
        outbound.take_routes("orders", b'{"routes": [{"to": [{"subset": {"version": 1}}]}]}', 6)
        assert (await ask("/"))[1] == "new /"
        outbound.take_routes("orders", None, 7)
        assert (await ask("/"))[1] == "old /"


@virtual_time(seed=SEED)
async def test_a_route_that_is_written_is_in_force_within_50_ms_in_another_process() -> None:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="hi")

    async with Mesh() as mesh:
        await mesh.service("orders", answer)
        assert (await mesh.call("orders")).status == 200
        for turn in range(20):
            status = 418 if turn % 2 else 410
            document = b'{"routes": [{"fault": {"abort_status": %d}}]}' % status
            await mesh.client.kv.put("homeport/routes/orders", document)
            written_s = now()
            while (await mesh.call("orders")).status != status:
                pass
            assert now() - written_s < 0.05
