"""An aiohttp connector that connects through its event loop, so that `ClientSession` works over the memory network.

aiohttp's `TCPConnector` opens sockets itself; this one asks `loop.create_connection`, and lets the loop resolve names.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest

from homeport.mesh.testing.errors import NotVirtualError

if TYPE_CHECKING:
    from aiohttp.tracing import Trace


class MemoryConnector(aiohttp.BaseConnector):
    """Connects by `loop.create_connection`: plain HTTP, no proxies."""

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        if req.is_ssl() or req.proxy is not None:
            raise NotVirtualError("the memory network carries neither TLS nor proxied requests; test them in real time")
        try:
            async with asyncio.timeout(timeout.sock_connect):
                _, protocol = await self._loop.create_connection(
                    lambda: ResponseHandler(self._loop), req.url.raw_host or "", req.url.port or 80
                )
        except TimeoutError as error:
            if error.errno is None:
                raise
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return protocol


def connector_factory() -> aiohttp.BaseConnector:
    """A connector for the running loop: for `ClientSession(connector=)`."""
    return MemoryConnector()
