"""The least that an aiohttp server can do: answer every GET with the same bytes and headers; `--app` adds its router.

What our HTTP front costs beyond this is ours; what this costs is aiohttp's. The bytes are those of an answer that is
asked for once, `--like URL`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop
from aiohttp import web

_OWN: Final = frozenset({"Date", "Server", "Content-Length", "Connection"})  # headers that every server writes itself
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


def like(url: str) -> Handler:
    """A handler that answers everyone what `url` answers now."""
    with urllib.request.urlopen(url, timeout=10) as found:
        body: bytes = found.read()
        headers = {name: value for name, value in found.headers.items() if name not in _OWN}

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers=headers)

    return answer


async def serve(port: int, answer: Handler, *, as_app: bool) -> None:
    """Serve on a port of loopback until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner: web.BaseRunner
    if as_app:
        app = web.Application()
        app.router.add_get("/{folder}/{kind}/{name:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
    else:
        runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--app", action="store_true", help="an application with a route, not a bare server")
    parser.add_argument("--like", required=True, metavar="URL", help="where the bytes to answer are found")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.listen, like(options.like), as_app=options.app))


if __name__ == "__main__":
    main()
