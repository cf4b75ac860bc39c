"""MessagePack-RPC connections that ask as fast as they are answered. docs/rpc.md is the protocol.

Calls are told apart by a slot in place of a msgid, so that a call is sent as three ready pieces: the slot's head, the
next body, and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from benchmarks.load.meter import Meter
from homeport.client.core import wire
from homeport.client.core.messages import Hello, Request

_HELLO: Final = wire.ask(0, Hello(client="benchmark"))
_SLOT_AT: Final = 2  # of the bytes of an answer: 0x94, 1, msgid, error, result
_ERROR_AT: Final = 3
_NIL: Final = 0xC0
_ARRAY_OF_4: Final = 0x94


def rpc_body(request: Request[Any]) -> bytes:
    """A call without its first three bytes, which hold the msgid."""
    return wire.ask(0, request)[3:]


def head(slot: int) -> bytes:
    """The first three bytes of a call."""
    return bytes((_ARRAY_OF_4, 0, slot))


class RpcConnection(asyncio.Protocol):
    """Connects and says hello; what comes then is a subclass's to handle, message by message."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._splitter = wire.Splitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(_HELLO)

    def data_received(self, data: bytes) -> None:
        messages = self._splitter.feed(data)
        if not self.opened.done():
            welcome, *messages = messages
            if welcome[_ERROR_AT] == _NIL:
                self.opened.set_result(None)
            else:
                self.opened.set_exception(ConnectionError(f"hello was refused: {welcome!r}"))
        if messages:
            self.messages_received(messages)

    def messages_received(self, messages: list[bytes]) -> None:
        raise NotImplementedError

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the server closed the connection"))


class RpcLane(RpcConnection):
    """One connection of a closed loop."""

    def __init__(self, meter: Meter[bytes], depth: int) -> None:
        super().__init__()
        self._meter = meter
        self._heads = [head(slot) for slot in range(depth)]
        self._sent_at = [0.0] * depth

    def begin(self) -> None:
        """Send the first `depth` calls."""
        self._send(list(range(len(self._heads))))

    def messages_received(self, messages: list[bytes]) -> None:
        meter = self._meter
        now = meter.now()
        slots = []
        for message in messages:
            if message[0] == _ARRAY_OF_4:
                slot = message[_SLOT_AT]
                meter.answered(now - self._sent_at[slot], b"" if message[_ERROR_AT] == _NIL else message)
                slots.append(slot)
        self._send(slots)
        meter.turned()

    def _send(self, slots: list[int]) -> None:
        now = self._meter.now()
        out: list[bytes] = []
        for slot in slots:
            body = self._meter.next_call()
            if body is None:
                break
            self._sent_at[slot] = now
            out += (self._heads[slot], body)
        if out:
            self.transport.write(b"".join(out))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._meter.broke()
