"""The app of these tests, a program: answers every request with its id, and writes each id down first, as a witness.

Its manners are in the environment variable MANNERS: `good`; `resets` (an idle connection is reset a moment after each
answer); `slow` (a quarter of a second for each answer); `short` (promises more bytes than it sends, and hangs up);
`long` (sends more bytes than it promises).
"""

from __future__ import annotations

import asyncio
import os
import random

PORT = int(os.environ["PORT"])
MANNERS = os.environ.get("MANNERS", "good")
WITNESS = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
SLOW_S = 0.25
RESET_S_MAX = 0.01

rng = random.Random(1)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            await reader.readexactly(int(fields.get("content-length", "0")))
            request_id = fields.get("x-request-id")
            if request_id is None:  # a health check
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            os.write(WITNESS, f"{request_id}\n".encode())
            if MANNERS == "slow":
                await asyncio.sleep(SLOW_S)
            body = request_id.encode()
            promised = len(body) + (MANNERS == "short")
            rest = b"and more" if MANNERS == "long" else b""
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b%b" % (promised, body, rest))
            if MANNERS == "short":
                break
            if MANNERS == "resets":
                loop.call_later(rng.uniform(0, RESET_S_MAX), writer.transport.abort)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
