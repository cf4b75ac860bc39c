"""Asks a gRPC server how it is, by the standard protocol: `grpc.health.v1.Health/Check`, one call on a connection.

The messages are one field each (github.com/grpc/grpc/blob/master/doc/health-checking.md), so no gRPC library and no
generated code is needed: `h2` speaks HTTP/2, and this file the forty bytes above it.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from homeport.client.core.model import Check
from homeport.registry.core.health import Verdict
from homeport.registry.health.dialing import TLS_ALPN_HTTP2, Dialer, host_and_port
from homeport.registry.health.http_probe import USER_AGENT, BadAnswer

PATH: Final = "/grpc.health.v1.Health/Check"
ANSWER_BYTES_MAX: Final = 1024  # the message has two bytes; what unknown fields may add is bounded
# Of everything that comes in: h2 gathers a frame whole, up to 16 MB, before it finds it too long.
RECEIVED_BYTES_MAX: Final = 65_536
_SETTINGS: Final = 4  # the type of the first frame that a server of HTTP/2 sends, in its fourth byte
_STATES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_SERVING: Final = 1
_CODES: Final = {"5": "NOT_FOUND", "12": "UNIMPLEMENTED", "14": "UNAVAILABLE", "7": "PERMISSION_DENIED"}


async def ask(dialer: Dialer, check: Check, title: str) -> Verdict:
    """Call the server and judge what it says: SERVING is passing, all else critical.

    Raises:
        BadAnswer, OSError: it did not say anything in gRPC.
    """
    host, port = host_and_port(check.address)
    tls = dialer.tls(check.tls_verify, TLS_ALPN_HTTP2) if check.tls else None
    call = _Call(check, host, port)
    transport, _ = await dialer.dial(lambda: call, host, port, tls, check.tls_name)
    try:
        await call.done
    finally:
        transport.abort()
    if call.grpc_status != "0":
        code = _CODES.get(call.grpc_status, f"status {call.grpc_status}")
        return Verdict("critical", f"{title}: {code} {unquote(call.grpc_message)}".rstrip())
    state = decode_state(bytes(call.body))
    name = _STATES[state] if state < len(_STATES) else str(state)
    return Verdict("passing" if state == _SERVING else "critical", f"{title}: {name}")


def encode_request(service: str) -> bytes:
    """`HealthCheckRequest{service = 1}` in gRPC's frame: one byte of compression, four of length."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def decode_state(framed: bytes) -> int:
    """`HealthCheckResponse{status = 1}` out of gRPC's frame; absent: 0, UNKNOWN.

    Raises:
        BadAnswer: it is not such a message.
    """
    if len(framed) < 5 or framed[0] or int.from_bytes(framed[1:5], "big") != len(framed) - 5:
        raise BadAnswer("the answer is not one uncompressed gRPC message")
    message, at, state = framed[5:], 0, 0
    try:
        while at < len(message):
            tag, at = _read_varint(message, at)
            match tag & 7:
                case 0:
                    value, at = _read_varint(message, at)
                    if tag == 8:
                        state = value
                case 1:
                    at += 8
                case 2:
                    size, at = _read_varint(message, at)
                    at += size
                case 5:
                    at += 4
                case _:
                    raise IndexError
        if at != len(message):
            raise IndexError
    except IndexError:
        raise BadAnswer("the answer is not a HealthCheckResponse") from None
    return state


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends. Raises `IndexError` where it does not."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class _Call(asyncio.Protocol):
    """The call on a connection of its own; `done` when the server has ended it."""

    def __init__(self, check: Check, host: str, port: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.grpc_status = ""
        self.grpc_message = ""
        self.body = bytearray()
        self._received = 0
        self._check = check
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._h2.initiate_connection()
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https" if self._check.tls else "http"),
            (":path", PATH),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", USER_AGENT),
        ]
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, encode_request(self._check.grpc_service), end_stream=True)
        self._transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        if not self._received and len(data) > 3 and data[3] != _SETTINGS:
            self._fail("not an HTTP/2 answer")
            return
        self._received += len(data)
        if self._received > RECEIVED_BYTES_MAX:
            self._fail(f"it sent more than {RECEIVED_BYTES_MAX} bytes")
            return
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except h2.exceptions.H2Error as error:
            self._fail(f"not an HTTP/2 answer: {type(error).__name__}: {error}")
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"closed without an answer{f': {exc}' if exc else ''}")

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(headers=headers) | h2.events.TrailersReceived(headers=headers):
                for name, value in headers or ():
                    if name == b":status" and value != b"200":
                        self._fail(f"not a gRPC server: HTTP status {_text(value)[:20]}")
                    elif name == b"grpc-status":
                        self.grpc_status = _text(value)[:20]
                    elif name == b"grpc-message":
                        self.grpc_message = _text(value)
            case h2.events.DataReceived(data=data, flow_controlled_length=length, stream_id=stream):
                self.body += data or b""
                if len(self.body) > ANSWER_BYTES_MAX:
                    self._fail(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
                self._h2.acknowledge_received_data(length or 0, stream or 0)
            case h2.events.StreamEnded():
                if not self.grpc_status:
                    self._fail("not a gRPC server: no grpc-status")
                elif not self.done.done():
                    self.done.set_result(None)
            case h2.events.StreamReset(error_code=code) | h2.events.ConnectionTerminated(error_code=code):
                self._fail(f"the server gave the call up: HTTP/2 error {code}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswer(why))
