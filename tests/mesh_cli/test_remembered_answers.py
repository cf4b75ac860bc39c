"""`homeport run --remember-answers`, over connections that are cut: counted by the app itself, in its own process."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request

import pytest

from homeport.client import Client
from homeport.client.core.model import Instance
from homeport.sidecar import Idempotency, Retries, ServiceSettings, Sidecar
from tests.mesh_cli.apps import Run
from tests.mesh_cli.conftest import Processes, Serving
from tests.sidecar.conftest import Registrar

SEED = 20_260_502
CHANCES = 150

# An app that counts what it has run by path, and tells.
COUNTING = """
import collections, http.server, json, os
runs = collections.Counter()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", -1
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, json.dumps(runs).encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        runs[self.path] += 1
        self.answer(201, b"%s ran %d times" % (self.path.encode(), runs[self.path]))
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.request_queue_size = 512  # its own 5 refuses a crowd
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("ready", os.getpid(), os.environ["HTTP_PROXY"], os.environ["HOMEPORT_INBOUND"], flush=True)
server.serve_forever()
"""


class Cutter:
    """A relay whose connections break: within a request, within the head of an answer, or later between two."""

    def __init__(self, goal: str, rng: random.Random) -> None:
        self.host, _, port = goal.rpartition(":")
        self.port = int(port)
        self.rng = rng
        self.broke_early = 0  # in a row
        self.broke_early_max = 1  # with one that breaks later, three tries then always bring an answer
        self.cuts = 0
        self.open: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        onward_reader, onward = await asyncio.open_connection(self.host, self.port)
        early = self.broke_early < self.broke_early_max and self.rng.random() < 0.7
        self.broke_early = self.broke_early + 1 if early else 0
        request_bytes = self.rng.randrange(150) if early and self.rng.random() < 0.3 else 1 << 30
        answer_bytes = self.rng.randrange(60) if early else self.rng.randrange(900, 1_500)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int) -> None:
            while data := await source.read(65536):
                if len(data) > most:
                    sink.write(data[:most] if early else b"")
                    return
                most -= len(data)
                sink.write(data)

        pumps = [
            asyncio.ensure_future(pump(reader, onward, request_bytes)),
            asyncio.ensure_future(pump(onward_reader, writer, answer_bytes)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self.cuts += 1
            await asyncio.sleep(0)  # what is left to be written is written
        finally:
            for each in pumps:
                each.cancel()
            writer.transport.abort()
            onward.transport.abort()
            self.open.discard(task)

    async def close(self) -> None:
        while self.open:
            await asyncio.wait(list(self.open), timeout=1)


async def posted(at: str, path: str) -> tuple[int, str]:
    host, _, port = at.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: orders\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer[9:12] or 0), answer.partition("\r\n\r\n")[2]


async def test_every_request_runs_once_and_every_client_gets_its_answer(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, "--remember-answers", "60", command=[sys.executable, "-c", COUNTING])
    _pid, _proxy, inbound = run.ready()
    async with Client(serving.rpc) as client:
        async for event in client.watch("orders"):  # the test's own timeout bounds it
            if event.changed:
                (known,) = event.changed
                break
    assert known.meta == {"idempotency": "true"}
    rng = random.Random(SEED)
    cutter = Cutter(inbound, rng)
    relay = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    through = Instance(
        service="orders", id="orders-1", address="127.0.0.1", port=relay.sockets[0].getsockname()[1], meta=known.meta
    )
    registrar = Registrar()
    registrar.feed("orders").say(through)
    settings = ServiceSettings(idempotency=Idempotency(), retries=Retries(budget=None), outliers=None)
    async with Sidecar(registrar, outbound="127.0.0.1:0", settings=settings) as sidecar:
        at = sidecar.at["outbound"]
        for number in range(CHANCES):
            path = f"/alone/{number}"
            assert await posted(at, path) == (201, f"{path} ran 1 times"), f"seed {SEED}"
        assert cutter.cuts > CHANCES / 10
        cutter.broke_early_max = 1_000
        answers = await asyncio.gather(*(posted(at, f"/together/{number}") for number in range(CHANCES)))
        assert sidecar.outbound is not None
        assert sidecar.outbound.keyed_retries
    relay.close()
    await cutter.close()

    def counts() -> dict[str, int]:
        with urllib.request.urlopen(f"http://{inbound}/", timeout=30) as answer:
            found: dict[str, int] = json.loads(answer.read())
            return found

    runs = await asyncio.to_thread(counts)
    print(f"seed {SEED}: {cutter.cuts} cuts, {sum(status == 201 for status, _ in answers)} of {CHANCES} answered")
    assert set(runs.values()) == {1}
    assert all(runs[f"/together/{number}"] == 1 for number, (status, _) in enumerate(answers) if status == 201)
    # Some tries are cut to the last: 502 when the request may have run, 503 when it surely has not.
    assert {status for status, _ in answers} <= {201, 502, 503}
    assert not any(f"/together/{number}" in runs for number, (status, _) in enumerate(answers) if status == 503)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sidecar", "--remember-answers", "60"], "--app"),
        (["sidecar", "--app", "127.0.0.1:1", "--inbound", "off", "--remember-answers", "60"], "--inbound"),
        (["run", "--name", "a", "--port", "1", "--inbound", "off", "--remember-answers", "60", "true"], "inbound"),
        (["run", "--name", "a", "--port", "1", "--workers", "2", "--remember-answers", "60", "true"], "one worker"),
    ],
)
def test_what_cannot_remember_says_why(homeport: Processes, arguments: list[str], reason: str) -> None:
    refused = homeport.run(*arguments)
    assert refused.returncode == 2
    assert reason in refused.stderr
