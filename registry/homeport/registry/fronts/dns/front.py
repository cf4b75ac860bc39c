"""The DNS front's shell: datagrams, connections and their limits; what is answered is the responder's to say.

A datagram is read, answered and forgotten. A connection may ask for as much as it likes without waiting (RFC 7766), is
read no further while its answers wait to be sent, and is cut off when it has asked nothing whole for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, cast

import dns.message
import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.model import ServiceEvent
from homeport.client.randomness import own_rng
from homeport.registry.core.limits import LISTEN_BACKLOG
from homeport.registry.fronts.dns import question
from homeport.registry.fronts.dns.directory import Address, Directory, address_of
from homeport.registry.fronts.dns.question import Query
from homeport.registry.fronts.dns.recursion import Recursion, passed_on
from homeport.registry.fronts.dns.responder import LOOPBACK_UDP_BYTES_MAX, TCP_BYTES_MAX, Alias, Forward, Responder
from homeport.registry.fronts.dns.settings import DnsSettings
from homeport.registry.operations import Operations

CONNECTIONS_MAX: Final = 1024  # resolvers come by UDP, and by TCP for what was cut; a file descriptor each
CONNECTIONS_PER_ADDRESS_MAX: Final = 128  # so that one client cannot have them all
IDLE_S: Final = 10.0  # RFC 7766 asks for some seconds; from the last whole question
FORWARDED_PER_CONNECTION_MAX: Final = 100  # questions of one connection that recursors work on
FORWARDED_MAX: Final = 4096  # questions that wait for others, of all clients; equal ones are asked once
ALIASES_MAX: Final = 8  # from name to name within the domains; longer chains are loops, or ought to be shorter
UNSENT_BYTES_MAX: Final = 256 * 1024  # of one connection, or one socket: four of the largest answers
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")  # how addresses of loopback begin; only one begins with ::1
_PORT_TRIES: Final = 20  # to find a free port that is free for UDP and TCP alike


class DnsNumbers:
    """What the front counts."""

    __slots__ = ("answers", "connections", "connections_cut", "connections_refused", "dropped", "forwarded")

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()  # by transport and code
        self.connections = 0
        self.connections_cut = 0  # idle, or too slow
        self.connections_refused = 0
        self.dropped = 0  # not to be answered, or with no room to send
        self.forwarded = 0


class DnsFront:
    """Serves DNS on any number of addresses.

    Args:
        operations: whose catalogue and prepared queries are asked; `follow` must be told of every change.
        idle_s: how long a connection may ask nothing.
    """

    def __init__(
        self,
        operations: Operations,
        settings: DnsSettings,
        *,
        rng: Rng | None = None,
        connections_max: int = CONNECTIONS_MAX,
        connections_per_address_max: int = CONNECTIONS_PER_ADDRESS_MAX,
        idle_s: float = IDLE_S,
    ) -> None:
        self._operations = operations
        self._settings = settings
        self._rng = rng or own_rng()
        self._connections_max = connections_max
        self._connections_per_address_max = connections_per_address_max
        self._idle_s = idle_s
        self.numbers = DnsNumbers()
        self._connections: dict[DnsConnection, None] = {}
        self._per_address: Counter[str] = Counter()
        self._directory: Directory | None = None
        self._at: list[Address] = []
        self.responder: Responder  # made with the directory, before anything can be asked
        self._recursion = Recursion(settings.recursors, self._rng) if settings.recursors else None
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, address: str) -> str:
        """Listen on "host:port" for UDP and TCP (port 0: one that is free for both) and return the actual address.

        Raises:
            OSError: the address cannot be bound.
        """
        host, _, port = address.rpartition(":")
        bare = host.strip("[]")
        if self._directory is None:
            catalogue = self._operations.catalogue
            self._directory = Directory(catalogue)
            self.responder = Responder(
                catalogue,
                self._directory,
                self._operations.queries,
                self._settings,
                self._rng,
                node=self._operations.node,
                at=self._at,
            )
            self._timer = asyncio.get_running_loop().call_later(self._idle_s / 4, self._look)
        bound = await self._listen(bare, int(port))
        found = address_of(bare)
        if found is None or found.is_unspecified:
            found = ipaddress.IPv4Address("127.0.0.1")
        if found not in self._at:
            self._at.append(found)
        return f"{host}:{bound}"

    async def _listen(self, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        for left in reversed(range(_PORT_TRIES if port == 0 else 1)):
            listener = await loop.create_server(lambda: DnsConnection(self), host or None, port, backlog=LISTEN_BACKLOG)
            bound: int = listener.sockets[0].getsockname()[1]
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: DnsDatagrams(self), local_addr=(host or "0.0.0.0", bound)
                )
            except OSError:
                listener.close()
                await listener.wait_closed()
                if not left:
                    raise
                continue
            self._listeners.append(listener)
            self._datagrams.append(transport)
            return bound
        raise AssertionError("the last try raises or returns")

    async def close(self) -> None:
        """Stop listening, give up what is forwarded, and close. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for transport in self._datagrams:
            transport.close()
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._recursion is not None:
            await self._recursion.close()
        for listener in self._listeners:
            await listener.wait_closed()
        self._datagrams.clear()
        self._listeners.clear()

    def follow(self, events: list[ServiceEvent]) -> None:
        """Take in what the catalogue has just taken in."""
        if self._directory is not None:
            self._directory.apply(events)

    # --- connections --------------------------------------------------------------------------------------------

    def opened(self, connection: DnsConnection) -> bool:
        """Count a connection in; False if there are too many."""
        self._connections[connection] = None
        self._per_address[connection.address] += 1
        self.numbers.connections = len(self._connections)
        if (
            len(self._connections) <= self._connections_max
            and self._per_address[connection.address] <= self._connections_per_address_max
        ):
            return True
        self.numbers.connections_refused += 1
        return False

    def closed(self, connection: DnsConnection) -> None:
        if self._connections.pop(connection, 0) is None:
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]
        self.numbers.connections = len(self._connections)

    def _look(self) -> None:
        """Cut off the connections that have asked nothing whole for too long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._connections):
            if not connection.waiting and now - connection.asked_at >= self._idle_s:
                self.numbers.connections_cut += 1
                connection.abort()
        self._timer = loop.call_later(self._idle_s / 4, self._look)

    # --- forwarding ---------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def forwarded(self, forward: Forward, udp_bytes_max: int) -> bytes:
        """What others say, or that they say nothing."""
        query = forward.query
        if len(self._tasks) > FORWARDED_MAX:
            return self.responder.failure(query, question.SERVFAIL)
        aliases: list[Alias] = []
        reply, asked = None, forward
        while asked.alias is not None and len(aliases) < ALIASES_MAX:
            aliases.append(asked.alias)
            about = msgspec.structs.replace(query, labels=asked.alias.labels, wire=_wire_of(asked.alias.labels, query))
            found = self.responder.answer(about, TCP_BYTES_MAX)
            if isinstance(found, bytes):
                reply = dns.message.from_wire(found)
                break
            asked = found
        if reply is None and asked.alias is None and self._recursion is not None:
            self.numbers.forwarded += 1
            reply = await self._recursion.ask(asked.query)
        if reply is not None:
            room = TCP_BYTES_MAX
            if udp_bytes_max != TCP_BYTES_MAX:
                room = min(query.udp_bytes or question.UDP_BYTES_PLAIN, udp_bytes_max)
            recursive = self._recursion is not None
            answer = passed_on(query, reply, aliases, room, self._settings.udp_bytes_max, recursive)
            if answer is not None:
                return answer
        return self.responder.failure(query, question.SERVFAIL)

    def udp_bytes_max(self, host: str) -> int:
        """How large an answer to a host may be, if it can take it."""
        return LOOPBACK_UDP_BYTES_MAX if host.startswith(_LOOPBACK) else self._settings.udp_bytes_max


def _wire_of(labels: tuple[bytes, ...], query: Query) -> bytes:
    """A question about another name."""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0" + query.wire[-4:]


class DnsDatagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, front: DnsFront) -> None:
        self._front = front
        self._transport: asyncio.DatagramTransport | None = None
        self._full = False
        self._answers = front.numbers.answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's are none by inheritance

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._full:  # UDP is lossy, and its askers ask again
            self._front.numbers.dropped += 1
            return
        responder = self._front.responder
        udp_bytes_max = self._front.udp_bytes_max(addr[0])
        answer = responder.quick(data, udp_bytes_max) or responder.respond(data, udp_bytes_max)
        if answer is None:
            self._front.numbers.dropped += 1
        elif isinstance(answer, bytes):
            self._send(answer, addr)
        else:
            self._front.spawn(self._forwarded(answer, udp_bytes_max, addr))

    def error_received(self, _exc: Exception) -> None:
        """An asker that is gone; nothing is kept for it."""

    async def _forwarded(self, forward: Forward, udp_bytes_max: int, addr: Any) -> None:
        self._send(await self._front.forwarded(forward, udp_bytes_max), addr)

    def _send(self, answer: bytes, addr: Any) -> None:
        self._answers["udp", answer[3] & 15] += 1
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # no route back to a forged address
                self._transport.sendto(answer, addr)


class DnsConnection(asyncio.Protocol):
    """One TCP connection: each message comes with its length before it."""

    def __init__(self, front: DnsFront) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._paused = False
        self._reading = True
        self._ended = False  # it asks no more, and is still read to
        self.waiting = 0  # answers that recursors owe it
        self.address = ""
        self.asked_at = 0.0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        peer = self._transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self.asked_at = self._loop.time()
        if not self._front.opened(self):
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._front.closed(self)

    def pause_writing(self) -> None:
        self._paused = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._paused = False
        self._read_or_not()
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        self._ask()

    def eof_received(self) -> bool:
        self._ended = True
        return bool(self.waiting or self._paused)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _ask(self) -> None:
        """Answer all whole messages that are there, as far as there is room for the answers."""
        responder = self._front.responder
        buffer, at = self._buffer, 0
        out: list[bytes] = []
        while not self._paused and self.waiting < FORWARDED_PER_CONNECTION_MAX and len(buffer) - at >= 2:
            end = at + 2 + (buffer[at] << 8) + buffer[at + 1]
            if len(buffer) < end:
                break
            data = buffer[at + 2 : end]
            at = end
            answer = responder.quick(data, TCP_BYTES_MAX) or responder.respond(data, TCP_BYTES_MAX)
            if answer is None:  # not a question: whatever this client speaks, it is not DNS
                self._front.numbers.dropped += 1
                self.close()
                return
            if isinstance(answer, bytes):
                out.append(self._framed(answer))
                if len(out) >= 64:  # so that the transport says when it is too much
                    self._write(out)
            else:
                self.waiting += 1
                self._front.spawn(self._forwarded(answer))
        if at:
            self.asked_at = self._loop.time()
            self._buffer = buffer[at:]
        self._write(out)
        self._read_or_not()
        if self._ended and not self.waiting and not self._paused:
            self.close()

    async def _forwarded(self, forward: Forward) -> None:
        answer = await self._front.forwarded(forward, TCP_BYTES_MAX)
        self.waiting -= 1
        self.asked_at = self._loop.time()
        self._write([self._framed(answer)])
        self._ask()

    def _framed(self, answer: bytes) -> bytes:
        self._front.numbers.answers["tcp", answer[3] & 15] += 1
        return len(answer).to_bytes(2, "big") + answer

    def _write(self, out: list[bytes]) -> None:
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))
        out.clear()

    def _read_or_not(self) -> None:
        """Read on only while there is room for what would be asked."""
        if self._transport is None or self._transport.is_closing() or self._ended:
            return
        reading = not self._paused and self.waiting < FORWARDED_PER_CONNECTION_MAX
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
