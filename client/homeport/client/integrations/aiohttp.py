"""aiohttp: `session.get("http://orders/…")`, balanced request by request.

    async with aiohttp.ClientSession(middlewares=[HomeportMiddleware(client)]) as session:
        async with session.get("http://orders/1") as response: ...

The middleware sends each request to an instance of its own, and to another one when the first could not be reached.
`HomeportResolver` is for sessions that cannot have it: it balances connections, which aiohttp then uses again.
"""

from __future__ import annotations

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from homeport.client.client import Client
from homeport.client.core.errors import HomeportError
from homeport.client.core.model import Instance
from homeport.client.integrations.sending import resolver_of, send, service_of
from homeport.client.resolver import Resolver

_BROKEN = (aiohttp.ClientConnectionError, TimeoutError)


class HomeportMiddleware:
    """A client middleware of aiohttp 3.12 and newer; hosts that name no service are left alone.

    Args:
        client: a started client of the same loop, or a resolver of it, for other policies than the default.

    Raises, from the request:
        Unavailable: no instance of the service is well.
    """

    def __init__(self, client: Client | Resolver) -> None:
        self._resolver = resolver_of(client)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        service = service_of(request.url.host)
        if service is None:
            return await handler(request)
        asked = request.url

        async def attempt(instance: Instance) -> aiohttp.ClientResponse:
            request.url = asked.with_host(instance.address).with_port(instance.port)  # the Host header stays
            return await handler(request)

        response: aiohttp.ClientResponse = await send(
            self._resolver, service, attempt, lambda answer: int(answer.status), _unreached, _BROKEN
        )
        return response


def _unreached(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


class HomeportResolver(AbstractResolver):
    """A resolver for `aiohttp.TCPConnector(resolver=..., use_dns_cache=False)`; other hosts go to aiohttp's own.

    Args:
        client: a started client of the same loop, or a resolver of it, which then stays open when this is closed.
    """

    def __init__(self, client: Client | Resolver) -> None:
        self._resolver = resolver_of(client)
        self._own = isinstance(client, Client)
        self._others = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """One instance with its own port, whatever port the URL names.

        Raises:
            OSError: no instance of the service is well.
        """
        service = service_of(host)
        if service is None:
            return await self._others.resolve(host, port, family)
        try:
            await self._resolver.follow(service)
            instance = self._resolver.pick(service).instance
        except HomeportError as error:
            raise OSError(str(error)) from error
        found = await self._others.resolve(instance.address, instance.port, family)
        return [{**each, "hostname": host} for each in found]

    async def close(self) -> None:
        if self._own:
            await self._resolver.close()
        await self._others.close()
