"""The MessagePack-RPC front, over TCP and Unix sockets: docs/rpc.md is its contract.

One `asyncio.Protocol` per connection. What one read brings is decided at once, in order, and answered in one write;
only what must wait for the store becomes a task. A connection that does not read is given no more events (they wait in
their bounded places), then no more answers but `Busy`, then is not read from; nobody else notices.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, cast

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import (
    Busy,
    HomeportError,
    Internal,
    ProtocolError,
    UnknownMethod,
    to_wire,
)
from homeport.client.core.messages import NOTICES, Hello, Ping, Renew
from homeport.registry.core.limits import (
    CONNECTION_CALLS_MAX,
    CONNECTION_OUT_BYTES_MAX,
    CONNECTIONS_MAX,
    LISTEN_BACKLOG,
)
from homeport.registry.core.txn import TxnResult
from homeport.registry.operations import Operations
from homeport.registry.peers import Outgoing, Peer
from homeport.registry.results import Commit, Encoded

_log = logging.getLogger("homeport.registry.rpc")

_HELLO_S: Final = 10.0  # to say hello in; a connection that says nothing costs a file descriptor
_EVENTS_BYTES: Final = 1024 * 1024  # unsent bytes at which events wait: a sixteenth of what ends answers
_LINGER_S: Final = 1.0  # how long a refused client may take to read why
_ECHO: Final = 100  # characters of what a client sent that an error repeats
# Seconds and tries after which a silent peer is asked whether it lives, and milliseconds for what it has not taken.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
_ALWAYS: Final = (Renew.method, Ping.method)  # answered however busy a connection is: lives hang on them
_BUSY_S: Final = 0.5  # when a connection that was told Busy may come back


class RpcFront:
    """Serves the operations to connections on any number of listeners."""

    def __init__(self, operations: Operations, peer_lost: Callable[[Peer], None]) -> None:
        self._operations = operations
        self._peer_lost = peer_lost
        self.table = operations.table()
        self._servers: list[asyncio.Server] = []
        self._sockets: list[tuple[str, int | None]] = []  # Unix sockets, with the file that is ours
        self.connections: dict[RpcConnection, None] = {}

    async def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: a free one) or "unix:/path" and return the actual address.

        Raises:
            OSError: the address cannot be bound, or another process listens there.
        """
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            await _make_way(path)
            self._servers.append(await loop.create_unix_server(self._connection, path, backlog=LISTEN_BACKLOG))
            self._sockets.append((path, _inode(path)))
            return address
        host, _, port = address.rpartition(":")
        bare = host.strip("[]") or None
        server = await loop.create_server(self._connection, bare, int(port), backlog=LISTEN_BACKLOG)
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
        for path, inode in self._sockets:
            if inode is not None and _inode(path) == inode:  # else it is another's by now
                os.unlink(path)
        self._servers.clear()
        self._sockets.clear()

    def dismiss(self, reason: str) -> None:
        """Tell every connection to go elsewhere, and go on listening."""
        for connection in tuple(self.connections):
            connection.go_away(reason)

    def opened(self, connection: RpcConnection) -> bool:
        """Count a connection in; False if there are too many."""
        self.connections[connection] = None
        return len(self.connections) <= CONNECTIONS_MAX

    def lost(self, connection: RpcConnection) -> None:
        self.connections.pop(connection, None)
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
        self._out_bytes = 0  # of _out
        self._flushing = False  # a flush is scheduled, or a read is being worked on and will flush
        self._greeted = False
        self._refused = False
        self._ended = False  # the client will ask no more, and is still read to
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
        keep_watch_over(transport)
        self._hello_timer = self._loop.call_later(_HELLO_S, self._no_hello)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._flushing = True
        try:
            for frame in self._splitter.feed(data):
                message = wire.decode_message(frame)
                if self._greeted and type(message) is wire.Ask:
                    self._ask(message)
                elif not self._message(message):
                    break
        except HomeportError as error:
            self._refuse(error)
        finally:
            self._flushing = False
            self._flush()

    def eof_received(self) -> bool:
        self._ended = True
        self._flush()
        return not self._refused and bool(self._tasks or self._replies)  # stay for what is under way, then close

    def pause_writing(self) -> None:
        self._events_wait = True

    def resume_writing(self) -> None:
        self._events_wait = False
        if self._transport is not None:
            self._transport.resume_reading()
            self._flush_peer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._splitter.close()
        for timer in (self._hello_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._front.lost(self)

    # --- what comes in ------------------------------------------------------------------------------------------

    def _message(self, message: wire.Ask | wire.Answer | wire.Tell) -> bool:
        """Act on a hello, or on what is no call; False if that was the connection's last."""
        if isinstance(message, wire.Ask):
            return self._greet(message)
        if isinstance(message, wire.Tell):
            kind = NOTICES.get(message.method)
            if kind is not None and self._greeted:  # unknown ones are from a newer release: not ours to mind
                self._operations.notice(wire.decode_params(kind, message.params), self.peer)
        else:
            raise ProtocolError("this side asks nothing, so it takes no answers")
        return True

    def _ask(self, ask: wire.Ask) -> None:
        msgid = ask.msgid
        try:
            found = self._front.table.get(ask.method)
            if found is None:
                raise UnknownMethod(f"there is no method {ask.method[:_ECHO]!r}", allowed=sorted(self._front.table))
            if (self._events_wait or self._replies or self._tasks) and ask.method not in _ALWAYS:
                self._expect_room()
            decode, handler = found
            try:
                (request,) = decode(ask.params)
            except wire.UNREADABLE as error:
                raise wire.bad_params(error) from None
            result = handler(request, self.peer)
            if isinstance(result, msgspec.Struct):
                self._write(wire.answer(msgid, result))
            elif isinstance(result, Encoded):
                self._write(wire.answer_encoded(msgid, result.data))
            elif isinstance(result, Commit):
                self._submit(msgid, result)
            else:
                self._await(msgid, begin(result) if isinstance(result, Coroutine) else result)
        except HomeportError as error:
            self._write(wire.answer_error(msgid, error))
        except Exception:  # noqa: BLE001 - a defect in one call must not take the connection's others with it
            self._write(_defect(msgid))

    def _submit(self, msgid: int, commit: Commit[Any]) -> None:
        self._replies += 1
        try:
            self._operations.store.submit(commit.txn, _Reply(self, msgid, commit.shape), ops_max=commit.ops_max)
        except BaseException:
            self._replies -= 1
            raise

    def _await(self, msgid: int, result: Any) -> None:
        if not isinstance(result, Coroutine | asyncio.Future):
            self._write(wire.answer(msgid, result))
            return
        task = self._loop.create_task(self._answer(msgid, result))
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._close_if_done()

    def _greet(self, ask: wire.Ask) -> bool:
        """The first call must be a hello that the registry accepts; after any other the connection ends (False)."""
        try:
            if ask.method != Hello.method:
                raise ProtocolError("the first call of a connection must be hello")
            welcome = self._operations.hello(wire.decode_params(Hello, ask.params), self.peer)
        except HomeportError as error:
            self._write(wire.answer_error(ask.msgid, error))
            self._refuse(error)
            return False
        self._greeted = True
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._write(wire.answer(ask.msgid, welcome))
        return True

    def _expect_room(self) -> None:
        """Raise `Busy` if this connection does not read its answers, or has as many calls under way as it may."""
        if self._events_wait and self._transport is not None:
            unsent = self._transport.get_write_buffer_size() + self._out_bytes
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
        if self._ended:
            self._close_if_done()

    def not_committed(self, msgid: int, error: HomeportError) -> None:
        """A transaction that a call asked for failed."""
        self._replies -= 1
        self._write(wire.answer_error(msgid, error))
        if self._ended:
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._ended and not self._tasks and not self._replies and self._transport is not None:
            self._flush()
            self._transport.close()

    # --- what goes out ------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        return (
            not self._events_wait
            and self._out_bytes < _EVENTS_BYTES
            and not self._refused
            and self._transport is not None
        )

    def send(self, watch: int, outgoing: Outgoing) -> None:
        self._write(outgoing.head + wire.encode(watch) + outgoing.encoded)

    def deliver(self, watch: int, outgoing: Outgoing) -> bool:
        if self._events_wait or self._out_bytes >= _EVENTS_BYTES or self._refused or self._transport is None:
            return False
        self._write(outgoing.head + wire.encode(watch) + outgoing.encoded)
        return True

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
        self._out_bytes += len(frame)
        if self._out_bytes >= _EVENTS_BYTES:
            self._flush()  # so that the transport counts it, and says when it is too much
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0

    # --- the end ------------------------------------------------------------------------------------------------

    def go_away(self, reason: str) -> None:
        """Say that this registry is going, and close once that is sent."""
        if self._transport is not None and self._refused:
            self._transport.abort()
        elif self._transport is not None:
            self._out.append(b"\x93\x02" + wire.encode("goaway") + wire.encode([reason]))
            self._flush()
            self._transport.close()
            # One that does not read must not keep the registry from stopping.
            self._linger_timer = self._loop.call_later(_LINGER_S, self._transport.abort)

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
            self._linger_timer = self._loop.call_later(_LINGER_S, self._transport.abort)

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


def keep_watch_over(transport: asyncio.Transport) -> None:
    """Have the system notice a peer that vanished without a word: a drain waits for its followers."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


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


async def _make_way(path: str) -> None:
    """Remove the socket that a killed process left behind; one that somebody listens on is theirs."""
    if _inode(path) is None:
        return
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        os.unlink(path)
        return
    writer.close()
    raise OSError(errno.EADDRINUSE, f"another process listens on {path}")


def _inode(path: str) -> int | None:
    """Which file a socket's path leads to; None if there is no socket."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None
