"""The memory network: addresses, connecting, and everything that can go wrong between two hosts.

A host has its own address and a loopback of its own: `127.0.0.1` and `localhost` always mean the host that says them,
so a listener on loopback is reached from the same host alone. Every ordered pair of hosts is a link with a latency,
drawn anew for every segment from the seeded generator, and a share of lost datagrams.

Faults last until `heal`, and differ as they do in life:

* `cut` is loud: connections are reset at once and new ones refused.
* `partition` is silent: bytes are held, connects hang and in the end time out, datagrams are gone.
* `stall` of a connection holds its bytes; of a host, it stops the host's code while its kernel goes on (SIGSTOP).
* `crash` ends a host's code for good and closes its sockets (SIGKILL); `host()` then starts it afresh.
* `refuse` refuses new connections to a port; `reset_all` resets the established ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homeport.mesh.testing import addresses
from homeport.mesh.testing.datagrams import MemoryDatagrams
from homeport.mesh.testing.errors import NotVirtualError
from homeport.mesh.testing.hosts import HOME, HOST, Host
from homeport.mesh.testing.listeners import Listener, MemoryServer
from homeport.mesh.testing.pairs import ANY, Pairs
from homeport.mesh.testing.streams import MemoryTransport

if TYPE_CHECKING:
    from homeport.mesh.testing.virtual import VirtualLoop

LATENCY_S = (0.0001, 0.001)
"""One way, between any two hosts: a data centre's."""

SYN_RETRIES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Waits between connection attempts that nobody answers; Linux's default, 127 s in all."""

PORT_FIRST = 32_768
"""Where free ports are handed out from, one after the other; Linux's ephemeral range."""

PORT_LAST = 60_999
"""The end of that range."""

BACKLOG = 100
"""Connections established but not yet accepted by the process; asyncio's default."""

_WITHOUT_MEANING = frozenset(
    [
        "family",
        "proto",
        "flags",
        "reuse_address",
        "keep_alive",
        "happy_eyeballs_delay",
        "interleave",
        "all_errors",
        "cleanup_socket",
    ]
)
"""Options of asyncio that cannot make a difference here: one address per name, no TIME_WAIT, no socket files."""


@dataclass(slots=True)
class Link:
    """One direction between two hosts.

    Args:
        latency_s: bounds of the one-way latency.
        loss: share of datagrams that are lost, 0 to 1; streams lose nothing.
    """

    latency_s: tuple[float, float] = LATENCY_S
    loss: float = 0.0


