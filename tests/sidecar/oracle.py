"""The reverse proxy one would otherwise write, of aiohttp's server and client: the fast path must agree with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict

HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "transfer-encoding", "upgrade", "content-length",
}  # fmt: skip


def end_to_end(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """The headers that a proxy passes on."""
    nominated = {
        token.strip().lower() for value in headers.getall("Connection", []) for token in value.split(",") if token
    }
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP | nominated)


@asynccontextmanager
async def plain_proxy(upstream: str) -> AsyncIterator[str]:
    """Forward everything to `upstream`; yields the address of the proxy."""
    async with ClientSession(
        auto_decompress=False,
        cookie_jar=DummyCookieJar(),
        connector=TCPConnector(limit=0),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
    ) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read() if request.body_exists else None
            async with session.request(
                request.method,
                f"http://{upstream}{request.raw_path}",
                headers=end_to_end(CIMultiDict(request.headers)),
                data=body,
                allow_redirects=False,
            ) as answer:
                headers = end_to_end(CIMultiDict(answer.headers))
                return web.Response(status=answer.status, headers=headers, body=await answer.read())

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
