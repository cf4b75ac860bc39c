"""httpx: transports that send `http://orders/…` to an instance of `orders`.

    async with httpx.AsyncClient(transport=AsyncHomeportTransport(client)) as http:
        await http.get("http://orders/1")

Without a loop, the client is a blocking one:

    with blocking.Client("127.0.0.1:8300") as client, httpx.Client(transport=HomeportTransport(client)) as http:
        http.get("http://orders/1")
"""

from __future__ import annotations

import httpx

from homeport.client import blocking
from homeport.client.client import Client
from homeport.client.core.model import Instance
from homeport.client.integrations.sending import blocking_resolver_of, resolver_of, send, send_blocking, service_of
from homeport.client.resolver import Resolver

__all__ = ["AsyncHomeportTransport", "HomeportTransport"]

# Not `PoolTimeout`: that this client has no connection left says nothing of the instance.
_BROKEN = (
    httpx.NetworkError,
    httpx.ConnectTimeout,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.RemoteProtocolError,
)


def _unreached(error: Exception) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _status(response: httpx.Response) -> int:
    return response.status_code


def _sent_to(request: httpx.Request, instance: Instance) -> httpx.Request:
    """The same request, its Host header too, to another address."""
    url = request.url.copy_with(host=instance.address, port=instance.port)
    return httpx.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


class AsyncHomeportTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`; hosts that name no service go to `inner` as they are.

    Args:
        client: a started client of the same loop, or a resolver of it, which then stays open when this is closed.
        inner: what sends; default: httpx's own.
    """

    def __init__(self, client: Client | Resolver, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._resolver = resolver_of(client)
        self._own = isinstance(client, Client)
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        service = service_of(request.url.host)
        if service is None:
            return await self._inner.handle_async_request(request)

        async def attempt(instance: Instance) -> httpx.Response:
            return await self._inner.handle_async_request(_sent_to(request, instance))

        response: httpx.Response = await send(self._resolver, service, attempt, _status, _unreached, _BROKEN)
        return response

    async def aclose(self) -> None:
        if self._own:
            await self._resolver.close()
        await self._inner.aclose()


class HomeportTransport(httpx.BaseTransport):
    """For `httpx.Client`; hosts that name no service go to `inner` as they are.

    Args:
        client: a blocking client, or a resolver of it; several transports may share it.
        inner: what sends; default: httpx's own.
    """

    def __init__(self, client: blocking.Client | blocking.Resolver, inner: httpx.BaseTransport | None = None) -> None:
        self._resolver = blocking_resolver_of(client)
        self._own = isinstance(client, blocking.Client)
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        service = service_of(request.url.host)
        if service is None:
            return self._inner.handle_request(request)

        def attempt(instance: Instance) -> httpx.Response:
            return self._inner.handle_request(_sent_to(request, instance))

        response: httpx.Response = send_blocking(self._resolver, service, attempt, _status, _unreached, _BROKEN)
        return response

    def close(self) -> None:
        if self._own:
            self._resolver.close()
        self._inner.close()
