"""Links over TCP and Unix sockets: MessagePack-RPC, multiplexed, one connection for everything."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar, cast

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import (
    ConnectionLost,
    HomeportError,
    InvalidArgument,
    ProtocolError,
    Unavailable,
    from_wire,
)
from homeport.client.core.messages import RESULTS, Event, Hello, KvEvents, Notice, Request, Welcome
from homeport.client.core.model import Lost, ServiceEvent, is_port
from homeport.client.names import is_text
from homeport.client.transport import Link, Receiver

R = TypeVar("R")

CONNECT_S: Final = 5.0  # to connect and be welcomed; a registry that takes longer is as good as gone
_EVENTS: Final[dict[str, type[Event]]] = {"service": ServiceEvent, "kv": KvEvents, "lost": Lost}


class StreamTransport:
    """Opens links to "host:port" or "unix:/path".

    Raises:
        InvalidArgument: the address has another form.
    """

    def __init__(self, address: str, *, token: str = "", name: str = "") -> None:
        if not is_text(address) or "://" in address:
            raise InvalidArgument(
                f"registry address {address!r}; allowed: host:port of its RPC (8300 by default), or unix:/path",
                field="address",
            )
        self.address: str = address
        self._hello = Hello(token=token, client=name)
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else ""
        host, colon, port = address.rpartition(":")
        if not self._path and not (colon and host and is_port(port)):
            raise InvalidArgument(f"registry address {address!r}; allowed: host:port or unix:/path", field="address")
        self._host, self._port = host.strip("[]"), port

    async def connect(self, receiver: Receiver) -> Link:
        loop = asyncio.get_running_loop()
        link = RpcLink(receiver)
        try:
            async with asyncio.timeout(CONNECT_S):
                if self._path:
                    await loop.create_unix_connection(lambda: link, self._path)
                else:
                    await loop.create_connection(lambda: link, self._host, int(self._port))
                link.welcome = await link.call(self._hello)
        except ConnectionLost as error:
            if not error.details.get("garbled"):
                raise
            raise Unavailable(f"{self.address} does not speak RPC: is it the registry's port for that?") from error
        except (OSError, TimeoutError) as error:
            await link.close()
            raise Unavailable(f"no registry at {self.address}: {str(error) or 'no answer in time'}") from error
        except ValueError as error:  # also UnicodeError: not a host name or path that any system would look up
            await link.close()
            raise InvalidArgument(f"registry address {self.address!r}: {error}", field="address") from error
        except BaseException:
            await link.close()
            raise
        return link


def garbled(error: HomeportError) -> ConnectionLost:
    """What ends a link whose registry sent nonsense; `details["garbled"]` tells it from a link that merely broke."""
    return ConnectionLost(f"the registry's bytes make no sense: {error.message}", garbled=True)


class RpcLink(asyncio.Protocol):
    """One connection; its own protocol object."""

    welcome: Welcome

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._splitter = wire.Splitter()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, tuple[asyncio.Future[Any], type[Any]]] = {}
        self._last_msgid = 0
        self._out: list[bytes] = []
        self._error: HomeportError | None = None
        self._closing = False

    # --- Link ---------------------------------------------------------------------------------------------------

    def call(self, request: Request[R]) -> asyncio.Future[R]:
        answer: asyncio.Future[R] = self._loop.create_future()
        if self._transport is None or self._closing:
            answer.set_exception(ConnectionLost("the connection to the registry is closed"))
            return answer
        self._last_msgid = msgid = self._last_msgid + 1 if self._last_msgid < wire.MSGID_MAX else 1
        try:
            self._write(wire.ask(msgid, request))
        except HomeportError as error:
            answer.set_exception(error)
            return answer
        self._calls[msgid] = (answer, RESULTS[type(request)])
        return answer

    def notify(self, notice: Notice) -> None:
        if self._transport is not None:
            self._write(wire.tell(notice))

    async def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._fail(ConnectionLost("the connection was closed before the answer came"))

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # not isinstance: uvloop's transports only behave like one
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._splitter.feed(data):
                self._message(wire.decode_message(frame))
        except HomeportError as error:
            self._error = garbled(error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._splitter.close()
        error = self._error or ConnectionLost(
            f"the connection to the registry broke: {exc or 'closed by the registry'}"
        )
        self._fail(error)
        if not self._closing:
            self._closing = True
            self._receiver.closed(error)

    # --- messages -----------------------------------------------------------------------------------------------

    def _message(self, message: wire.Ask | wire.Answer | wire.Tell) -> None:
        match message:
            case wire.Answer():
                answer, kind = self._calls.pop(message.msgid, (None, object))
                if answer is None or answer.done():  # cancelled meanwhile, or never asked: nobody waits for it
                    return
                try:
                    error = wire.decode_error(message.error)
                    result = wire.decode(kind, message.result) if error is None else None
                except HomeportError as nonsense:  # whoever asked must hear of it, since the call is forgotten by now
                    answer.set_exception(garbled(nonsense))
                    raise
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(result)
            case wire.Tell():
                self._told(message)
            case wire.Ask():
                raise ProtocolError("a registry does not ask")

    def _told(self, message: wire.Tell) -> None:
        kind = _EVENTS.get(message.method)
        if kind is not None:
            watch, event = wire.decode(tuple[int, msgspec.Raw], message.params)
            self._receiver.event(watch, wire.decode(kind, event))
        elif message.method == "error":
            ((code, text, details),) = wire.decode(tuple[tuple[str, str, dict[str, Any]]], message.params)
            self._error = from_wire(code, text, details)
        elif message.method == "goaway":
            (reason,) = wire.decode(tuple[str], message.params)
            self._error = ConnectionLost(f"the registry said goodbye: {reason}")
        # Anything else is from a newer registry, and not ours to mind.

    def _write(self, frame: bytes) -> None:
        self._out.append(frame)
        if len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def _fail(self, error: HomeportError) -> None:
        calls, self._calls = self._calls, {}
        for answer, _ in calls.values():
            if not answer.done():
                answer.set_exception(error)
