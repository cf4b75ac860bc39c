"""The order in which a service comes and goes, whatever carries its traffic: one proxy in this process, or workers.

registered -> told to stop -> `draining` announced and heard -> nothing in flight -> deregistered -> app stopped
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from homeport.client.core.errors import HomeportError
from homeport.sidecar.core import limits

_log = logging.getLogger("homeport.sidecar")


class Registered(Protocol):
    """The registration of the service behind an inbound, as `homeport.client.Registration` is one."""

    async def start(self) -> None: ...
    async def drain(self) -> None: ...
    async def stop(self) -> None: ...


class Proxy(Protocol):
    """What brings the service its requests."""

    def begin_drain(self) -> None: ...
    async def drain(self, timeout_s: float = limits.DRAIN_TIMEOUT_S) -> bool: ...


async def serve_app(
    proxy: Proxy,
    registration: Registered,
    *,
    stopping: Awaitable[object],
    exited: Awaitable[object],
    stop_app: Callable[[], Awaitable[object]],
    drain_timeout_s: float = limits.DRAIN_TIMEOUT_S,
) -> None:
    """Register the application, serve until it is told to stop or exits by itself, and leave in the right order.

    Told to stop (`stopping` is done): announce `draining` and wait until that has been heard, wait for requests in
    flight, deregister, stop the application (`stop_app`, which returns when it has ended). Exited by itself
    (`exited` is done): deregister at once. Closing the proxy is left to the caller: outbound closes last.

    Cancelling deregisters and stops the application without waiting for anything in flight.

    Args:
        registration: Of the inbound address, not started yet.
    """
    stop, end = asyncio.ensure_future(stopping), asyncio.ensure_future(exited)
    ours = [future for future, given in ((stop, stopping), (end, exited)) if future is not given]
    starting = asyncio.ensure_future(registration.start())
    ours.append(starting)
    try:
        await asyncio.wait((starting, stop, end), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.wait((stop, end), return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                leaving = asyncio.ensure_future(_leave(proxy, registration, drain_timeout_s))
                ours.append(leaving)
                await asyncio.wait((leaving, end), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in ours:
            future.cancel()
        await asyncio.wait(ours)
        try:
            await registration.stop()
        finally:
            if not end.done() or end.cancelled():
                await stop_app()


async def _leave(proxy: Proxy, registration: Registered, timeout_s: float) -> None:
    proxy.begin_drain()
    try:
        await registration.drain()
    except HomeportError as error:  # a registry that is away must not keep requests in flight from their end
        _log.warning("draining could not be announced: %s", error)
    if not await proxy.drain(timeout_s):
        _log.warning("requests were still in flight %.0f s after the drain began", timeout_s)
