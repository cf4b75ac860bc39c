"""The bytes that the generators send and understand, against the specifications' own examples."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.load import grpc, protobuf
from benchmarks.load.meter import Meter
from benchmarks.load.rpc import head, rpc_body
from homeport.client.core import wire
from homeport.client.core.messages import Resolve


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varints_are_protobufs(value: int, encoded: str) -> None:
    assert protobuf.varint(value) == bytes.fromhex(encoded)


def test_a_put_request_has_key_and_value_as_fields_one_and_two() -> None:
    assert protobuf.put_request(b"k", b"vv") == b"\x0a\x01k\x12\x02vv"


def test_a_serializable_range_says_so_in_field_seven() -> None:
    assert protobuf.range_request(b"a/", serializable=True) == b"\x0a\x02a/\x12\x02a0\x38\x01"
    assert protobuf.range_request(b"a/", serializable=False) == b"\x0a\x02a/\x12\x02a0"


@pytest.mark.parametrize(("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\x00")])
def test_a_prefix_ends_before_the_next_key_that_does_not_start_with_it(prefix: bytes, end: bytes) -> None:
    assert protobuf.prefix_end(prefix) == end


def test_a_call_of_three_pieces_is_a_call() -> None:
    message = wire.decode_message(head(5) + rpc_body(Resolve(service="orders")))
    assert isinstance(message, wire.Ask)
    assert (message.msgid, message.method) == (5, "resolve")
    assert wire.decode_params(Resolve, message.params) == Resolve(service="orders")


def test_a_frame_has_length_kind_flags_and_stream_in_front() -> None:
    assert grpc.frame(0x6, 0x1, 3, b"12345678") == b"\x00\x00\x08\x06\x01\x00\x00\x00\x0312345678"


def test_a_grpc_message_has_its_length_in_front_and_is_not_compressed() -> None:
    assert grpc.message(b"abc") == b"\x00\x00\x00\x00\x03abc"


class _Wire(asyncio.Transport):
    """Takes what is written; the other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data


def _answer(stream: int) -> bytes:
    data = grpc.frame(0, 0, stream, grpc.message(b"ok"))
    return grpc.frame(1, 4, stream, b"\x88") + data + grpc.frame(1, 5, stream, b"")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_answers_are_counted_whatever_the_chunks(chunk: int) -> None:
    meter = Meter([grpc.unary_parts("/a/b", "host", b"ask")], operations_max=4)
    lane = grpc.UnaryLane(meter, 2)
    lane.connection_made(_Wire())
    meter.start()
    lane.begin()
    for streams in ((1, 3), (5, 7)):  # nothing is answered before it was asked
        answers = b"".join(_answer(stream) for stream in streams)
        for at in range(0, len(answers), chunk):
            lane.data_received(answers[at : at + chunk])
    await asyncio.wait_for(meter.finished, 30)
    assert (meter.outcome().operations, meter.outcome().failed) == (4, 0)


async def test_a_call_that_ends_without_a_message_has_failed() -> None:
    meter = Meter([grpc.unary_parts("/a/b", "host", b"ask")], operations_max=1)
    lane = grpc.UnaryLane(meter, 1)
    lane.connection_made(_Wire())
    meter.start()
    lane.begin()
    lane.data_received(grpc.frame(1, 5, 1, b"\x88"))
    await asyncio.wait_for(meter.finished, 30)
    assert (meter.outcome().operations, meter.outcome().failed) == (1, 1)
    assert "without a message" in meter.outcome().first_error


async def test_each_call_opens_the_next_stream() -> None:
    meter = Meter([grpc.unary_parts("/a/b", "host", b"ask")], operations_max=2)
    lane, out = grpc.UnaryLane(meter, 2), _Wire()
    lane.connection_made(out)
    opening = len(out.sent)
    meter.start()
    lane.begin()
    assert out.sent[opening:] == grpc.unary_call("/a/b", "host", 1, b"ask") + grpc.unary_call("/a/b", "host", 3, b"ask")


async def test_pings_and_settings_are_acknowledged() -> None:
    lane, out = grpc.UnaryLane(Meter([(b"", b"", b"")], 1), 1), _Wire()
    lane.connection_made(out)
    lane.data_received(grpc.frame(4, 0, 0, b"") + grpc.frame(6, 0, 0, b"12345678"))
    assert out.sent.endswith(grpc.frame(4, 1, 0, b"") + grpc.frame(6, 1, 0, b"12345678"))
    assert lane.opened.done()


async def test_a_connection_lost_under_load_ends_the_measurement() -> None:
    meter = Meter([grpc.unary_parts("/a/b", "host", b"ask")], operations_max=1)
    lane = grpc.UnaryLane(meter, 1)
    lane.connection_made(_Wire())
    lane.opened.set_result(None)
    meter.start()
    lane.begin()
    lane.connection_lost(None)
    with pytest.raises(ConnectionError, match="under load"):
        await asyncio.wait_for(meter.finished, 30)
