"""Connects to a target: looks its name up, tries its addresses in turn, says whether all of them refused.

A lookup is shared by all probes that ask for the same name within a second, and costs a thread once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

P = TypeVar("P", bound=asyncio.Protocol)

NAME_KEPT_S: Final = 1.0  # no longer than the shortest interval that is usual: a moved name is noticed at once
NAMES_MAX: Final = 4096  # then those that are too old are dropped: 1 MB

TLS_ALPN_HTTP2: Final = "h2"


class ConnectFailed(OSError):
    """No address of the target took the connection; `refused`: each of them answered that nobody listens there."""

    def __init__(self, host: str, port: int, cause: OSError, refused: bool) -> None:
        super().__init__(str(cause))
        self.host = host
        self.port = port
        self.cause = cause
        self.refused = refused


class Dialer:
    """Opens connections for probes on one event loop; remembers lookups for a moment, and TLS contexts."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}
        self._contexts: dict[tuple[bool, str], ssl.SSLContext] = {}

    async def dial(
        self, make: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None = None, tls_name: str = ""
    ) -> tuple[asyncio.Transport, P]:
        """Connect to the first address that takes it.

        Raises:
            ConnectFailed: none did; the cause is the first that says more than a refusal.
            ssl.SSLError: one took the connection, and then there was no agreement.
        """
        loop = asyncio.get_running_loop()
        try:
            ipaddress.ip_address(host)
            addresses = [host]
        except ValueError:
            try:
                addresses = await self._look_up(host)
            except OSError as error:
                raise ConnectFailed(host, port, error, False) from error
        options: dict[str, Any] = {} if tls is None else {"ssl": tls, "server_hostname": tls_name or host}
        failure: OSError | None = None
        for address in addresses:  # one by one: asyncio's own loop over them melts several errors into a text
            try:
                return await loop.create_connection(make, address, port, **options)
            except ssl.SSLError:
                raise
            except OSError as error:
                if failure is None or not isinstance(error, ConnectionRefusedError):
                    failure = error
        failure = failure or OSError(f"{host} has no address")
        raise ConnectFailed(host, port, failure, isinstance(failure, ConnectionRefusedError)) from failure

    def tls(self, verify: bool, alpn: str = "") -> ssl.SSLContext:
        """A context for clients, made once: reading the system's authorities takes some 10 ms."""
        context = self._contexts.get((verify, alpn))
        if context is None:
            context = ssl.create_default_context()
            if not verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if alpn:
                context.set_alpn_protocols([alpn])
            self._contexts[verify, alpn] = context
        return context

    def close(self) -> None:
        """Forget the lookups under way."""
        for _, task in self._names.values():
            task.cancel()
        self._names.clear()

    async def _look_up(self, host: str) -> list[str]:
        now = asyncio.get_running_loop().time()
        until, task = self._names.get(host, (0.0, None))
        if task is None or now >= until:
            if len(self._names) >= NAMES_MAX:
                self._names = {name: kept for name, kept in self._names.items() if kept[0] > now}
            task = asyncio.get_running_loop().create_task(_addresses(host), name=f"look up {host}")
            task.add_done_callback(_heard)
            self._names[host] = (now + NAME_KEPT_S, task)
        # Shielded: the probe that asked first may run out of time, and others wait for the same answer.
        return await asyncio.shield(task)


async def _addresses(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _heard(task: asyncio.Task[list[str]]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits is told; nobody may wait any more


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port", of which the host may stand in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
