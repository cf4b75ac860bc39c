"""The reverse proxy that people write in an afternoon: an aiohttp server and a `ClientSession`, round robin.

The baseline for the sidecar, run on uvloop, with pooled connections, forwarding and hop-by-hop headers done right, and
answers of known size passed on in one piece, which is the fastest that this way goes. It knows no health and retries
nothing. `python -m benchmarks.contenders.aiohttp_proxy --listen PORT --upstream HOST:PORT...`
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from itertools import cycle
from typing import Final

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_ADDED: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # what a session would put in by itself
_WHOLE_BYTES_MAX: Final = 256 * 1024  # longer answers, and those of unknown length, are streamed


class Proxy:
    """Passes every request on to the next of `upstreams`."""

    def __init__(self, upstreams: Sequence[str], session: aiohttp.ClientSession) -> None:
        self._upstreams = cycle(upstreams)
        self._session = session

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = _end_to_end(request.headers)
        headers["X-Forwarded-For"] = request.remote or "unknown"
        headers["X-Forwarded-Proto"] = request.scheme
        headers["X-Forwarded-Host"] = request.host
        headers.add("Via", "1.1 aiohttp")
        try:
            upstream = await self._session.request(
                request.method,
                f"http://{next(self._upstreams)}{request.rel_url.raw_path_qs}",
                headers=headers,
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            )
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"{type(error).__name__}\n")
        async with upstream:
            answer_headers = _end_to_end(upstream.headers)
            length = upstream.content_length
            if request.method != "HEAD" and length is not None and length <= _WHOLE_BYTES_MAX:
                body = await upstream.read()
                return web.Response(status=upstream.status, reason=upstream.reason, headers=answer_headers, body=body)
            answer = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=answer_headers)
            await answer.prepare(request)
            async for chunk in upstream.content.iter_any():
                await answer.write(chunk)
            return answer


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP | named)


async def serve(port: int, upstreams: Sequence[str]) -> None:
    """Serve on a port of loopback until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, skip_auto_headers=_ADDED) as session:
        runner = web.ServerRunner(web.Server(Proxy(upstreams, session).handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
        await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--upstream", nargs="+", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.listen, options.upstream))


if __name__ == "__main__":
    main()
