"""Random exchanges over a network in memory: whatever clients, instances and the registry do, nothing may be left.

One seed decides everything: the settings, what each instance does with each request, what each client sends and where
it breaks off, and what the registry says meanwhile. When all of it has settled, every count must be back at nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from homeport.client.core.balancing import Balancing, HashOn, Outliers
from homeport.client.core.balancing.settings import PolicyName
from homeport.client.core.model import Instance
from homeport.mesh.testing import running_loop
from homeport.sidecar import (
    Adaptive,
    Circuit,
    Fault,
    Hedging,
    Limits,
    Mirror,
    Retries,
    Route,
    RouteRetries,
    Routing,
    ServiceSettings,
    Timeouts,
)
from homeport.sidecar.core.limits import SWEEP_S
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.upstream import Endpoint
from homeport.sidecar.options import Options
from homeport.sidecar.outbound import Outbound
from tests.sidecar.conftest import Registrar

SHORT = {
    "connect_s": 0.4, "head_s": 1.0, "body_s": 1.0, "first_byte_s": 0.6, "stream_s": 2.0, "tunnel_s": 2.0,
    "keep_alive_s": 2.0, "flush_s": 1.0, "linger_s": 0.3, "known_s": 0.5,
}  # fmt: skip
SETTLED_S = 10.0  # past every timeout, when the clients are gone
ANSWERED_S = 120.0  # and those are gone by then, however many requests, tries and waits they have
PAUSES_S = (0.0, 0.0, 0.01, 0.1, 0.5, 1.5)
_METHODS = ("GET", "GET", "GET", "HEAD", "PUT", "POST", "POST", "DELETE", "OPTIONS")


def drawn_settings(rng: random.Random) -> ServiceSettings:
    """How the service is called."""
    retries = Retries(
        retries_max=rng.randint(1, 3),
        statuses=rng.choice([(502, 503, 504), (429, 500, 503)]),
        retry_after_s_max=rng.choice([0.0, 2.0]),
    )
    tight = Circuit(
        connections_max=rng.randint(1, 4),
        pending_max=rng.randint(1, 4),
        requests_max=rng.randint(2, 12),
        retries_max=rng.randint(1, 3),
    )
    policies: list[PolicyName] = ["least-request", "peak-ewma", "round-robin", "maglev"]
    policy = rng.choice(policies)
    hash_on = HashOn(header="x-user") if policy == "maglev" else None
    return ServiceSettings(
        balancing=Balancing(policy=policy, hash_on=hash_on, zone=rng.choice(["", "a"])),
        retries=retries,
        hedging=Hedging(delay_s=rng.choice([0.01, 0.05, 0.3])) if rng.random() < 0.6 else None,
        outliers=rng.choice([None, Outliers(consecutive_5xx=2)]),
        circuit=rng.choice([Circuit(), tight, tight]),
        adaptive=rng.choice([None, None, Adaptive(requests_min=1, initial=2, requests_max=4)]),
    )


def drawn_routes(rng: random.Random) -> dict[str, Routing]:
    """A table that may have a route for the service."""
    if rng.random() < 0.6:
        return {}
    route = Route(
        mirror=Mirror(service="shadow") if rng.random() < 0.5 else None,
        fault=Fault(delay_s=0.2, delay_percent=30.0) if rng.random() < 0.3 else None,
        timeout_s=rng.choice([0.0, 1.0]),
        retries=rng.choice([None, RouteRetries(retries_max=rng.randint(0, 2))]),
    )
    return {"orders": Routing(routes=(route,))}


_WAYS = (
    "ok", "ok", "ok", "ok", "ok", "ok", "ok", "ok", "chunked", "until close", "sick", "sick slowly", "sick for ever",
    "busy", "silent", "reset", "half a head", "cut off", "stalls", "too long", "garbage", "interim", "switches",
    "large",
)  # fmt: skip


class Host:
    """An instance that does something else with every request."""

    def __init__(self, name: str, address: str, rng: random.Random) -> None:
        self.name, self.address, self.rng = name, address, rng
        self.asked: Counter[str] = Counter()  # by method and path
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one request; whether another one may follow on the connection."""
        rng = self.rng
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.decode("latin-1").split(" ", 2)
        self.asked[f"{method} {path}"] += 1
        low = head.lower()
        if b"100-continue" in low and rng.random() < 0.7:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"upgrade: websocket" in low and rng.random() < 0.7:
            writer.write(b"HTTP/1.1 101 Up\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            await reader.read(10)
            await self._pause()
            return False
        early = rng.random() < 0.15
        if not early:
            await self._read_body(reader, low)
        await self._pause()
        keep = await self._say(rng.choice(_WAYS), reader, writer, to_head=method == "HEAD")
        return keep and not early

    async def _read_body(self, reader: asyncio.StreamReader, low: bytes) -> None:
        if b"transfer-encoding: chunked" in low:
            while int((await reader.readuntil(b"\r\n"))[:-2], 16):
                await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")
        elif b"content-length: " in low:
            await reader.readexactly(int(low.split(b"content-length: ")[1].split(b"\r\n")[0]))

    async def _pause(self) -> None:
        pause_s = self.rng.choice(PAUSES_S)
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _say(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_head: bool
    ) -> bool:
        body = b"" if to_head else b"abcdefgh"
        status = b"HTTP/1.1 503 Sick\r\n" if way.startswith("sick") else b"HTTP/1.1 200 OK\r\n"
        match way:
            case "ok" | "sick":
                writer.write(status + b"Content-Length: 8\r\n\r\n" + body)
            case "sick slowly" | "interim":
                if way == "interim":
                    writer.write(b"HTTP/1.1 103 Early\r\n\r\n")
                writer.write(status + b"Content-Length: 8\r\n\r\n")
                await self._pause()
                writer.write(body)
            case "busy":
                writer.write(b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 8\r\n\r\n" + body)
            case "chunked":
                writer.write(status + b"Transfer-Encoding: chunked\r\n\r\n")
                if not to_head:
                    writer.write(b"3\r\nabc\r\n")
                    await self._pause()
                    writer.write(b"0\r\n\r\n")
            case "large":
                size = 300_000
                writer.write(status + b"Content-Length: %d\r\n\r\n" % size + (b"" if to_head else b"x" * size))
                await writer.drain()
            case "until close":
                writer.write(status + b"\r\n" + body)
                return False
            case "too long":
                writer.write(status + b"Content-Length: 4\r\n\r\n" + body)
            case "cut off":
                writer.write(status + b"Content-Length: 9\r\n\r\n" + body)
                return False
            case "stalls" | "sick for ever":
                writer.write(status + b"Content-Length: 9\r\n\r\n" + body)
                await reader.read()
                return False
            case "silent":
                await reader.read()
                return False
            case "half a head":
                writer.write(status[:9])
                await self._pause()
                return False
            case "garbage":
                writer.write(b"\x00\x01 what?\r\n\r\n")
                return False
            case "switches":
                writer.write(b"HTTP/1.1 101 Up\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
                return False
            case "reset":
                writer.transport.abort()
                return False
        return True


class Client:
    """Sends requests on one connection, and may leave at any byte."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number, self.rng = number, rng

    async def run(self) -> None:
        rng = self.rng
        await asyncio.sleep(rng.random() * 2.0)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", 15_001)
        except ConnectionError:
            return
        sent = b"".join(self._request(count) for count in range(rng.randint(1, 4)))
        leaves_at = rng.randrange(len(sent)) if rng.random() < 0.25 else len(sent)
        sent = sent[:leaves_at]
        try:
            at = 0
            while at < len(sent):
                size = rng.choice([len(sent), 400, 60, 7])
                writer.write(sent[at : at + size])
                at += size
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.choice(PAUSES_S))
            match rng.choice(["read", "read", "read", "half-close", "abort", "close", "slow"]):
                case "abort":
                    await asyncio.sleep(rng.choice(PAUSES_S))
                    writer.transport.abort()
                case "close":
                    writer.close()
                case "half-close":
                    writer.write_eof()
                    await reader.read()
                case "slow":
                    await self._read_slowly(reader)
                case _:
                    await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    @staticmethod
    async def _read_slowly(reader: asyncio.StreamReader) -> None:
        turn = asyncio.Event()
        while await reader.read(20_000):
            asyncio.get_running_loop().call_later(0.05, turn.set)
            await turn.wait()
            turn.clear()

    def _request(self, count: int) -> bytes:
        rng = self.rng
        method = rng.choice(_METHODS)
        lines = [f"{method} /{self.number}-{count} HTTP/1.1", f"Host: {rng.choice(['orders'] * 24 + ['unknown'])}"]
        lines.append(f"x-user: {rng.randint(1, 3)}")
        body = b""
        if method in ("PUT", "POST"):
            body = b"b" * rng.choice([0, 5, 900, 100_000])
            if rng.random() < 0.3:
                lines.append("Expect: 100-continue")
            if rng.random() < 0.5:
                lines.append("Transfer-Encoding: chunked")
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            else:
                lines.append(f"Content-Length: {len(body)}")
        elif method == "GET" and rng.random() < 0.15:
            lines += ["Connection: upgrade", "Upgrade: websocket"]
        if rng.random() < 0.2:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + body


async def play(seed: int) -> None:
    """Run the script of one seed, and see that nothing is left.

    Raises:
        AssertionError: something is.
    """
    rng = random.Random(seed)
    loop = running_loop()
    registrar = Registrar()
    hosts = [Host(f"h{number}", f"10.0.0.{number}", random.Random(rng.random())) for number in range(1, 5)]
    shadow = Host("shadow", "10.0.1.1", random.Random(rng.random()))
    servers: list[Any] = []
    for host in (*hosts, shadow):
        if rng.random() < 0.85 or host is shadow:  # else it refuses
            with loop.network.host(host.address):
                servers.append(await asyncio.start_server(host.serve, host.address, 80))
    options = Options(
        limits=Limits(replay_bytes=rng.choice([1_000, 65_536])),
        timeouts=Timeouts(**SHORT, total_s=rng.choice([None, None, 1.5])),
        settings=drawn_settings(rng),
        routes=drawn_routes(rng),
    )
    outbound = Outbound(loop, random.Random(rng.random()), "me", registrar, options)
    servers.append(await loop.create_server(lambda: Downstream(outbound), "127.0.0.1", 15_001))
    endpoints: set[Endpoint] = set()

    def said(service: str, *instances: Instance) -> None:
        registrar.feed(service).say(*instances)
        for cluster in outbound.clusters.values():
            endpoints.update(cluster.endpoints.values())

    def instance(host: Host, **fields: Any) -> Instance:
        zone = "a" if host.name in ("h1", "h2") else "b"
        return Instance(service="orders", id=host.name, address=host.address, port=80, zone=zone, **fields)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            outbound.sweep(loop.time())

    async def change() -> None:
        while True:
            each = []
            for host in hosts:
                status, state = rng.choice(["passing"] * 9 + ["critical"]), rng.choice(["up"] * 9 + ["draining"])
                if rng.random() < 0.93:
                    each.append(instance(host, status=status, state=state))
            said("orders", *each)
            said("shadow", Instance(service="shadow", id="s", address=shadow.address, port=80))
            await asyncio.sleep(rng.random() * 3.0)

    if rng.random() < 0.8:  # else the first requests wait until the service is known
        said("orders", *map(instance, hosts))
    background = [asyncio.create_task(sweep()), asyncio.create_task(change())]
    clients = [asyncio.create_task(Client(n, random.Random(rng.random())).run()) for n in range(rng.randint(2, 16))]
    end = rng.choice(["settle", "settle", "drain", "close"])
    if end == "drain":
        await asyncio.sleep(rng.random() * 3.0)
        await outbound.drain(5.0)
    elif end == "close":
        await asyncio.sleep(rng.random() * 3.0)
        for cluster in outbound.clusters.values():
            endpoints.update(cluster.endpoints.values())
        circuits = [cluster.circuit for cluster in outbound.clusters.values()]
        outbound.close()
    if end != "close":
        circuits = []
    await asyncio.wait(clients, timeout=ANSWERED_S)
    await asyncio.sleep(SETTLED_S)
    for task in background:
        task.cancel()
    for cluster in outbound.clusters.values():
        endpoints.update(cluster.endpoints.values())
        circuits.append(cluster.circuit)
    assert all(client.done() for client in clients), "a client was never answered, nor left"
    await asyncio.gather(*clients)
    assert outbound.active == 0, "an exchange is left"
    assert not outbound.connections, "a client's connection is left"
    assert not outbound.mirrors, "a copy is left"
    for endpoint in endpoints:
        assert endpoint.active == 0, f"a try is left at {endpoint.name}"
        assert not endpoint.idle, f"an idle connection is left at {endpoint.name}"
    for circuit in circuits:
        if circuit is not None:
            counts = {name: getattr(circuit, name) for name in ("requests", "pending", "retries", "connections")}
            assert not any(counts.values()), f"counted, and not there: {counts}"
            assert not circuit.waiting
    delivered = sum((host.asked for host in hosts), Counter[str]())
    for request, count in delivered.items():
        assert count == 1 or not request.startswith("POST"), f"{request} was delivered {count} times"
    assert not any(host.open for host in (*hosts, shadow)), "a connection to an instance is left"
    for server in servers:
        server.close()
    outbound.close()
    await asyncio.sleep(0.1)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"left: {left}"
