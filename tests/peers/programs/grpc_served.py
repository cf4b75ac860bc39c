"""A gRPC server that says its process id to whoever calls: `grpc_served.py PORT`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def who(_request: bytes, _context: Any) -> bytes:
    return str(os.getpid()).encode()


async def each(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield bytes([number % 256]) * 10_000


async def main() -> None:
    server = grpc.aio.server()
    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Each": grpc.unary_stream_rpc_method_handler(each),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("homeport.Test", handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
