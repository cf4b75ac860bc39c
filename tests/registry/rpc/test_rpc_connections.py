"""What the RPC front does with clients that are wrong, rude or slow: says what was wrong, and hurts nobody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import msgpack
import pytest

from homeport.client import Client
from homeport.registry import Registry

Eventually = Callable[..., Awaitable[None]]
HELLO = [0, 1, "hello", [{"version": 1}]]


class RawClient:
    """Speaks the wire format through another implementation of it, as a client in another language would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._unpacker = msgpack.Unpacker()

    def say(self, *messages: object) -> None:
        self.writer.write(b"".join(msgpack.packb(message) for message in messages))

    async def hear(self) -> Any:
        """The next message, or None when the registry has closed the connection."""
        async with asyncio.timeout(30.0):
            while True:
                for message in self._unpacker:
                    return message
                data = await self.reader.read(65_536)
                if not data:
                    return None
                self._unpacker.feed(data)


Dial = Callable[[], Awaitable[RawClient]]


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(node="n") as registry:
        yield registry


@pytest.fixture
async def dial(registry: Registry) -> AsyncIterator[Dial]:
    at = await registry.serve(rpc="127.0.0.1:0")
    assert at.rpc is not None
    host, port = at.rpc.split(":")
    clients: list[RawClient] = []

    async def open_one() -> RawClient:
        clients.append(RawClient(*await asyncio.open_connection(host, int(port))))
        return clients[-1]

    yield open_one
    for client in clients:
        client.writer.close()


async def test_hello_says_who_answers_and_what_is_allowed(dial: Dial) -> None:
    client = await dial()
    client.say(HELLO)
    kind, msgid, error, welcome = await client.hear()
    assert (kind, msgid, error) == (1, 1, None)
    assert welcome["version"] == 1
    assert welcome["node"] == "n"
    assert len(welcome["store_id"]) == 16
    assert welcome["limits"]["frame_bytes"] == 2 * 1024 * 1024


async def test_pipelined_calls_are_answered_and_writes_apply_in_order(dial: Dial) -> None:
    client = await dial()
    client.say(HELLO, *([0, 10 + n, "kv_put", [{"key": b"a", "value": b"%d" % n}]] for n in range(100)))
    client.say([0, 500, "kv_get", [{"key": b"a"}]])
    answers = [await client.hear() for _ in range(102)]
    assert [answer[1] for answer in answers] == [1, *range(10, 110), 500]
    assert answers[-1][3]["entry"]["value"] == b"99"


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        ([0, 2, "no_such", [{}]], "unknown_method", "no method 'no_such'"),
        ([0, 2, "kv_get", [{}]], "invalid_argument", "key"),
        ([0, 2, "kv_get", [{"key": 5}]], "invalid_argument", "Expected `bytes`"),
        ([0, 2, "kv_get", []], "invalid_argument", "params"),
        ([0, 2, "kv_get", {"key": b"a"}], "invalid_argument", "params"),
        ([0, 2, "register", [{"instance": {"service": "x"}}]], "invalid_argument", "id"),
        ([0, 2, "register", [{"instance": {"service": "x", "id": "y", "ttl_s": -5}}]], "invalid_argument", "allowed"),
        ([0, 2, "set_state", [{"id": "y", "state": "gone"}]], "invalid_argument", "gone"),
        ([0, 2, "cancel_watch", [{"watch": 7}]], "not_found", "no watch 7"),
    ],
)
async def test_a_bad_call_is_answered_with_a_typed_error_and_the_connection_goes_on(
    dial: Dial, message: object, code: str, says: str
) -> None:
    client = await dial()
    client.say(HELLO, message, [0, 3, "ping", [{}]])
    await client.hear()
    kind, msgid, error, result = await client.hear()
    assert (kind, msgid, result) == (1, 2, None)
    assert error[0] == code
    assert says in error[1]
    assert (await client.hear())[1] == 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "protocol"),
        (b"\xc1", "protocol"),
        (b"\x91" * 100_000, "protocol"),
        (msgpack.packb([7, 1, "ping", []]), "protocol"),
        (msgpack.packb([0, -1, "ping", [{}]]), "protocol"),
        (msgpack.packb({"method": "ping"}), "protocol"),
        (msgpack.packb([1, 1, None, None]), "protocol"),
        (b"\xc6\xff\xff\xff\xff" + b"x" * (2 * 1024 * 1024 + 10), "limit_exceeded"),
        (b"\xdd\xff\xff\xff\xff" + b"\xc0" * (2 * 1024 * 1024 + 10), "limit_exceeded"),
        (msgpack.packb([0, 1, "kv_put", [{"key": b"k", "value": b"v" * 3_000_000}]]), "limit_exceeded"),
    ],
)
async def test_bytes_that_are_not_the_protocol_end_that_connection_with_the_reason(
    dial: Dial, registry: Registry, data: bytes, code: str
) -> None:
    bystander = await dial()
    bystander.say(HELLO)
    await bystander.hear()
    rude = await dial()
    rude.say(HELLO)
    await rude.hear()
    rude.writer.write(data)
    told = await rude.hear()
    assert told[:2] == [2, "error"]
    assert told[2][0][0] == code
    assert await rude.hear() is None
    bystander.say([0, 2, "ping", [{}]])
    assert (await bystander.hear())[1] == 2
    assert len(registry.store.mvcc) == 0


