"""The way into a service: everything goes to the local application.

Nothing that comes from outside is believed: X-Forwarded-* say what this listener has seen itself, and x-homeport-*
end here. It never retries on its own account, since it has nobody else to ask; when the application could not be
given a request at all, it says so in a header that only an outbound reads, which may then try another instance
whatever the method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeport.client.core.backoff import Rng
from homeport.client.core.model import Instance
from homeport.sidecar.core import cluster, limits, routes
from homeport.sidecar.core.idempotency import NO_TOKEN, ONCE, TOKEN_HEADER, Memory, Remembering, Verdict, key_of, said
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.core.routing import RouteRetries
from homeport.sidecar.core.settings import PLAIN, Retries
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.http1.mirror import Nobody
from homeport.sidecar.http1.remembered import RememberedExchange
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Cluster


class Inbound(Listener):
    """Hands every request to one application."""

    name = "inbound"
    retries_max = 0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: Rng,
        pseudonym: str,
        app: Instance,
        bounds: Limits,
        timeouts: Timeouts,
        concurrency_max: int = limits.ACTIVE_MAX,
        remembering: Remembering | None = None,
    ) -> None:
        super().__init__(loop, rng, pseudonym, bounds, timeouts)
        self.app: Cluster = cluster.Cluster(app.service, PLAIN, fixed=True, per_try_s=timeouts.first_byte_s)
        self.app.update({app.key: app})
        self.concurrency_max = concurrency_max
        self.memory: Memory[RememberedExchange] | None = None  # of answers to requests with an idempotency key
        self.left: dict[Nobody, None] = {}  # in the places of clients that have left, see `remembered`
        if remembering is not None:
            self.memory = Memory(remembering, f"{rng.randrange(1 << 64):016x}")
            self.app.plain = False
        self.on_trouble: Callable[[], None] | None = None  # called, at most once a sweep, when requests have failed
        self._host = f"{app.address}:{app.port}".encode()
        self._troubles = 0  # failures known at the last sweep

    def route(self, request: RequestHead) -> Cluster:
        if self.active > self.concurrency_max and self.full and not self._asks_memory(request):
            raise self.busy
        if request.mesh and self.memory is None and any(name == TOKEN_HEADER for name, _ in request.mesh):
            # The sender believes that they are, and may send it again.
            text = "answers are not remembered here any more"
            raise Refusal(Verdict.STALE.status, "IX", text, (said(NO_TOKEN, Verdict.STALE),))
        if request.target[:1] not in (b"/", b"*"):
            if request.method == b"CONNECT":
                raise Refusal(404, "NR", "CONNECT is not served here")
            request.retarget(*routes.split_absolute(request.target, method=request.method))
        if not request.host:  # HTTP/1.0 may leave it out, an application need not
            request.host = self._host
        return self.app

    @property
    def full(self) -> bool:
        """Whether too much is under way, with the request that asks, which is counted already.

        A tunnel is no work but a connection, of which there is a limit too: one that idles for hours must not take the
        place of a request.
        """
        return self.active - self.tunnels > self.concurrency_max

    @property
    def busy(self) -> Refusal:
        """The application has as much to do as it may have."""
        return Refusal(503, "UO", f"more than {self.concurrency_max} requests are under way here")

    def _asks_memory(self, request: RequestHead) -> bool:
        """Whether what it asks for may be under way, or done: then there is room for it, or it is refused later."""
        return self.memory is not None and any(name == TOKEN_HEADER for name, _ in request.mesh)

    def begin_otherwise(self, exchange: Tries, cluster: Cluster) -> bool:
        request = exchange.request
        key = key_of(request.lines) if request.method in ONCE else None
        if key is None:
            if any(name == TOKEN_HEADER for name, _ in request.mesh):  # its sender relies on a key that got lost
                raise Refusal(400, "IX", "the Idempotency-Key that the request was sent with is missing")
            return False
        RememberedExchange(exchange, cluster, self, key).begin_remembered()
        return True

    def wait_known(self, cluster: Cluster, exchange: Tries) -> None:
        raise AssertionError("the application's address is always known")

    def nobody(self, cluster: Cluster) -> Refusal:
        return Refusal(503, "UH", "the application is not there")

    def failure_of(self, head: ResponseHead, retries: Retries | RouteRetries | None) -> Failure | None:
        return None

    def forwarded(self, request: RequestHead, downstream: Downstream) -> list[bytes]:
        return [
            b"X-Forwarded-For: %b" % downstream.peer,
            b"X-Forwarded-Proto: %b" % self.scheme,
            b"X-Forwarded-Host: %b" % request.host,
        ]

    def mesh_fields(self, head: ResponseHead) -> Headers:
        return []  # an application must not be able to claim that it never got a request

    def sweep(self, now: float) -> None:
        super().sweep(now)
        for upstream in self.app.sweep(now, self.rng):
            upstream.close()
        if self.memory is not None:
            self.memory.sweep(now)
            for left in list(self.left):
                exchange = left.exchange
                if exchange is not None and exchange.ends_s <= now:
                    exchange.out_of_time()
                elif exchange is not None and left.deadline_s <= now:
                    exchange.expired(now)
        # From the counters, so that the evidence costs a request nothing: answers of 5xx, none at all, or too late.
        app = self.app
        troubles = app.requests[5] + app.requests[0] + app.timeouts + app.connect_failures
        if troubles != self._troubles:
            self._troubles = troubles
            if self.on_trouble is not None:
                self.on_trouble()

    def close(self) -> None:
        for each in [*self.connections, *self.left]:
            if isinstance(each.exchange, RememberedExchange):
                each.exchange.abandon()
        super().close()
        for endpoint in self.app.endpoints.values():
            for upstream in list(endpoint.idle):
                upstream.close()
