"""What is looked at: a server that answers every health check with 200, and tells when they came.

`python -m benchmarks.load.checked PORT`; `GET /arrivals` answers the times since it was last asked, as JSON, seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final, cast

import uvloop

ARRIVALS: Final = "/arrivals"
_ASKED: Final = f"GET {ARRIVALS} ".encode()
_WELL: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class _Target(asyncio.Protocol):
    arrivals: list[float] = []  # noqa: RUF012 - of all connections together

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        if self._head.startswith(_ASKED):
            body = json.dumps(_Target.arrivals).encode()
            _Target.arrivals = []
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            _Target.arrivals.append(time.monotonic())
            self._transport.write(_WELL)
        self._transport.close()


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Target, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
