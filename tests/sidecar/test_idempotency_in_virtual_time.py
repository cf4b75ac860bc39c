"""Requests that must not run twice, over connections that break at every moment: counted where they run."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from homeport.client.core.model import Instance
from homeport.mesh.testing import VirtualLoop, run_virtual, running_loop, virtual_time
from homeport.sidecar import Circuit, Idempotency, Limits, Remembering, Retries, ServiceSettings, Timeouts
from homeport.sidecar.core.idempotency import NO_TOKEN
from homeport.sidecar.core.limits import SWEEP_S
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.inbound import Inbound
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound
from tests.sidecar.conftest import Registrar

SEED = 20_260_501
SEEDS = range(25)
PORT = 15_006


class World:
    """An outbound, and one or two apps behind inbounds that remember; each app counts what it has run."""

    def __init__(self, outbound: Outbound, loop: VirtualLoop, remembering: Remembering) -> None:
        self.outbound = outbound
        self.loop = loop
        self.remembering = remembering
        self.runs: Counter[str] = Counter()
        self.keys: list[str] = []
        self.takes_s = 0.5
        self.body = b""
        self.status = "201 Created"
        self.forgetful = False  # inbounds that start from now on remember nothing
        self.addresses: list[str] = []
        self.inbounds: dict[str, Inbound] = {}
        self.listeners: list[Listener] = [outbound]
        self.servers: dict[str, asyncio.Server] = {}

    async def app(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                await reader.readexactly(int(lines.get("content-length", 0)))
                path = head.split(" ", 2)[1]
                self.runs[path] += 1
                self.keys.append(lines.get("idempotency-key", ""))
                await asyncio.sleep(self.takes_s)
                body = f"{path} ran {self.runs[path]} times".encode() + self.body
                head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def start(self, address: str) -> None:
        """An app at port 80 of a host, and its inbound."""
        with self.loop.network.host(address):
            self.servers[f"{address}:80"] = await asyncio.start_server(self.app, address, 80)
        await self.start_inbound(address)

    async def start_inbound(self, address: str) -> None:
        if address in self.inbounds:
            self.inbounds[address].close()
            self.servers[address].close()
            self.listeners.remove(self.inbounds[address])
        app = Instance(service="app", id="app", address=address, port=80)
        rng = random.Random(self.loop.draw_number())
        bounds = None if self.forgetful else self.remembering
        with self.loop.network.host(address):
            inbound = Inbound(self.loop, rng, "in", app, Limits(), Timeouts(), 1024, bounds)
            self.servers[address] = await self.loop.create_server(lambda: Downstream(inbound), address, PORT)
        self.inbounds[address] = inbound
        self.listeners.append(inbound)

    def register(self, meta: str = "true") -> None:
        """All of them, with this meta."""
        discovery = self.outbound._discovery
        assert isinstance(discovery, Registrar)
        discovery.feed("orders").say(
            *(
                Instance(service="orders", id=each, address=each, port=PORT, meta={"idempotency": meta})
                for each in self.addresses
            )
        )

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for listener in list(self.listeners):
                listener.sweep(self.loop.time())

    async def post(self, path: str, body: bytes = b"order", extra: str = "") -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", 15_001)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: orders\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.read()).decode()
        writer.close()
        return int(answer[9:12]), answer.partition("\r\n\r\n")[2]


@asynccontextmanager
async def world(
    count: int = 1,
    *,
    remembering: Remembering | None = None,
    retries: Retries | None = None,
    circuit: Circuit | None = None,
    meta: str = "true",
) -> AsyncIterator[World]:
    loop = running_loop()
    registrar = Registrar()
    settings = ServiceSettings(
        idempotency=Idempotency(),
        retries=retries or Retries(budget=None),
        outliers=None,
        circuit=circuit or Circuit(),
    )
    outbound = Outbound(loop, random.Random(SEED), "me", registrar, Options(settings=settings))
    made = World(outbound, loop, remembering or Remembering())
    made.addresses = [f"10.0.0.{number}" for number in range(1, count + 1)]
    for address in made.addresses:
        await made.start(address)
    made.register(meta)
    server = await loop.create_server(lambda: Downstream(outbound), "127.0.0.1", 15_001)
    sweeping = asyncio.create_task(made.sweep())
    yield made
    sweeping.cancel()
    for listener in made.listeners:
        listener.close()
    for each in (*made.servers.values(), server):
        each.close()


@virtual_time(seed=SEED)
async def test_a_connection_cut_before_the_answer_costs_nothing_and_nothing_runs_twice() -> None:
    async with world() as made:
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.3)
        assert made.runs["/a"] == 1
        made.loop.network.reset_all(PORT)
        assert await asking == (201, "/a ran 1 times")
        assert made.runs["/a"] == 1
        assert made.outbound.keyed_retries == 1
        assert made.outbound.clusters["orders"].active == 0
        assert made.inbounds["10.0.0.1"].active == 0


@virtual_time(seed=SEED)
async def test_an_answer_that_was_lost_is_given_from_memory() -> None:
    async with world() as made:
        network = made.loop.network
        await made.post("/warm")
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.2)
        network.partition("10.0.0.1", "127.0.0.1", one_way=True)  # the answer is on its way, and does not arrive
        await asyncio.sleep(1.0)
        network.reset_all(PORT)
        network.heal()
        assert await asking == (201, "/a ran 1 times")
        memory = made.inbounds["10.0.0.1"].memory
        assert memory is not None
        assert (made.runs["/a"], memory.replayed) == (1, 1)


@virtual_time(seed=SEED)
async def test_a_timeout_is_waited_out_where_the_request_is() -> None:
    async with world(2) as made:
        made.takes_s = 20.0  # longer than a try may take here, and than the inbound itself would wait
        for inbound in made.inbounds.values():
            inbound.app.per_try_s = 60.0
        assert await made.post("/a") == (201, "/a ran 1 times")
        assert made.runs["/a"] == 1


@virtual_time(seed=SEED)
async def test_an_inbound_that_has_restarted_refuses_and_says_that_nobody_knows() -> None:
    async with world() as made:
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.3)
        await made.start_inbound("10.0.0.1")
        status, text = await asking
        assert status == 502
        assert "cannot be told" in text
        assert made.runs["/a"] == 1
        assert (await made.post("/b"))[0] == 201, "the new memory's token was taken"


@virtual_time(seed=SEED)
async def test_an_inbound_that_has_forgotten_since_refuses() -> None:
    async with world(remembering=Remembering(entries_max=1)) as made:
        network = made.loop.network
        await made.post("/warm")
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.2)
        network.partition("10.0.0.1", "127.0.0.1")
        await asyncio.sleep(1.0)
        memory = made.inbounds["10.0.0.1"].memory
        assert memory is not None
        entry = memory.ask(b"somebody else's", b"", None)[1]
        assert entry is not None
        network.reset_all(PORT)
        network.heal()
        status, text = await asking
        assert (status, made.runs["/a"]) == (502, 1), text


@virtual_time(seed=SEED)
async def test_what_may_have_been_delivered_is_sent_nowhere_else() -> None:
    async with world(3) as made:
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.3)
        (there,) = [address for address, each in made.inbounds.items() if each.active]
        made.servers[there].close()
        made.loop.network.reset_all(PORT)
        status, text = await asking
        assert (status, made.runs["/a"]) == (502, 1)
        assert "may have been carried out" in text


@virtual_time(seed=SEED)
async def test_a_retry_that_waits_for_a_connection_takes_none_to_somebody_else() -> None:
    async with world(2, circuit=Circuit(connections_max=2)) as made:
        await asyncio.gather(made.post("/warm"), made.post("/warm too"))
        asking = [asyncio.create_task(made.post(path)) for path in ("/a", "/b")]
        await asyncio.sleep(0.2)
        asking.append(asyncio.create_task(made.post("/c")))
        await asyncio.sleep(0.1)
        made.loop.network.cut("10.0.0.1")
        made.loop.network.heal()
        assert {status for status, _ in await asyncio.gather(*asking)} == {201}
        assert set(made.runs.values()) == {1}
        assert made.outbound.keyed_retries == 1


@virtual_time(seed=SEED)
async def test_an_instance_that_stops_remembering_in_between_runs_nothing_twice() -> None:
    async with world() as made:
        await made.post("/warm")
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.2)
        made.forgetful = True
        made.register(meta="")  # the registry is faster than the network here
        await made.start_inbound("10.0.0.1")
        status, text = await asking
        assert (status, made.runs["/a"]) == (502, 1), text


@virtual_time(seed=SEED)
async def test_a_failed_answer_from_memory_is_asked_for_nowhere_else() -> None:
    async with world(2) as made:
        made.status = "503 Service Unavailable"
        key = "Idempotency-Key: mine\r\n"
        assert (await made.post("/a", extra=key))[0] == 503
        (there,) = [address for address, each in made.inbounds.items() if each.memory is not None and len(each.memory)]
        for each in made.outbound.clusters["orders"].endpoints.values():
            each.memory_token = NO_TOKEN  # as of an outbound that has just started
            each.suspect, each.suspect_until_s = each.address != there, 1e9  # so that it begins there
        assert (await made.post("/a", extra=key))[0] == 503
        assert made.runs["/a"] == 1


@virtual_time(seed=SEED)
async def test_a_retry_finds_its_first_try_where_no_more_requests_are_let_in() -> None:
    async with world() as made:
        await made.post("/warm")
        made.inbounds["10.0.0.1"].concurrency_max = 1
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.2)
        made.loop.network.reset_all(PORT)
        await asyncio.sleep(0.1)
        status, text = await made.post("/b")
        assert (status, made.runs["/b"]) == (503, 0), text
        assert await asking == (201, "/a ran 1 times")


@virtual_time(seed=SEED)
async def test_an_instance_that_does_not_remember_gets_no_second_try() -> None:
    async with world(meta="") as made:
        asking = asyncio.create_task(made.post("/a"))
        await asyncio.sleep(0.3)
        made.loop.network.reset_all(PORT)
        assert (await asking)[0] == 502
        assert made.runs["/a"] == 1
        assert made.keys[0].startswith('"'), "the application gets a key in any case"


@virtual_time(seed=SEED)
async def test_a_memory_that_was_not_known_yet_costs_one_more_way_and_no_failure() -> None:
    async with world(remembering=Remembering(kept_s=5)) as made:
        for number in range(5):
            assert await made.post(f"/{number}") == (201, f"/{number} ran 1 times")
            await asyncio.sleep(60)  # all is forgotten, and what the outbound knew is old
        memory = made.inbounds["10.0.0.1"].memory
        assert memory is not None
        assert memory.forgotten == 5
        assert len(memory) == 0
        assert made.outbound.clusters["orders"].retries == 0


@virtual_time(seed=SEED)
async def test_an_answer_that_nobody_waits_for_is_not_taken_in_without_end() -> None:
    async with world() as made:
        made.body = bytes(300_000)
        reader, writer = await asyncio.open_connection("10.0.0.1", PORT)
        writer.write(b"POST /a HTTP/1.1\r\nHost: orders\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.transport.abort()
        await asyncio.sleep(2)
        assert reader.at_eof() or reader.exception()
        inbound = made.inbounds["10.0.0.1"]
        assert (inbound.active, len(inbound.left)) == (0, 0)
        assert await made.post("/a", b"", "Idempotency-Key: k\r\n") == (
            409,
            (
                "homeport sidecar: a request with this Idempotency-Key has run, and its answer is not known: "
                "its answer was too large to be remembered\n"
            ),
        )
        assert made.runs["/a"] == 1


@virtual_time(seed=SEED)
async def test_who_goes_on_alone_has_an_end() -> None:
    async with world() as made:
        made.takes_s = 1e6
        inbound = made.inbounds["10.0.0.1"]
        inbound.app.per_try_s = 1e6
        _reader, writer = await asyncio.open_connection("10.0.0.1", PORT)
        writer.write(b"POST /a HTTP/1.1\r\nHost: orders\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.2)
        made.loop.network.reset_all(PORT)
        await asyncio.sleep(50)
        assert len(inbound.left) == 1
        await asyncio.sleep(11)
        assert (inbound.active, len(inbound.left)) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_cuts_never_run_anything_twice(seed: int) -> None:
    """Cuts at every moment, inbounds that are replaced, memories that forget: one run at most, one for each 201."""

    async def scenario() -> None:
        rng = random.Random(seed)
        bounds = Remembering(kept_s=rng.choice([1.0, 300.0]), entries_max=rng.choice([3, 10_000]))
        circuit = Circuit(connections_max=rng.choice([2, 8192]))  # with few, requests move to whoever has one
        async with world(2, remembering=bounds, circuit=circuit) as made:
            answers: dict[str, int] = {}

            async def one(path: str) -> None:
                await asyncio.sleep(rng.random() * 20)
                answers[path], text = await made.post(path)
                if answers[path] == 201:
                    assert text == f"{path} ran 1 times"

            async def faults() -> None:
                network = made.loop.network
                while True:
                    await asyncio.sleep(rng.random() * 0.6)
                    made.takes_s = rng.choice([0.0, 0.01, 0.3, 2.0])
                    match rng.randrange(8):
                        case 0:
                            network.partition("10.0.0.1", "127.0.0.1", one_way=True)
                            await asyncio.sleep(rng.random())
                            network.reset_all(PORT)
                            network.heal()
                        case 1 if rng.random() < 0.3:
                            await made.start_inbound(rng.choice(["10.0.0.1", "10.0.0.2"]))
                        case _:
                            network.reset_all(PORT)

            breaking = asyncio.create_task(faults())
            await asyncio.gather(*(one(f"/{number}") for number in range(60)))
            breaking.cancel()
            twice = {path: count for path, count in made.runs.items() if count > 1}
            print(f"seed {seed}: {Counter(answers.values())}, {made.outbound.keyed_retries} retries")
            assert not twice
            assert all(made.runs[path] == 1 for path, status in answers.items() if status == 201)
            assert not any(made.runs[path] for path, status in answers.items() if status == 503), "503: not delivered"
            assert made.outbound.keyed_retries
            if breaking.done() and not breaking.cancelled():
                breaking.result()

    run_virtual(scenario(), seed=seed)
