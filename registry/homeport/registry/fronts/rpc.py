"""The MessagePack-RPC front, over TCP and Unix sockets: docs/rpc.md is its contract.

One `asyncio.Protocol` per connection. What one read brings is decided at once, in order, and answered in one write;
only what must wait for the store becomes a task. A connection that does not read is given no more events (they wait in
their bounded places), then no more answers but `Busy`, then is not read from; nobody else notices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, cast

from homeport.client.core import wire
from homeport.client.core.errors import (
    Busy,
    HomeportError,
    Internal,
    ProtocolError,
    UnknownMethod,
    to_wire,
)
from homeport.client.core.messages import NOTICES, REQUESTS, Hello, Renew
from homeport.registry.core.limits import CONNECTION_CALLS_MAX, CONNECTION_OUT_BYTES_MAX, CONNECTIONS_MAX
from homeport.registry.core.txn import TxnResult
from homeport.registry.operations import Commit, Encoded, Operations
from homeport.registry.peers import Outgoing, Peer

_log = logging.getLogger("homeport.registry.rpc")

_HELLO_S: Final = 10.0  # to say hello in; a connection that says nothing costs a file descriptor
_EVENTS_BYTES: Final = 1024 * 1024  # unsent bytes at which events wait: a sixteenth of what ends answers
_LINGER_S: Final = 1.0  # how long a refused client may take to read why
_BUSY_S: Final = 0.5  # when a connection that was told Busy may come back


class RpcFront:
    """Serves the operations to connections on any number of listeners."""

    def __init__(self, operations: Operations, peer_lost: Callable[[Peer], None]) -> None:
        self._operations = operations
        self._peer_lost = peer_lost
        self._servers: list[asyncio.Server] = []
        self._paths: list[str] = []
        self.connections: set[RpcConnection] = set()

    async def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: a free one) or "unix:/path" and return the actual address.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            _remove_stale_socket(path)
            self._servers.append(await loop.create_unix_server(self._connection, path))
            self._paths.append(path)
            return address
        host, _, port = address.rpartition(":")
        server = await loop.create_server(self._connection, host.strip("[]") or None, int(port))
        self._servers.append(server)
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    def _connection(self) -> RpcConnection:
        return RpcConnection(self, self._operations)

    async def close(self) -> None:
        """Stop listening, tell every connection to go elsewhere, and close. Idempotent."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.go_away("the registry is stopping")
        for server in self._servers:
            await server.wait_closed()
        for path in self._paths:
            _remove_stale_socket(path)
        self._servers.clear()
        self._paths.clear()

    def opened(self, connection: RpcConnection) -> bool:
        """Count a connection in; False if there are too many."""
        self.connections.add(connection)
        return len(self.connections) <= CONNECTIONS_MAX

    def lost(self, connection: RpcConnection) -> None:
        self.connections.discard(connection)
        self._operations.leave(connection.peer)
        self._peer_lost(connection.peer)