class Network:
    """All hosts, connections and faults of one virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.home: Host = Host(HOME)
        self.kernel: contextvars.Context = contextvars.Context()  # belongs to no host, so it is never frozen
        self.streams: dict[MemoryTransport, None] = {}  # both ends of each, while there is anything left to do
        self._hosts = {HOME: self.home}
        self._names = {"localhost": HOME}
        self._links: dict[tuple[str, str], Link] = {}
        self._listeners: dict[tuple[str, Any, int], Listener] = {}  # by host, ip, port; or host, path, 0
        self._datagrams: dict[tuple[str, str, int], MemoryDatagrams] = {}
        self._port = PORT_FIRST
        self._cuts = Pairs()
        self._partitions = Pairs()
        self._refused_ports: dict[int, None] = {}

    # --- hosts and names

    @contextlib.contextmanager
    def host(self, address: str) -> Iterator[Host]:
        """Run what is inside, and all tasks and servers made there, on the host of this address.

        Raises:
            ValueError: not a literal IP address, or another's loopback.
        """
        if addresses.is_loopback(address) and address != HOME:
            raise ValueError(f"{address} is a loopback address, which every host has for itself")
        host = self._hosts.get(address)
        if host is None or host.crashed:
            host = self._hosts[address] = Host(address)
        token = HOST.set(host)
        try:
            yield host
        finally:
            HOST.reset(token)

    def here(self) -> Host:
        """The host that the running code belongs to."""
        return HOST.get() or self.home

    def host_at(self, address: str) -> Host:
        """The host of this address, in its present life.

        Raises:
            ValueError: no code has ever run there.
        """
        return self._known(address)

    def frozen(self) -> list[str]:
        """Addresses of the hosts that stand still."""
        return [host.address for host in self._hosts.values() if host.frozen]

    def name(self, name: str, address: str) -> None:
        """Let a name resolve to this address, on every host."""
        self._names[name] = str(ipaddress.ip_address(address))

    def link(self, a: str, b: str) -> Link:
        """The link from `a` to `b`; change its fields to change it, also under open connections."""
        return self._links.setdefault((a, b), Link())

    def resolve(self, host: Any, port: Any, **hints: int) -> list[tuple[Any, ...]]:
        """What `getaddrinfo` answers: one address, of hint `family` if given; hints `type`, `proto`, `flags` as usual.

        Raises:
            socket.gaierror: neither a literal address nor a name given to `name`, or of another family.
        """
        if isinstance(host, bytes):
            host = host.decode()
        if host in (None, ""):
            host = "0.0.0.0" if hints.get("flags", 0) & socket.AI_PASSIVE else HOME
        try:
            address = str(ipaddress.ip_address(self._names.get(host, host)))
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {host!r}") from None
        if hints.get("family", 0) not in (0, addresses.family(address)):
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} has no address of that family")
        kind = socket.SocketKind(hints.get("type", 0) or socket.SOCK_STREAM)
        return [
            (addresses.family(address), kind, hints.get("proto", 0), "", addresses.sockname(address, int(port or 0)))
        ]

    def _address(self, host: Any, port: Any) -> tuple[str, int]:
        ip, number = self.resolve(host, port)[0][4][:2]
        return ip, number

    # --- streams

    async def connect(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: Any,
        port: Any,
        *,
        local_addr: Any = None,
        **options: Any,
    ) -> tuple[MemoryTransport, asyncio.BaseProtocol]:
        """`loop.create_connection`."""
        _check_options(options)
        if host is None or port is None:
            raise ValueError("host and port was not specified and no sock specified")
        here = self.here()
        ip, number = self._address(host, port)
        there = self._owner(here, ip)
        source = self._source(here, ip) if local_addr is None else self._address(*local_addr)[0]
        sockname = addresses.sockname(source, (local_addr[1] if local_addr else 0) or self._free_port())
        peername = addresses.sockname(ip, number)
        if there not in self._hosts:
            raise OSError(errno.EHOSTUNREACH, f"No route to host: no code runs on {there}")
        return await self._connect(
            factory, here, there, lambda: self._find(there, ip, number), sockname, peername, peername
        )

    async def connect_unix(
        self, factory: Callable[[], asyncio.BaseProtocol], path: Any, **options: Any
    ) -> tuple[MemoryTransport, asyncio.BaseProtocol]:
        """`loop.create_unix_connection`."""
        _check_options(options)
        if path is None:
            raise ValueError("no path and sock were specified")
        here, key = self.here(), os.fspath(path)
        if (here.address, key, 0) not in self._listeners:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", key)
        find = lambda: self._listeners.get((here.address, key, 0))  # noqa: E731
        return await self._connect(factory, here, here.address, find, "", key, key)

    async def _connect(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        here: Host,
        there: str,
        find: Callable[[], Listener | None],
        sockname: Any,
        peername: Any,
        spoken: Any,
    ) -> tuple[MemoryTransport, asyncio.BaseProtocol]:
        answer: asyncio.Future[MemoryTransport] = self.loop.create_future()
        context = contextvars.copy_context()
        link, back = self.link(here.address, there), self.link(there, here.address)

        def after(delay_s: float, callback: Callable[..., None], *args: Any) -> None:
            self.loop.arrive_at(self.loop.time() + delay_s, callback, *args)

        def ask(attempt: int) -> None:
            listener = find()
            if answer.done():
                return
            lost = self.is_blocked(here.address, there) or self.is_blocked(there, here.address)
            if lost or (listener is not None and listener.server is not None and not listener.is_open()):
                if attempt < len(SYN_RETRIES_S):
                    after(SYN_RETRIES_S[attempt], ask, attempt + 1)
                else:
                    answer.set_exception(TimeoutError(errno.ETIMEDOUT, f"Connect call timed out {spoken}"))
                return
            latency_s = self.loop.draw_delay(*back.latency_s)
            if listener is None or listener.server is None or self._is_refused(here.address, there, peername):
                refusal = ConnectionRefusedError(errno.ECONNREFUSED, f"Connect call failed {spoken}")
                after(latency_s, refuse, refusal)
                return
            near = MemoryTransport(self, here, link, context, sockname, peername)
            far = MemoryTransport(self, listener.host, back, listener.server.context.copy(), peername, sockname)
            near.join(far)
            listener.enqueue(far)
            after(latency_s, accept, near)

        def refuse(error: OSError) -> None:
            if not answer.done():
                answer.set_exception(error)

        def accept(near: MemoryTransport) -> None:
            if answer.done() or here.crashed:
                near.kill()
            else:
                answer.set_result(near)

        after(self.loop.draw_delay(*link.latency_s), ask, 0)
        try:
            transport = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().kill()
            raise
        try:
            protocol = factory()
            opened = transport.open(protocol)
        except BaseException:
            transport.kill()
            raise
        try:
            await opened
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    async def listen(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: Any,
        port: Any,
        *,
        sock: Listener | None = None,
        backlog: int = BACKLOG,
        start_serving: bool = True,
        **options: Any,
    ) -> MemoryServer:
        """`loop.create_server`; a `sock` is one that `bind` gave."""
        _check_options(options)
        if sock is not None:
            if host is not None or port is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            sock.backlog = backlog
            return self._serve(factory, [sock], start_serving)
        hosts = ["0.0.0.0", "::"] if host in (None, "") else [host] if isinstance(host, str) else list(host)
        listeners: list[Listener] = []
        try:
            for each in hosts:
                ip, number = self._address(each, port)
                if host in (None, "") and listeners:
                    number = listeners[0].getsockname()[1]  # one port for both families
                listeners.append(self.bind(ip, number))
                listeners[-1].backlog = backlog
        except OSError:
            for listener in listeners:
                self._unbind(listener)
            raise
        return self._serve(factory, listeners, start_serving)

    def bind(self, host: str, port: int = 0) -> Listener:
        """A bound address for `create_server(sock=...)`, as a socket is in real time. It refuses until it is served."""
        here = self.here()
        ip, number = self._address(host, port)
        number = self._bindable(here, ip, number, self._listeners)
        listener = Listener(self, here, addresses.sockname(ip, number), addresses.family(ip), BACKLOG)
        self._listeners[here.address, ip, number] = listener
        return listener

    async def listen_unix(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        path: Any,
        *,
        backlog: int = BACKLOG,
        start_serving: bool = True,
        **options: Any,
    ) -> MemoryServer:
        """`loop.create_unix_server`: a path is a name in memory, no file is made; the last to bind it has it."""
        _check_options(options)
        if path is None:
            raise ValueError("path was not specified, and no sock specified")
        here, key = self.here(), os.fspath(path)
        listener = Listener(self, here, key, socket.AF_UNIX, backlog)
        self._listeners[here.address, key, 0] = listener
        return self._serve(factory, [listener], start_serving)

    def _serve(
        self, factory: Callable[[], asyncio.BaseProtocol], listeners: list[Listener], start_serving: bool
    ) -> MemoryServer:
        server = MemoryServer(self, factory, listeners, self._unbind)
        if start_serving:
            server.listen()
        return server

    def _unbind(self, listener: Listener) -> None:
        name = listener.getsockname()
        key = (listener.host.address, name, 0) if isinstance(name, str | bytes) else (listener.host.address, *name[:2])
        if self._listeners.get(key) is listener:
            del self._listeners[key]

    # --- datagrams

    async def open_datagrams(
        self, factory: Callable[[], asyncio.DatagramProtocol], local_addr: Any, remote_addr: Any, **options: Any
    ) -> tuple[MemoryDatagrams, asyncio.DatagramProtocol]:
        """`loop.create_datagram_endpoint`."""
        _check_options(options)
        here = self.here()
        remote = None if remote_addr is None else addresses.sockname(*self._address(*remote_addr))
        if local_addr is not None:
            ip, port = self._address(*local_addr)
        else:
            ip, port = ("0.0.0.0" if remote is None else self._source(here, remote[0])), 0
        port = self._bindable(here, ip, port, self._datagrams)
        protocol = factory()
        endpoint = MemoryDatagrams(self, here, protocol, addresses.sockname(ip, port), remote)
        self._datagrams[here.address, ip, port] = endpoint
        await endpoint.open()
        return endpoint, protocol

    def carry(self, sender: MemoryDatagrams, data: bytes, ip: str, port: int) -> None:
        """Bring a datagram to whoever is bound there, or lose it."""
        here, there = sender.host.address, self._owner(sender.host, ip)
        link = self.link(here, there)
        source = sender.sockname
        if addresses.is_wildcard(source[0]):
            source = addresses.sockname(self._source(sender.host, ip), source[1])
        latency_s, chance = self.loop.draw_delay(*link.latency_s), self.loop.rng.random()

        def arrive() -> None:
            if chance < link.loss or self.is_blocked(here, there) or self._is_cut(here, there):
                return
            receiver = self._datagrams.get((there, ip, port)) or self._datagrams.get(
                (there, addresses.wildcard(ip), port)
            )
            if receiver is not None:
                receiver.receive(data, source)
            else:
                sender.refused()

        self.loop.arrive_at(self.loop.time() + latency_s, arrive)

    def unbind_datagrams(self, endpoint: MemoryDatagrams) -> None:
        """An endpoint was closed."""
        self._datagrams.pop((endpoint.host.address, *endpoint.sockname[:2]), None)

    # --- addresses

    def _owner(self, here: Host, ip: str) -> str:
        return here.address if addresses.is_loopback(ip) or addresses.is_wildcard(ip) else ip

    def _source(self, here: Host, ip: str) -> str:
        return ip if addresses.is_loopback(ip) else here.address

    def _find(self, host: str, ip: str, port: int) -> Listener | None:
        return self._listeners.get((host, ip, port)) or self._listeners.get((host, addresses.wildcard(ip), port))

    def _bindable(self, here: Host, ip: str, port: int, taken: Mapping[tuple[str, Any, int], object]) -> int:
        if not (ip == here.address or addresses.is_loopback(ip) or addresses.is_wildcard(ip)):
            raise OSError(errno.EADDRNOTAVAIL, f"{here.address} cannot bind {ip}: the address of another host")
        if port == 0:
            return self._free_port()
        for host, other, number in taken:
            overlaps = other == ip or (addresses.is_wildcard(other) or addresses.is_wildcard(ip))
            if (host, number) == (here.address, port) and addresses.family(other) == addresses.family(ip) and overlaps:
                raise OSError(errno.EADDRINUSE, f"{here.address} cannot bind {(ip, port)}: address already in use")
        return port

    def _free_port(self) -> int:
        taken = {number for _, _, number in [*self._listeners, *self._datagrams]}
        while True:
            self._port = self._port + 1 if self._port < PORT_LAST else PORT_FIRST
            if self._port not in taken:
                return self._port

    # --- faults

    def is_blocked(self, a: str, b: str) -> bool:
        """Whether nothing gets from `a` to `b`."""
        return self._partitions.holds(a, b)

    def _is_cut(self, a: str, b: str) -> bool:
        return self._cuts.holds(a, b)

    def _is_refused(self, a: str, b: str, name: Any) -> bool:
        return self._is_cut(a, b) or (isinstance(name, tuple) and name[1] in self._refused_ports)

    def cut(self, a: str, b: str = ANY) -> None:
        """Reset the connections between two hosts and refuse new ones, until healed."""
        self._cuts.add(a, b)
        self._cuts.add(b, a)
        self._reset(lambda stream: self._is_cut(stream.host.address, stream.peer.host.address))

    def partition(self, a: str, b: str = ANY, *, one_way: bool = False) -> None:
        """Hold everything between two hosts (or only from `a` to `b`), until healed."""
        self._partitions.add(a, b)
        if not one_way:
            self._partitions.add(b, a)

    def refuse(self, port: int) -> None:
        """Refuse new connections to this port on all hosts, until healed."""
        self._refused_ports[port] = None

    def reset_all(self, port: int | None = None) -> None:
        """Reset all connections, or those to a server on this port."""
        self._reset(lambda stream: port is None or port in stream.ports())

    def stall(self, what: str | asyncio.BaseTransport) -> None:
        """Hold the bytes of one connection, both ways; or stop all code of the host of this address. Until healed.

        Raises:
            ValueError: the host is the caller's own or the home host: nobody would be left to heal it.
        """
        if isinstance(what, str):
            host = self._known(what)
            if host in (self.home, self.here()):
                raise ValueError(f"{what} would never wake up again; loop.stall(seconds) stops everything for a while")
            self.loop.freeze(host)
        elif isinstance(what, MemoryTransport):
            what.stalled = what.peer.stalled = True
        else:
            raise TypeError(f"neither the address of a host nor a stream in memory: {what!r}")

    def crash(self, address: str) -> None:
        """Kill all code of a host: it never runs again, and its kernel closes its sockets.

        Raises:
            ValueError: the host is the caller's own or the home host.
        """
        host = self._known(address)
        if host in (self.home, self.here()):
            raise ValueError(f"{address} runs the caller; only another host can be crashed")
        self.loop.freeze(host)
        host.crashed = True
        for listener in [listener for listener in self._listeners.values() if listener.host is host]:
            self._unbind(listener)
            listener.close()
        for stream in [stream for stream in self.streams if stream.host is host]:
            stream.kill()
        for endpoint in [endpoint for endpoint in self._datagrams.values() if endpoint.host is host]:
            endpoint.kill()

    def heal(self, a: str | int | asyncio.BaseTransport | None = None, b: str | None = None) -> None:
        """End faults: all of them, those of a host, those between two hosts, of a port, or of one connection.

        What was held arrives at once. A crashed host stays dead.
        """
        if isinstance(a, int):
            self._refused_ports.pop(a, None)
            return
        if isinstance(a, MemoryTransport):
            a.stalled = a.peer.stalled = False
        elif a is None:
            self._refused_ports.clear()
            for stream in self.streams:
                stream.stalled = False
        if a is None or isinstance(a, str):
            self._cuts.remove(a, b)
            self._partitions.remove(a, b)
        for host in self._hosts.values():
            if not host.crashed and (a is None or (a == host.address and b is None)):
                self.loop.thaw(host)
        for stream in list(self.streams):
            stream.deliver()

    def close(self) -> None:
        """Close every socket of every host without a word to its protocol: the end of the world."""
        for stream in list(self.streams):
            stream.kill()
        for endpoint in list(self._datagrams.values()):
            endpoint.kill()

    def _known(self, address: str) -> Host:
        if address not in self._hosts:
            raise ValueError(f"no code runs on {address}; the hosts are {', '.join(self._hosts)}")
        return self._hosts[address]

    def _reset(self, chosen: Callable[[MemoryTransport], bool]) -> None:
        for stream in [stream for stream in self.streams if chosen(stream)]:
            stream.be_reset()


def _check_options(options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value and option not in _WITHOUT_MEANING:
            raise NotVirtualError(f"the memory network knows no {option}={value!r}; test it in real time")
