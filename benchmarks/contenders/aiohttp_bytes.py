"""The least that an aiohttp server can do: answer every GET with the same bytes and headers; `--app` adds its router.

What our HTTP front costs beyond this is ours; what this costs is aiohttp's.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Final

import uvloop
from aiohttp import web

# What `GET /v1/kv/key` answers, but for the numbers.
BODY: Final = b'[{"LockIndex":0,"Key":"key","Flags":0,"Value":"dmFsdWU=","CreateIndex":2,"ModifyIndex":2}]'
HEADERS: Final = {
    "Content-Type": "application/json",
    "X-Consul-Index": "2",
    "X-Consul-KnownLeader": "true",
    "X-Consul-LastContact": "0",
    "X-Consul-Effective-Consistency": "leader",
}


async def answer(_request: web.BaseRequest) -> web.Response:
    """The same for everyone."""
    return web.Response(body=BODY, headers=HEADERS)


async def serve(port: int, *, as_app: bool) -> None:
    """Serve on a port of loopback until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner: web.BaseRunner
    if as_app:
        app = web.Application()
        app.router.add_get("/v1/kv/{key}", answer)
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
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.listen, as_app=options.app))


if __name__ == "__main__":
    main()