class RpcConnection(asyncio.Protocol):
    """One client's connection; also the outlet of its peer."""

    def __init__(self, front: RpcFront, operations: Operations) -> None:
        self._front = front
        self._operations = operations
        self._splitter = wire.Splitter()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._unflushed_bytes = 0  # of events in _out
        self._flushing = False  # a flush is scheduled, or a read is being worked on and will flush
        self._greeted = False
        self._refused = False
        self._events_wait = False
        self._wake_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies = 0  # commits under way
        self._loop = asyncio.get_running_loop()
        self._hello_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.peer = Peer(self)

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # not isinstance: uvloop's transports only behave like one
        self._transport = transport
        transport.set_write_buffer_limits(high=_EVENTS_BYTES)
        if not self._front.opened(self):
            self._refuse(Busy(f"{CONNECTIONS_MAX} connections are open already", retry_after_s=_BUSY_S))
        self._hello_timer = self._loop.call_later(_HELLO_S, self._no_hello)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._flushing = True
        try:
            for frame in self._splitter.feed(data):
                self._message(wire.decode_message(frame))
        except HomeportError as error:
            self._refuse(error)
        finally:
            self._flushing = False
            self._flush()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._events_wait = True

    def resume_writing(self) -> None:
        self._events_wait = False
        if self._transport is not None:
            self._transport.resume_reading()
            self._flush_peer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for timer in (self._hello_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._front.lost(self)

    # --- what comes in ------------------------------------------------------------------------------------------

    def _message(self, message: wire.Ask | wire.Answer | wire.Tell) -> None:
        match message:
            case wire.Ask():
                try:
                    self._ask(message)
                except HomeportError as error:
                    self._write(wire.answer_error(message.msgid, error))
                except Exception:  # noqa: BLE001 - a defect in one call must not take the connection's others with it
                    self._write(_defect(message.msgid))
            case wire.Tell():
                kind = NOTICES.get(message.method)
                if kind is not None and self._greeted:  # unknown ones are from a newer release: not ours to mind
                    self._operations.notice(wire.decode_params(kind, message.params), self.peer)
            case wire.Answer():
                raise ProtocolError("this side asks nothing, so it takes no answers")

    def _ask(self, ask: wire.Ask) -> None:
        kind = REQUESTS.get(ask.method)
        if kind is None:
            raise UnknownMethod(f"there is no method {ask.method!r}", allowed=sorted(REQUESTS))
        if not self._greeted and kind is not Hello:
            raise ProtocolError("the first call of a connection must be hello")
        if kind is not Renew:
            self._expect_room()
        request = wire.decode_params(kind, ask.params)
        result = self._operations.handle(request, self.peer)
        if isinstance(result, Encoded):
            self._write(wire.answer_encoded(ask.msgid, result.data))
            return
        if isinstance(result, Commit):
            self._replies += 1
            try:
                self._operations.store.submit(result.txn, _Reply(self, ask.msgid, result.shape))
            except BaseException:
                self._replies -= 1
                raise
            return
        if kind is Hello:
            self._greeted = True
            if self._hello_timer is not None:
                self._hello_timer.cancel()
        if isinstance(result, Coroutine):
            result = begin(result)
        if isinstance(result, Coroutine | asyncio.Future):
            task = self._loop.create_task(self._answer(ask.msgid, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._write(wire.answer(ask.msgid, result))

    def _expect_room(self) -> None:
        """Raise `Busy` unless this connection may have another answer under way."""
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        if unsent > CONNECTION_OUT_BYTES_MAX:
            self._transport.pause_reading()  # until what is unsent has gone: even refusals take room
            raise Busy("this connection does not read its answers", retry_after_s=_BUSY_S, unsent_bytes=unsent)
        if len(self._tasks) + self._replies >= CONNECTION_CALLS_MAX:
            raise Busy(
                f"this connection has {CONNECTION_CALLS_MAX} calls under way",
                retry_after_s=_BUSY_S,
                limit="CONNECTION_CALLS_MAX",
                allowed=CONNECTION_CALLS_MAX,
            )

    async def _answer(self, msgid: int, result: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
        try:
            answer = wire.answer(msgid, await result)
        except HomeportError as error:
            answer = wire.answer_error(msgid, error)
        except Exception:  # noqa: BLE001 - a defect in one call must not take the connection's others with it
            answer = _defect(msgid)
        self._write(answer)

    def committed(self, msgid: int, shape: Callable[[TxnResult], object], result: TxnResult) -> None:
        """A transaction that a call asked for is done."""
        self._replies -= 1
        try:
            self._write(wire.answer(msgid, shape(result)))
        except HomeportError as error:
            self._write(wire.answer_error(msgid, error))

    def not_committed(self, msgid: int, error: HomeportError) -> None:
        """A transaction that a call asked for failed."""
        self._replies -= 1
        self._write(wire.answer_error(msgid, error))

    # --- what goes out ------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        return (
            not self._events_wait
            and self._unflushed_bytes < _EVENTS_BYTES
            and not self._refused
            and self._transport is not None
        )

    def send(self, watch: int, outgoing: Outgoing) -> None:
        self._unflushed_bytes += len(outgoing.encoded)
        self._write(wire.tell_encoded(outgoing.method, watch, outgoing.encoded))

    def wake(self) -> None:
        if not self._wake_scheduled:
            self._wake_scheduled = True
            self._loop.call_soon(self._flush_peer)

    def _flush_peer(self) -> None:
        self._wake_scheduled = False
        if self._transport is not None:
            self.peer.flush(self._operations.catalogue)

    def _write(self, frame: bytes) -> None:
        if self._refused:
            return
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()
        if self._unflushed_bytes >= _EVENTS_BYTES:
            self.wake()  # events that found no room within one turn of the loop may find it now
        self._unflushed_bytes = 0

    # --- the end ------------------------------------------------------------------------------------------------

    def go_away(self, reason: str) -> None:
        """Say that this registry is going, and close once that is sent."""
        if self._transport is not None and self._refused:
            self._transport.close()
        elif self._transport is not None:
            self._out.append(b"\x93\x02" + wire.encode("goaway") + wire.encode([reason]))
            self._flush()
            self._transport.close()

    def _refuse(self, error: HomeportError) -> None:
        """Say what was wrong with the connection itself, and end it: the stream cannot be trusted any more.

        What the client is still sending is read and thrown away for a moment, because closing on unread bytes would
        reset the connection, and the reason would be lost with it.
        """
        if self._transport is not None and not self._refused:
            self._refused = True
            self._out.append(b"\x93\x02" + wire.encode("error") + b"\x91" + wire.encode(to_wire(error)))
            self._flush()
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._linger_timer = self._loop.call_later(_LINGER_S, self._transport.close)

    def _no_hello(self) -> None:
        self._refuse(ProtocolError(f"no hello within {_HELLO_S:.0f} s"))


class _Reply:
    """Turns a transaction's outcome into the answer to a call, without a future or a task."""

    __slots__ = ("_connection", "_msgid", "_shape")

    def __init__(self, connection: RpcConnection, msgid: int, shape: Callable[[TxnResult], object]) -> None:
        self._connection = connection
        self._msgid = msgid
        self._shape = shape

    def done(self) -> bool:
        return False

    def set_result(self, result: TxnResult, /) -> None:
        self._connection.committed(self._msgid, self._shape, result)

    def set_exception(self, error: HomeportError, /) -> None:
        self._connection.not_committed(self._msgid, error)


def _defect(msgid: int) -> bytes:
    """The answer to a call that raised what it should not; its traceback goes to the log."""
    _log.exception("a call failed by a defect of the registry")
    return wire.answer_error(msgid, Internal("the registry failed; its log says more"))


def begin(call: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine up to where it first waits; return its result, or a coroutine of the rest.

    So calls take effect in the order in which they arrive, and those that need not wait need no task. Exceptions
    before the first wait are raised here.
    """
    try:
        waits_for = call.send(None)
    except StopIteration as stop:
        return stop.value
    return _resume(call, waits_for)


async def _resume(call: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    return await _rest(call, waits_for)


@coroutine
def _rest(call: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    while True:
        error: BaseException | None = None
        sent = None
        try:
            sent = yield waits_for
        except BaseException as thrown:  # noqa: BLE001 - the coroutine's to handle, cancellation too
            error = thrown
        try:
            waits_for = call.send(sent) if error is None else call.throw(error)
        except StopIteration as stop:
            return stop.value


def _remove_stale_socket(path: str) -> None:
    """A socket left by a process that was killed would keep its successor from binding."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
