"""Concurrent histories over real sockets against a live registry, checked for linearizability.

Several clients get, put, delete and compare-and-set a few keys through a relay that cuts connections, some after the
request was delivered and some before, so that part of the outcomes is unknown. The seed is printed, and any seed can be
tried with HOMEPORT_SEED. (The interleaving is the sockets' own: a seed repeats the workload, not the whole run.)
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from homeport.client.core.errors import CasFailed, ConnectionLost, HomeportError, Unavailable
from homeport.client.core.messages import Event, KvDelete, KvFound, KvGet, KvPut
from homeport.client.rpc import StreamTransport
from homeport.client.transport import Link
from homeport.mesh.simulation.linearizability import Kind, Operation, State, check
from homeport.registry import Registry
from tests.lincheck.relay import Relay

KEYS = (b"a", b"b", b"c")
FAULT_SHARE = 0.05  # of the operations: enough unknown outcomes to matter, few enough to be checked


class _Deaf:
    """A receiver for links without watches."""

    def event(self, watch: int, event: Event) -> None:
        raise AssertionError(f"an event nobody asked for: {watch} {event}")

    def closed(self, error: HomeportError) -> None:
        pass


class Client:
    """One client that works through its operations one after the other, and writes down what it saw."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.number = number
        self.rng = random.Random(f"{load.seed}/{number}")
        self.link: Link | None = None
        self.known: dict[bytes, tuple[State, int]] = {}  # what it last saw of a key, and its revision

    async def run(self, operations: int) -> None:
        for _ in range(operations):
            await self.connect()
            if self.rng.random() < FAULT_SHARE:
                self.load.relay.fault = self.rng.choice(("request", "answer"))
            elif self.rng.random() < FAULT_SHARE / 5:
                self.load.relay.cut_all()
            await self.operate()
        if self.link is not None:
            await self.link.close()

    async def connect(self) -> None:
        while self.link is None:
            try:
                self.link = await StreamTransport(self.load.relay.address).connect(_Deaf())
            except (Unavailable, ConnectionLost):
                self.load.refused += 1

    async def operate(self) -> None:
        key = self.rng.choice(KEYS)
        kind: Kind = self.rng.choice(("get", "get", "get", "put", "put", "delete", "cas", "cas", "cas"))
        value = b"%d" % next(self.load.values)  # never written twice, so that a value stands for its revision
        expected, revision = self.known.get(key, (None, 0))
        operation = Operation(self.number, kind, key, next(self.load.clock), None, value, expected)
        try:
            result = await self.ask(kind, key, value, revision)
        except ConnectionLost:
            self.link = None
            self.load.history.append(operation)
            return
        self.load.history.append(replace(operation, returned=next(self.load.clock), result=result))

    async def ask(self, kind: Kind, key: bytes, value: bytes, revision: int) -> bytes | bool | None:
        assert self.link is not None
        match kind:
            case "get":
                found: KvFound = await self.link.call(KvGet(key))
                entry = found.entry
                self.known[key] = (entry.value, entry.mod_revision) if entry else (None, 0)
                return entry.value if entry else None
            case "put":
                written = await self.link.call(KvPut(key, value))
                self.known[key] = (value, written.revision)
                return None
            case "delete":
                deleted = await self.link.call(KvDelete(key))
                self.known[key] = (None, 0)
                return deleted.count == 1
            case "cas":
                try:
                    written = await self.link.call(KvPut(key, value, cas=revision))
                except CasFailed:
                    return False
                self.known[key] = (value, written.revision)
                return True


class Load:
    """A run: its clients, and the history they made."""

    def __init__(self, seed: int, relay: Relay) -> None:
        self.seed = seed
        self.relay = relay
        self.clock = count(1)  # calls and answers are all in this process, so one counter orders them
        self.values = count(1)
        self.history: list[Operation] = []
        self.refused = 0


async def run_load(seed: int, clients: int, operations: int) -> list[Operation]:
    print(f"HOMEPORT_SEED={seed}")
    async with Registry() as registry:
        at = await registry.serve(rpc="127.0.0.1:0")
        assert at.rpc is not None
        async with Relay(at.rpc) as relay:
            load = Load(seed, relay)
            await asyncio.gather(*(Client(load, number).run(operations) for number in range(clients)))
    print(f"{len(load.history)} operations, {relay.cuts} cuts in the act, {load.refused} hellos lost")
    return load.history


def seed_or(default: int) -> int:
    return int(os.environ.get("HOMEPORT_SEED", default))


def expect_linearizable(history: list[Operation]) -> None:
    violation = check(history)
    assert violation is None, str(violation)


@pytest.mark.parametrize("number", range(3))
async def test_concurrent_clients_see_one_copy_of_every_key(number: int) -> None:
    history = await run_load(seed_or(number), clients=6, operations=60)
    expect_linearizable(history)
    outcomes = Counter((one.kind, one.returned is None, one.kind == "cas" and one.result) for one in history)
    assert outcomes["cas", False, True] > 5, "hardly any compare-and-set succeeded: the load shows little"
    assert outcomes["cas", False, False] > 5, "hardly any compare-and-set met another: the load shows little"
    assert sum(one.returned is None for one in history) > 5, "hardly any outcome is unknown: the load shows little"


async def test_a_lie_in_a_real_history_is_found() -> None:
    """The same check on the same kind of history fails when one answer in it is made stale."""
    history = await run_load(seed_or(99), clients=4, operations=40)
    expect_linearizable(history)
    answered = [one for one in history if one.returned is not None]
    last = max(one.returned or 0 for one in answered)
    for key in KEYS:
        written = next(one.value for one in answered if one.key == key and one.kind == "put")
        rewrite = Operation(8, "put", key, last + 1, last + 2, b"newest")
        expect_linearizable([*history, rewrite, Operation(8, "get", key, last + 3, last + 4, result=b"newest")])
        stale = Operation(8, "get", key, last + 3, last + 4, result=written)
        assert check([*history, rewrite, stale]) is not None


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_concurrent_clients_see_one_copy_of_every_key_for_many_seeds() -> None:
    seed = seed_or(random.SystemRandom().randrange(1 << 32))
    for number in range(40):
        expect_linearizable(await run_load(seed + number, clients=8, operations=40))