async def test_anything_before_hello_is_refused(dial: Dial) -> None:
    client = await dial()
    client.say([0, 1, "kv_put", [{"key": b"a", "value": b""}]])
    assert (await client.hear())[2][0] == "protocol"
    assert (await client.hear())[:2] == [2, "error"]
    assert await client.hear() is None


async def test_a_wrong_version_or_token_is_refused(dial: Dial) -> None:
    client = await dial()
    client.say([0, 1, "hello", [{"version": 99}]])
    assert (await client.hear())[2][:2] == ["invalid_argument", "version is 99; allowed: 1"]
    async with Registry(token="secret") as guarded:
        at = await guarded.serve(rpc="127.0.0.1:0")
        assert at.rpc is not None
        host, port = at.rpc.split(":")
        stranger = RawClient(*await asyncio.open_connection(host, int(port)))
        stranger.say(HELLO, [0, 2, "ping", [{}]])
        assert (await stranger.hear())[2][0] == "unauthorized"
        assert (await stranger.hear())[:2] == [2, "error"]
        assert await stranger.hear() is None
        stranger.writer.close()
        async with Client(at.rpc, token="secret") as friend:
            assert await friend.services() == {}


async def test_unknown_fields_and_unknown_notices_are_from_a_newer_release_and_ignored(dial: Dial) -> None:
    client = await dial()
    client.say([0, 1, "hello", [{"version": 1, "colour": "red"}]], [2, "wave", [{}]], [0, 2, "ping", [{"x": 1}]])
    assert (await client.hear())[1] == 1
    assert (await client.hear())[1] == 2


async def test_messages_may_arrive_one_byte_at_a_time(dial: Dial) -> None:
    client = await dial()
    for byte in msgpack.packb(HELLO) + msgpack.packb([0, 2, "kv_put", [{"key": b"a", "value": b"1"}]]):
        client.writer.write(bytes((byte,)))
        await client.writer.drain()
    assert (await client.hear())[1] == 1
    assert (await client.hear())[1] == 2


async def test_a_client_that_does_not_read_is_told_lost_and_gets_a_fresh_snapshot(
    registry: Registry, dial: Dial, eventually: Eventually
) -> None:
    slow = await dial()
    slow.say(HELLO, [0, 2, "watch_service", [{"watch": 1, "service": "big"}]])
    await slow.hear()
    await slow.hear()
    assert (await slow.hear())[1] == "service"
    reading = cast("asyncio.Transport", slow.writer.transport)
    reading.pause_reading()
    (connection,) = registry._rpc.connections
    async with registry.client() as inside:
        registration = inside.register("big", port=1, ttl_s=0.0, meta={"filler": "x" * 4000})
        await registration.start()
        states = ("draining", "up")
        for turn in range(20_000):
            await registration.set_state(states[turn % 2])  # type: ignore[arg-type]  # one of the two
            if not connection.ready():
                break
        assert not connection.ready(), "it should not be taking events any more"
        for turn in range(100):
            await registration.set_state(states[turn % 2])  # type: ignore[arg-type]  # one of the two
        reading.resume_reading()
        kinds: list[str] = []
        while kinds[-1:] != ["lost"]:
            kinds.append((message := await slow.hear())[1])
        watch, lost = message[2]
        assert watch == 1
        assert lost["to_revision"] - lost["from_revision"] >= 98
        snapshot = (await slow.hear())[2][1]
        assert snapshot["snapshot"]
        assert snapshot["revision"] >= lost["to_revision"]


async def test_ten_thousand_random_bytes_hurt_nobody(dial: Dial) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    bystander = await dial()
    bystander.say(HELLO)
    await bystander.hear()
    for _ in range(30):
        rude = await dial()
        rude.writer.write(rng.randbytes(rng.randrange(1, 10_000)))
        rude.writer.write_eof()
        while await rude.hear() is not None:
            pass
    bystander.say([0, 2, "ping", [{}]])
    assert (await bystander.hear())[1] == 2


async def test_a_connection_says_goodbye_when_the_registry_stops(dial: Dial, registry: Registry) -> None:
    client = await dial()
    client.say(HELLO)
    await client.hear()
    await registry.close()
    assert (await client.hear())[:2] == [2, "goaway"]
    assert await client.hear() is None
