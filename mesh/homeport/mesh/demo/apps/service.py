"""What the five services share: starting, readiness, calls to each other, and how failures are told.

A service listens where `PORT` says and calls the others by name through the proxy in `HTTP_PROXY`, which is its own
sidecar; both are set by `homeport run`. It never retries: a failed call becomes a 502, a busy database a 503, and the
caller's sidecar decides whether another instance is worth a try.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
import msgspec
from aiohttp import web

from homeport.client import Client
from homeport.mesh.demo.apps.settings import SettingsFollower
from homeport.mesh.demo.apps.store import Store

HEALTH_PATH: Final = "/healthz"
REQUEST_ID: Final = "x-request-id"
SERVED_BY: Final = "x-served-by"
FLAGS: Final = "x-homeport-response-flags"  # set by a sidecar that answers in place of a service

REACH_INTERVAL_S: Final = 0.1
CALL_TIMEOUT_S: Final = 8.0  # below the 10 s the site's users wait, so that they are told what was slow
BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # above any photo the settings may allow

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("homeport.demo")


class PeerError(Exception):
    """Another service could not be asked, or could not answer."""


class Peers:
    """The other services, by name; use as an async context manager.

    `reached` once each service in `needs` has answered: a caller that has never met them would find nobody if it first
    asked while the registry is away, so it takes no traffic before that.
    """

    def __init__(self, proxy: str | None, needs: Sequence[str]) -> None:
        self._proxy = proxy
        self._needs = needs
        self._reaching: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        self._session = aiohttp.ClientSession(proxy=self._proxy, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._reaching = asyncio.create_task(self._reach(self._session))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._reaching is not None:
            self._reaching.cancel()
            await asyncio.gather(self._reaching, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def reached(self) -> bool:
        return self._reaching is not None and self._reaching.done() and not self._reaching.cancelled()

    async def _reach(self, session: aiohttp.ClientSession) -> None:
        missing = list(self._needs)
        while missing:
            if await self._answers(session, missing[0]):
                del missing[0]
            else:
                await asyncio.sleep(REACH_INTERVAL_S)

    async def _answers(self, session: aiohttp.ClientSession, service: str) -> bool:
        try:
            async with session.get(f"http://{service}{HEALTH_PATH}") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("%s was not reached: %r", service, error)
            return False

    async def get(self, asked: web.Request, service: str, path: str, **params: str) -> Any:
        """Return the decoded answer of `service`, or None if it answered 404; `asked` is what this call is for.

        Raises:
            PeerError: no answer, or one that is neither success nor 404.
        """
        assert self._session is not None, "the service has not started"
        headers = {REQUEST_ID: asked.headers.get(REQUEST_ID, "-")}
        try:
            async with self._session.get(f"http://{service}{path}", params=params, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PeerError(f"{service}: {error!r}") from error
        if response.status == 404 and FLAGS not in response.headers:
            return None
        if response.status != 200:
            raise PeerError(f"{service}: {response.status} {body[:200].decode(errors='replace')}")
        return msgspec.json.decode(body)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a service finds around itself."""

    settings: SettingsFollower
    store: Store
    peers: Peers


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


def names(request: web.Request, parameter: str) -> list[str]:
    """The comma-separated names in a query parameter; none if it is absent."""
    return [name for name in request.query.get(parameter, "").split(",") if name]


def build_app(
    routes: Callable[[Surroundings], Iterable[web.AbstractRouteDef]],
    schema: str,
    needs: Sequence[str],
    *,
    database: str,
    registry: str,
    proxy: str | None,
    instance: str,
) -> web.Application:
    """Build the web application of one service.

    Args:
        routes: the service itself: its routes, given its surroundings.
        schema: SQL that creates its tables unless they exist.
        needs: the services that it calls; it is ready once it has reached each of them.
        database: the file that all instances of the service share.
        registry: where the settings are read, "host:port".
        proxy: the URL of the sidecar through which other services are called.
        instance: the name that answers carry in `x-served-by`.
    """
    store = Store(database, schema)
    settings = SettingsFollower(Client(registry, name=instance))
    peers = Peers(proxy, needs)

    @web.middleware
    async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != HEALTH_PATH:
            # Before handling, so that a request that dies with this process is known to have arrived.
            print(request.headers.get(REQUEST_ID, "-"), request.method, request.path, flush=True)
        response: web.StreamResponse
        try:
            response = await handler(request)
        except PeerError as error:
            response = web.Response(status=502, text=f"{error}\n")
        except sqlite3.OperationalError as error:
            response = web.Response(status=503, text=f"database: {error}\n")
        response.headers[SERVED_BY] = instance
        return response

    async def health(_request: web.Request) -> web.Response:
        if not settings.known:
            return web.Response(status=503, text="settings not read yet\n")
        if not peers.reached:
            return web.Response(status=503, text=f"not reached yet: one of {', '.join(needs)}\n")
        return web.Response(text="ready\n")

    async def run(_app: web.Application) -> AsyncIterator[None]:
        async with store, settings, peers:
            yield

    app = web.Application(middlewares=[tell], client_max_size=BODY_BYTES_MAX)
    app.add_routes([web.get(HEALTH_PATH, health), *routes(Surroundings(settings, store, peers))])
    app.cleanup_ctx.append(run)
    return app


def serve(
    name: str,
    routes: Callable[[Surroundings], Iterable[web.AbstractRouteDef]],
    schema: str = "",
    needs: Sequence[str] = (),
) -> None:
    """Run the service `name` in this process until SIGTERM, as the environment says."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    print("pid", os.getpid(), flush=True)
    directory = os.environ.get("PICTURES_DATA", ".")
    app = build_app(
        routes,
        schema,
        needs,
        database=os.path.join(directory, f"{name}.sqlite"),
        registry=os.environ.get("HOMEPORT_REGISTRY", "127.0.0.1:8300"),
        proxy=os.environ.get("HTTP_PROXY"),
        instance=os.environ.get("HOMEPORT_ID", name),
    )
    port = int(os.environ.get("PORT", "0"))
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, shutdown_timeout=CALL_TIMEOUT_S)
