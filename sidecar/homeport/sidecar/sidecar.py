"""The sidecar: its listeners composed, its one timer, and the order in which a service leaves.

    async with Sidecar(client, outbound="127.0.0.1:15001") as sidecar:
        print(sidecar.at["outbound"])

Strategy: everything runs on the event loop that entered it, whichever loop that is. One timer sweeps all deadlines.
Nothing global is touched: no signal handlers, no logging configuration, no loop policy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from homeport.client.core.backoff import Rng
from homeport.sidecar.core import limits as fixed
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.settings import DEFAULT, ServiceSettings
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.inbound import Inbound
from homeport.sidecar.last_known import LastKnown
from homeport.sidecar.lifecycle import Registered, serve_app
from homeport.sidecar.observer import NOTHING, Observer, Observing
from homeport.sidecar.outbound import Discovery, Outbound, instance_at
from homeport.sidecar.sockets import address_of, bind, parse_address
from homeport.sidecar.tcp import PREFIX, TcpListener
from homeport.sidecar.tls import Renewed, ServerTls

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger("homeport.sidecar")
_log.addHandler(logging.NullHandler())


class Sidecar:
    """A proxy beside one service.

    Args:
        client: Where instances are looked up; None when only `static` and `passthrough` names are used.
        outbound: `host:port` to take the service's own requests at; None or "off" for no such listener. Port 0 is any.
        inbound: `host:port` to take requests for the service at; needs `app`.
        app: `host:port` of the service itself.
        admin: `host:port` for operators and scrapers.
        static: Services that register nowhere: name to `host:port` addresses. Never looked up in the registry.
        tcp: Local ports that stand for a service each, for what is not HTTP/1.1: its name to `host:port`.
        passthrough: Hosts outside the registry, `host` or `host:port`, that requests may go to.
        concurrency_max: Requests under way at the application; more are turned away, for others to serve.
        state_file: Where the last known endpoints are kept, for the next start; None for nowhere.
        limits: How large and how many; one for both listeners.
        timeouts: How long; one for both listeners.
        start_traces: Whether a request without a `traceparent` gets one; one that has it always keeps it.
        inbound_tls: The certificate that clients of the inbound are shown; None: it speaks plain HTTP.
        sockets: Listening sockets by listener, to use instead of binding its address; closed with the sidecar.
        observing: What is written down of requests: an access log, traces. Nothing by default.
        settings: How services are balanced, timed and guarded.
        services: Those that differ, by name.
        name: By which loops are found; the same for processes that do one task together. Default: a random one.
        rng: The source of all random choices.
    """

    def __init__(
        self,
        client: Discovery | None = None,
        *,
        outbound: str | None = "127.0.0.1:15001",
        inbound: str | None = None,
        app: str | None = None,
        admin: str | None = None,
        static: Mapping[str, Sequence[str]] | None = None,
        tcp: Mapping[str, str] | None = None,
        passthrough: Sequence[str] = (),
        concurrency_max: int = fixed.ACTIVE_MAX,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        state_file: str | os.PathLike[str] | None = None,
        start_traces: bool = False,
        inbound_tls: ServerTls | None = None,
        sockets: Mapping[str, Sequence[socket.socket]] | None = None,
        observing: Observing = NOTHING,
        settings: ServiceSettings = DEFAULT,
        services: Mapping[str, ServiceSettings] | None = None,
        name: str = "",
        rng: Rng | None = None,
    ) -> None:
        self.at: dict[str, str] = {}  # listener -> the address it is bound to
        self.outbound: Outbound | None = None
        self.inbound: Inbound | None = None
        self.tcp: list[TcpListener] = []
        self._tcp = {} if tcp is None else dict(tcp)
        self._addresses = {
            name: address
            for name, address in (("outbound", outbound), ("inbound", inbound), ("admin", admin))
            if address is not None and address != "off"
        }
        self._addresses |= {PREFIX + service: address for service, address in self._tcp.items()}
        for address in self._addresses.values():
            parse_address(address)
        if "inbound" in self._addresses and app is None:
            raise ValueError("an inbound listener needs the application's address: app='host:port'")
        self._app = instance_at("app", app) if app is not None else None
        self._client = client
        self._static = {} if static is None else dict(static)
        for service, addresses in self._static.items():
            for address in addresses:
                instance_at(service, address)
        self._passthrough = tuple(passthrough)
        self._concurrency_max = concurrency_max
        self._sockets = {name: list(each) for name, each in sockets.items()} if sockets is not None else {}
        self._state_file = Path(state_file) if state_file is not None else None
        self._last_known: LastKnown | None = None
        self.limits = Limits() if limits is None else limits
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self._start_traces = start_traces
        self._inbound_tls = inbound_tls
        self._observing = observing
        self.observer: Observer | None = None
        self._settings = settings
        self._services = {} if services is None else dict(services)
        self._rng: Rng = random.Random() if rng is None else rng
        self._name = (
            name or f"homeport-{self._rng.randrange(1 << 48):012x}"
        )  # unique in the mesh: loops are found by it
        self._admin: web.AppRunner | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def draining(self) -> bool:
        return self._draining

    async def start(self) -> None:
        """Bind every listener; `at` has the addresses. On failure nothing stays open.

        Raises:
            OSError: an address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        name = self._name
        try:
            if self._observing.anything:
                self.observer = Observer(self._observing, self._rng)
                self.observer.start()
            if "outbound" in self._addresses or self._tcp:
                self.outbound = Outbound(
                    loop,
                    self._rng,
                    f"{name}-out",
                    self._client,
                    self._static,
                    self._passthrough,
                    self.limits,
                    self.timeouts,
                    self._settings,
                    self._services,
                )
                if self._state_file is not None:
                    await self._recall(self.outbound, self._state_file)
                if "outbound" in self._addresses:
                    self.at["outbound"] = await self._listen(self.outbound)
                for service in self._tcp:
                    self.tcp.append(TcpListener(self.outbound, service))
                    self.at[self.tcp[-1].name] = await self._listen(self.tcp[-1])
            if "inbound" in self._addresses and self._app is not None:
                self.inbound = Inbound(
                    loop, self._rng, f"{name}-in", self._app, self.limits, self.timeouts, self._concurrency_max
                )
                if self._inbound_tls is not None:
                    self.inbound.tls = Renewed(self._inbound_tls)
                self.at["inbound"] = await self._listen(self.inbound)
            if "admin" in self._addresses:
                self.at["admin"] = await self._serve_admin(self._bound("admin")[0])
        except BaseException:
            await self.close()
            raise
        self._timer = loop.call_later(fixed.SWEEP_S, self._sweep, loop)
        _log.info("sidecar listens: %s", self.at)

    async def _recall(self, outbound: Outbound, path: Path) -> None:
        self._last_known = LastKnown(path, outbound.last_known)
        last = self._last_known.load()
        if last is not None:
            await outbound.recall(last, time.time())
        outbound.on_change = self._last_known.changed
        self._last_known.start()

    def _bound(self, name: str) -> list[socket.socket]:
        if name not in self._sockets:
            self._sockets[name] = bind(self._addresses[name])
        return self._sockets[name]

    async def _listen(self, listener: Listener | TcpListener) -> str:
        if isinstance(listener, Listener):
            listener.start_traces = self._start_traces
        listener.observer = self.observer
        bound = self._bound(listener.name)
        for each in bound:
            await listener.accept(each)
        return address_of(bound[0])

    async def _serve_admin(self, bound: socket.socket) -> str:
        # Loaded only by who wants it: a web server and the metrics' library are most of a sidecar's start.
        from aiohttp import web

        from homeport.sidecar import admin

        self._admin = web.AppRunner(admin.application(admin.Own(self)), access_log=None)
        await self._admin.setup()
        await web.SockSite(self._admin, bound).start()
        return address_of(bound)

    def _close_sockets(self) -> None:
        for bound in self._sockets.values():
            for each in bound:
                each.close()

    @property
    def sockets(self) -> Mapping[str, Sequence[socket.socket]]:
        """The listening sockets, for a successor."""
        return self._sockets

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(fixed.SWEEP_S, self._sweep, loop)
        now = loop.time()
        for listener in (self.outbound, self.inbound, *self.tcp):
            if listener is not None:
                listener.sweep(now)
        if self.observer is not None:
            self.observer.sweep()

    async def drain(self, timeout_s: float = fixed.DRAIN_TIMEOUT_S) -> bool:
        """Let what comes in come to its end: answer with `Connection: close`, wait until nothing is in flight.

        Goes on accepting and serving, inbound and outbound: whoever has not heard yet is not turned away, and the
        service may need others to finish. Returns False if requests were still in flight after `timeout_s`.
        """
        self.begin_drain()
        if self.inbound is not None:
            return await self.inbound.drain(timeout_s)
        waits = [each.emptied(timeout_s) for each in self.tcp]
        if self.outbound is not None:
            waits.append(self.outbound.drain(timeout_s))
        return all(await asyncio.gather(*waits))

    def watch_app(self, evidence: Callable[[], None]) -> None:
        """Call `evidence` when requests to the application have failed."""
        if self.inbound is not None:
            self.inbound.on_trouble = evidence

    def begin_drain(self) -> None:
        """From now on, answers that come in say `Connection: close`, and /ready says no."""
        self._draining = True
        if self.inbound is not None:
            self.inbound.draining = True

    async def retire(self, timeout_s: float = fixed.RETIRE_TIMEOUT_S) -> bool:
        """Somebody else accepts now: stop accepting, and wait until every connection has come to its end.

        Each ends with its next answer, or when it has been idle for as long as any may be. Returns False if some were
        still open after `timeout_s`.
        """
        self._draining = True
        listeners = [listener for listener in (self.inbound, self.outbound, *self.tcp) if listener is not None]
        if self._admin is not None:
            await self._admin.cleanup()
            self._admin = None
        if self._last_known is not None:  # the file is the successor's now
            self._last_known.stop()
            self._last_known = None
        for listener in listeners:
            listener.stop_accepting()
        self._close_sockets()
        return all(await asyncio.gather(*(listener.retire(timeout_s) for listener in listeners)))

    async def close(self) -> None:
        """Close everything, inbound first and outbound last. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._admin is not None:
            await self._admin.cleanup()
            self._admin = None
        if self.inbound is not None:
            self.inbound.close()
        if self._last_known is not None:
            await self._last_known.close()
            self._last_known = None
        for listener in self.tcp:
            listener.close()
        if self.outbound is not None:
            self.outbound.close()
        self._close_sockets()
        await asyncio.sleep(0)  # the connections hear of their end before the loop does of its own
        if self.observer is not None:
            await self.observer.close()
            self.observer = None

    async def serve_app(
        self,
        registration: Registered,
        *,
        stopping: Awaitable[object],
        exited: Awaitable[object],
        stop_app: Callable[[], Awaitable[object]],
        drain_timeout_s: float = fixed.DRAIN_TIMEOUT_S,
    ) -> None:
        """Register the application, serve until it is told to stop or exits, and leave in the right order.

        See `homeport.sidecar.lifecycle.serve_app`.
        """
        await serve_app(
            self,
            registration,
            stopping=stopping,
            exited=exited,
            stop_app=stop_app,
            drain_timeout_s=drain_timeout_s,
        )
