"""One listening address: what its connections share, and what inbound and outbound decide differently.

The shared part is the set of connections, the counters, the header lines that stay the same, and drain. The methods
that raise `NotImplementedError` are the whole difference between the two directions.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

from homeport.client.core.backoff import Rng
from homeport.sidecar.acceptor import Acceptor
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.core.routing import RouteRetries
from homeport.sidecar.core.settings import Retries
from homeport.sidecar.http1 import framing
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.outbox import Outbox
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Cluster, Endpoint
from homeport.sidecar.tls import Renewed

FLAGS: Final = b"x-homeport-response-flags"
SERVICE: Final = b"x-homeport-service"
STALE: Final = b"x-homeport-stale"  # asked for: how many seconds ago the registry last confirmed the endpoints
UNDELIVERED: Final = b"x-homeport-undelivered"  # between an inbound and an outbound only
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})


class Listener(Acceptor[Downstream]):
    """Accepts connections at one address and proxies what they ask for."""

    retries_max = 0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: Rng,
        pseudonym: str,
        limits: Limits,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(loop, limits, timeouts)
        self.rng = rng
        self.active = 0  # exchanges under way,
        self.tunnels = 0  # of which: those that have become a tunnel
        self.requests_total = 0
        self.refusals: dict[str, int] = {}  # answers of our own, by flag
        self.pseudonym = pseudonym.encode()
        self.via_line = b"Via: 1.1 %b" % self.pseudonym
        self.outbox = Outbox(loop)
        self.start_traces = False  # whether a request that bears no `traceparent` gets one
        self.tls: Renewed | None = None  # how clients are met; set before the first `accept`
        self._drained: asyncio.Event | None = None

    # The two directions differ in these.

    def route(self, request: RequestHead) -> Cluster:
        """Where the request goes. May rewrite `request.host` and `request.target`.

        Raises:
            Refusal: nowhere.
        """
        raise NotImplementedError

    def begin_otherwise(self, exchange: Tries, cluster: Cluster) -> bool:
        """Begin a request to a service that is not plain, in the exchange's place; False: a plain one will do.

        Raises:
            Refusal: it cannot be begun.
        """
        raise NotImplementedError

    def wait_known(self, cluster: Cluster, exchange: Tries) -> None:
        """Call `exchange.try_first()` when the registry has answered for `cluster`."""
        raise NotImplementedError

    def nobody(self, cluster: Cluster) -> Refusal:
        """Why no endpoint of `cluster` can take a request."""
        raise NotImplementedError

    def failure_of(self, head: ResponseHead, retries: Retries | RouteRetries | None) -> Failure | None:
        """What an answer of 429, or of 500 or more, means for the try; None: it is the answer."""
        raise NotImplementedError

    def forwarded(self, request: RequestHead, downstream: Downstream) -> list[bytes]:
        """The X-Forwarded-* lines of a request that came with some of its own."""
        raise NotImplementedError

    def mesh_fields(self, head: ResponseHead) -> Headers:
        """Which of an answer's x-homeport-* headers are passed on."""
        raise NotImplementedError

    def asked_lines(self, asked: Sequence[tuple[bytes, bytes]], cluster: Cluster | None) -> list[bytes]:
        """The header lines that a request's x-homeport-* headers ask to have in its answer."""
        return []

    def give_up(self, exchange: Exchange) -> None:
        """The exchange does not wait for its service any more."""

    # Connections.

    def protocol(self) -> Downstream:
        return Downstream(self)

    def options(self) -> dict[str, Any]:
        if self.tls is None:
            return {}
        return {
            "ssl": self.tls.context,
            "ssl_handshake_timeout": self.timeouts.head_s,
            "ssl_shutdown_timeout": self.timeouts.linger_s,
        }

    def tls_to(self, cluster: Cluster, endpoint: Endpoint) -> tuple[ssl.SSLContext, str] | None:
        """How a connection to `endpoint` is encrypted, and the name that its certificate must bear; None: not."""
        return None

    @property
    def ends_exchanges(self) -> bool:
        """Whether any exchange may have an `ends_s`."""
        return self.timeouts.total_s is not None

    def renew(self) -> None:
        """Read the files of TLS again, for new connections."""
        if self.tls is not None:
            self.tls.read()

    def sweep(self, now: float) -> None:
        """Act on every deadline that has passed."""
        if self.tls is not None:
            self.tls.sweep(now)
        for downstream in [each for each in self.connections if each.deadline_s <= now]:
            downstream.expired(now)
        if self.ends_exchanges:
            for downstream in list(self.connections):
                exchange = downstream.exchange
                if exchange is not None and exchange.ends_s <= now:
                    exchange.out_of_time()

    def move(self, hopeless: Iterable[Endpoint]) -> None:
        """Take requests that wait for a first byte off these endpoints."""
        leaving = set(hopeless)
        for downstream in list(self.connections):
            exchange = downstream.exchange
            if exchange is not None:
                exchange.move_off(leaving)

    def exchange_ended(self) -> None:
        self.active -= 1
        self.requests_total += 1
        if self._drained is not None and self.active == 0:
            self._drained.set()

    async def drain(self, timeout_s: float) -> bool:
        """End keep-alive and wait until nothing is in flight; False: something still is. Still accepts and serves."""
        self.draining = True
        drained = self._drained = self._drained or asyncio.Event()  # one for all who wait
        try:
            async with asyncio.timeout(timeout_s):
                while self.active:
                    drained.clear()
                    await drained.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop accepting and close every connection, whatever it is doing."""
        self.stop_accepting()
        for downstream in list(self.connections):
            if downstream.exchange is not None:
                downstream.exchange.client_lost()
            downstream.transport.abort()

    # Bytes.

    @property
    def scheme(self) -> bytes:
        """What clients have spoken to us."""
        return b"http" if self.tls is None else b"https"

    def forwarding(self, peer: bytes, host: bytes) -> bytes:
        """The lines that every plain request of one client to one host gets."""
        return b"Host: %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n%b" % (
            host,
            peer,
            self.scheme,
            host,
            self.via_line,
        )

    def encode_request(self, request: RequestHead, downstream: Downstream) -> bytes:
        """The request's head as the upstream gets it.

        Raises:
            Refusal: it has been here before.
        """
        host = request.host
        if not (request.forwarded or request.via):
            if downstream.forwarding_to != host:
                downstream.forwarding_to, downstream.forwarding = host, self.forwarding(downstream.peer, host)
            parts = [request.line, downstream.forwarding, *request.lines]
        else:
            parts = [request.line, b"Host: %b" % host, *request.lines, *self.forwarded(request, downstream)]
            parts.append(self._via(request.via, looping=True))
        if request.length > 0:
            parts.append(b"Content-Length: %d" % request.length)
        elif request.length == framing.CHUNKED:
            parts.append(b"Transfer-Encoding: chunked")
        elif request.method in _WITH_CONTENT:
            parts.append(b"Content-Length: 0")  # RFC 9110 8.6: their absence would be read as an unknown length
        if request.expect and request.length:
            parts.append(b"Expect: 100-continue")
        if self.start_traces and not request.traced:
            trace, span = 1 + self.rng.randrange((1 << 128) - 1), 1 + self.rng.randrange((1 << 64) - 1)
            parts.append(b"traceparent: 00-%032x-%016x-00" % (trace, span))  # known, and not sampled
        if request.upgrade:
            parts.append(b"Connection: Upgrade\r\nUpgrade: websocket")
        parts.append(b"\r\n")
        return b"\r\n".join(parts)

    def _via(self, earlier: tuple[bytes, ...], *, looping: bool = False) -> bytes:
        if not earlier:
            return self.via_line
        line = b", ".join(earlier)
        if looping and self.pseudonym in line:
            raise Refusal(508, "NR", "this request has passed through this sidecar before")
        return b"Via: %b, 1.1 %b" % (line, self.pseudonym)

    def response_lines(self, head: ResponseHead) -> list[bytes]:
        """Via and whatever x-homeport-* headers may pass."""
        return [*(b"%b: %b" % field for field in self.mesh_fields(head)), self._via(head.via)]

    def answer(
        self, refusal: Refusal, *, keep: bool, to_head: bool, undelivered: bool = False, lines: Sequence[bytes] = ()
    ) -> bytes:
        """An answer of our own; `undelivered`: no upstream has seen the request; `lines`: more of its head."""
        flag = refusal.flag or "-"
        self.refusals[flag] = self.refusals.get(flag, 0) + 1
        body = f"homeport sidecar: {refusal.text}\n".encode()
        parts = [
            framing.STATUS_LINES[refusal.status],
            b"Content-Type: text/plain; charset=utf-8",
            b"Content-Length: %d" % len(body),
            *lines,
            *refusal.lines,
        ]
        if refusal.flag:
            parts.append(b"%b: %b" % (FLAGS, refusal.flag.encode()))
        if undelivered and self.retries_max == 0:  # whoever does not retry tells the one who does
            parts.append(b"%b: 1" % UNDELIVERED)
        parts.append(self.via_line)
        if not keep:
            parts.append(b"Connection: close")
        parts += (b"", b"" if to_head else body)
        return b"\r\n".join(parts)
