"""httpx: transports that send `http://orders/…` to an instance of `orders`.

    async with httpx.AsyncClient(transport=AsyncHomeportTransport(client)) as http:
        await http.get("http://orders/1")

Without a loop, `EndpointsThread` follows the registry:

    with EndpointsThread("127.0.0.1:8300") as endpoints, httpx.Client(transport=HomeportTransport(endpoints)) as http:
        http.get("http://orders/1")

Hosts that name no service go where they would without.
"""

from __future__ import annotations

import httpx

from homeport.client.client import Client
from homeport.client.integrations.endpoints import Endpoint, Endpoints, EndpointsThread, service_of

__all__ = ["AsyncHomeportTransport", "EndpointsThread", "HomeportTransport"]

_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)


def _sent_to(request: httpx.Request, endpoint: Endpoint) -> httpx.Request:
    """The same request, its Host header too, to another address."""
    url = request.url.copy_with(host=endpoint.instance.address, port=endpoint.instance.port)
    return httpx.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


class AsyncHomeportTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`; hosts that name no service go to `inner` as they are.

    Args:
        client: a started client, of the same loop.
        inner: what sends; default: httpx's own.
    """

    def __init__(self, client: Client, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._endpoints = Endpoints(client)
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        service = service_of(request.url.host)
        if service is None:
            return await self._inner.handle_async_request(request)

        async def attempt(endpoint: Endpoint) -> httpx.Response:
            return await self._inner.handle_async_request(_sent_to(request, endpoint))

        response: httpx.Response = await self._endpoints.send(service, attempt, _UNREACHED)
        return response

    async def aclose(self) -> None:
        self._endpoints.close()
        await self._inner.aclose()


class HomeportTransport(httpx.BaseTransport):
    """For `httpx.Client`; hosts that name no service go to `inner` as they are.

    Args:
        endpoints: started; several transports may share them, which are closed by whoever made them.
        inner: what sends; default: httpx's own.
    """

    def __init__(self, endpoints: EndpointsThread, inner: httpx.BaseTransport | None = None) -> None:
        self._endpoints = endpoints
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        service = service_of(request.url.host)
        if service is None:
            return self._inner.handle_request(request)
        response: httpx.Response = self._endpoints.send(
            service,
            lambda endpoint: self._inner.handle_request(_sent_to(request, endpoint)),
            lambda error: isinstance(error, _UNREACHED),
        )
        return response

    def close(self) -> None:
        self._inner.close()
