"""The sidecar's own HTTP port, for operators and scrapers.

/ready, /clusters, /stats, /routes, /explain?service=NAME&path=/..., /metrics, and POST /drain. What it shows is made in
`reports` and `metrics`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import hdrs, web

from homeport.client.randomness import own_rng
from homeport.sidecar import reports
from homeport.sidecar.core.explain_routes import Question
from homeport.sidecar.core.plain_text import plain_text
from homeport.sidecar.metrics import metrics
from homeport.sidecar.reports import Watched

SHUTDOWN_S: Final = 1.0  # for answers under way when the port closes; one that waits for a drain must not delay it
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Source(Protocol):
    """What the admin port is made of: one sidecar, or the workers of one."""

    @property
    def unready(self) -> str:
        """Why nothing is to be sent here now; empty if it is."""
        ...

    async def drain(self) -> bool: ...
    async def clusters(self) -> list[dict[str, object]]: ...
    async def stats(self) -> dict[str, object]: ...
    async def routes(self) -> dict[str, object]: ...
    async def explain(self, question: Question) -> dict[str, object] | None: ...
    async def metrics(self) -> bytes: ...


class Own:
    """The source that a sidecar of one process is."""

    def __init__(self, sidecar: Watched) -> None:
        self._sidecar = sidecar
        self._rng = own_rng()  # its own: a question must not change which choices follow

    @property
    def unready(self) -> str:
        return "draining" if self._sidecar.draining else ""

    async def drain(self) -> bool:
        return await self._sidecar.drain()

    async def clusters(self) -> list[dict[str, object]]:
        return reports.clusters(self._sidecar)

    async def stats(self) -> dict[str, object]:
        return reports.stats(self._sidecar)

    async def routes(self) -> dict[str, object]:
        return reports.routes(self._sidecar)

    async def explain(self, question: Question) -> dict[str, object] | None:
        return reports.explain(self._sidecar, question, self._rng)

    async def metrics(self) -> bytes:
        return metrics(self._sidecar)


def _shown(request: web.Request, value: object) -> web.Response:
    """JSON, or text for who asks for it: `?format=text`, or an Accept that wants text/plain and not JSON."""
    accept = request.headers.get("Accept", "")
    form = request.query.get("format", "text" if "text/plain" in accept and "json" not in accept else "json")
    if form not in ("text", "json"):
        return web.Response(status=400, text=f"format={form!r}; allowed: json, text\n")
    return web.Response(text=plain_text(value)) if form == "text" else web.json_response(value)


@web.middleware
async def _no_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Change nothing for a page of the web: its reader's browser reaches loopback, and sends a plain POST unasked."""
    if request.method != "GET" and (
        hdrs.ORIGIN in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
    ):
        return web.Response(status=403, text="this is no place for requests from web pages\n")
    return await handler(request)


def application(source: Source) -> web.Application:
    """The aiohttp application that serves all of this."""

    async def ready(_request: web.Request) -> web.Response:
        if source.unready:
            return web.Response(status=503, text=f"{source.unready}\n")
        return web.Response(text="ready\n")

    async def show_clusters(request: web.Request) -> web.Response:
        return _shown(request, await source.clusters())

    async def show_stats(request: web.Request) -> web.Response:
        return _shown(request, await source.stats())

    async def show_routes(request: web.Request) -> web.Response:
        return _shown(request, await source.routes())

    async def explain(request: web.Request) -> web.Response:
        service = request.query.get("service", "")
        if not service:
            return web.Response(status=400, text="which one? /explain?service=NAME\n")
        method, headers = request.query.get("method", "GET"), request.query.getall("header", [])
        path = request.query.get("path", "")
        if path[:1] not in ("", "/"):
            return web.Response(status=400, text="a path begins with /\n")
        if any(":" not in header for header in headers):
            return web.Response(status=400, text="a header is NAME:VALUE\n")
        if not path and (headers or "method" in request.query):
            return web.Response(status=400, text="method and header are those of a request: which path?\n")
        question = Question(service=service, path=path, method=method, headers=tuple(headers))
        found = await source.explain(question)
        if found is None:
            return web.Response(status=404, text=f"nobody has asked for {service!r} through this sidecar yet\n")
        return _shown(request, found)

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=await source.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def drain(request: web.Request) -> web.Response:
        if "Origin" in request.headers:  # a page in somebody's browser, which may be anybody's
            return web.Response(status=403, text="requests of web pages (with an Origin) are refused\n")
        return web.json_response({"drained": await source.drain()})

    app = web.Application(middlewares=[_no_pages])
    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/ready", ready),
        ("GET", "/clusters", show_clusters),
        ("GET", "/stats", show_stats),
        ("GET", "/routes", show_routes),
        ("GET", "/explain", explain),
        ("GET", "/metrics", show_metrics),
        ("POST", "/drain", drain),
    ]
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    return app
