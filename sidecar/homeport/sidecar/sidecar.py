"""The sidecar: its listeners composed, its one timer, and the order in which a service leaves.

    async with Sidecar(client, outbound="127.0.0.1:15001") as sidecar:
        print(sidecar.at["outbound"])

Strategy: everything runs on the event loop that entered it, whichever loop that is. One timer sweeps all deadlines.
Nothing global is touched: no signal handlers, no logging configuration, no loop policy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.last_known import LastKnown
from homeport.client.randomness import own_rng
from homeport.sidecar.core import limits as fixed
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.inbound import Inbound
from homeport.sidecar.lifecycle import Registered, serve_app
from homeport.sidecar.observer import Observer
from homeport.sidecar.options import DEFAULT, RELOADED, Given, Options
from homeport.sidecar.outbound import HTTP_PREFIX, Outbound
from homeport.sidecar.services import Discovery, instance_at
from homeport.sidecar.sockets import address_of, bind
from homeport.sidecar.tcp import TcpListener
from homeport.sidecar.tls import Renewed

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger("homeport.sidecar")
_log.addHandler(logging.NullHandler())


class Sidecar:
    """A proxy beside one service: `Sidecar(client, outbound="127.0.0.1:15001")`, or `Sidecar(client, options)`.

    Args:
        client: Where instances are looked up; None when only `static` and `passthrough` names are used.
        options: What it does.
        sockets: Listening sockets by listener, to use instead of binding its address; closed with the sidecar.
        share: How many processes share what documents of routes let through; `options` are divided already.
        name: By which loops are found; the same for processes that do one task together. Default: a random one.
        rng: The source of all random choices.
        given: Single fields of `Options`, instead of or over `options`.

    Raises:
        ValueError: an option cannot be what it is.
    """

    def __init__(
        self,
        client: Discovery | None = None,
        options: Options = DEFAULT,
        *,
        sockets: Mapping[str, Sequence[socket.socket]] | None = None,
        share: int = 1,
        name: str = "",
        rng: Rng | None = None,
        **given: Unpack[Given],
    ) -> None:
        self.options: Options = msgspec.structs.replace(options, **given)
        self.at: dict[str, str] = {}  # listener -> the address it is bound to
        self.outbound: Outbound | None = None
        self.inbound: Inbound | None = None
        self.tcp: list[TcpListener] = []
        self._addresses = self.options.addresses
        self._client = client
        self._sockets = {name: list(each) for name, each in sockets.items()} if sockets is not None else {}
        self._last_known: LastKnown | None = None
        self.observer: Observer | None = None
        self._share = share
        self._rng: Rng = own_rng() if rng is None else rng
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
        name, options = self._name, self.options
        try:
            if options.observing.anything:
                self.observer = Observer(options.observing, self._rng)
                self.observer.start()
            if "outbound" in self._addresses or options.tcp or options.http:
                self.outbound = Outbound(loop, self._rng, f"{name}-out", self._client, options, self._share)
                if options.state_file is not None:
                    await self._recall(self.outbound, options.state_file)
                if self.outbound.route_watch is not None and ("outbound" in self._addresses or options.http):
                    self.outbound.route_watch.start()
                    await self.outbound.route_watch.read()
                self._prepare(self.outbound)
                for service in options.http:
                    name_of_port = HTTP_PREFIX + service
                    for each in self._bound(name_of_port):
                        await self.outbound.accept_for(service, each)
                    self.at[name_of_port] = address_of(self._bound(name_of_port)[0])
                if "outbound" in self._addresses:
                    self.at["outbound"] = await self._listen(self.outbound)
                for service in options.tcp:
                    self.tcp.append(TcpListener(self.outbound, service))
                    self.at[self.tcp[-1].name] = await self._listen(self.tcp[-1])
            if "inbound" in self._addresses and options.app is not None:
                app = instance_at("app", options.app)
                limits, timeouts = options.limits, options.timeouts
                self.inbound = Inbound(
                    loop,
                    self._rng,
                    f"{name}-in",
                    app,
                    limits,
                    timeouts,
                    options.concurrency_max,
                    options.remembering,
                )
                if options.inbound_tls is not None:
                    self.inbound.tls = Renewed(options.inbound_tls)
                self.at["inbound"] = await self._listen(self.inbound)
            if "admin" in self._addresses:
                self.at["admin"] = await self._serve_admin(self._bound("admin")[0])
        except BaseException:
            await self.close()
            raise
        self._timer = loop.call_later(fixed.SWEEP_S, self._sweep, loop)
        _log.info("sidecar listens: %s", self.at)

    def reconfigure(self, options: Options) -> None:
        """Go on with the fields `RELOADED` of these options; all others stay as they are.

        Raises:
            OSError: files that settings name for TLS cannot be used; nothing has changed for the outbound.
        """
        changed = {name: getattr(options, name) for name in RELOADED}
        self.options = options = msgspec.structs.replace(self.options, **changed)
        for listener in (self.inbound, self.outbound, *self.tcp):
            if listener is not None:
                listener.limits, listener.timeouts = options.limits, options.timeouts
        for proxy in (self.inbound, self.outbound):
            if proxy is not None:
                proxy.start_traces = options.start_traces
                proxy.renew()
        if self.inbound is not None:
            self.inbound.app.per_try_s = options.timeouts.first_byte_s
        if self.outbound is not None:
            self.outbound.reconfigure(options)

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

    def _prepare(self, listener: Listener | TcpListener) -> None:
        if isinstance(listener, Listener):
            listener.start_traces = self.options.start_traces
        listener.observer = self.observer

    async def _listen(self, listener: Listener | TcpListener) -> str:
        self._prepare(listener)
        bound = self._bound(listener.name)
        for each in bound:
            await listener.accept(each)
        return address_of(bound[0])

    async def _serve_admin(self, bound: socket.socket) -> str:
        # Loaded only by who wants it: a web server and the metrics' library are most of a sidecar's start.
        from aiohttp import web

        from homeport.sidecar import admin

        self._admin = web.AppRunner(
            admin.application(admin.Own(self)), access_log=None, shutdown_timeout=admin.SHUTDOWN_S
        )
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
