"""What the HTTP integrations share: which hosts are services, and sending a request to one instance after the other.

Instances come from a resolver, so a pick leaves the process only for a service's first request, and what becomes of
requests is counted: an instance that failed lately is the second choice, and one that goes on failing none at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from homeport.client import blocking
from homeport.client.client import Client
from homeport.client.core.model import Instance
from homeport.client.picks import Pick
from homeport.client.resolver import Resolver

DOMAIN: Final = ".service.homeport"
TRIES: Final = 3  # of a request that reached nobody: with more, a service that is gone takes long to say so
SICK: Final = 500  # answers from here on speak against the instance

Errors = tuple[type[Exception], ...]


def service_of(host: str | None) -> str | None:
    """The service that a URL's host names: `orders` or `orders.service.homeport`; None for any other host.

    Names with dots, `localhost` and addresses are not services.
    """
    if not host:
        return None
    name = host.lower().removesuffix(".")
    if name.endswith(DOMAIN):
        return name.removesuffix(DOMAIN)
    return None if "." in name or ":" in name or name == "localhost" else name


def resolver_of(source: Client | Resolver) -> Resolver:
    """A resolver, made of a client if need be."""
    return source.resolver() if isinstance(source, Client) else source


def blocking_resolver_of(source: blocking.Client | blocking.Resolver) -> blocking.Resolver:
    """A resolver, made of a client if need be."""
    return source.resolver() if isinstance(source, blocking.Client) else source


async def send(
    resolver: Resolver,
    service: str,
    attempt: Callable[[Instance], Awaitable[Any]],
    status: Callable[[Any], int],
    unreached: Callable[[Exception], bool],
    broken: Errors,
) -> Any:
    """Let `attempt` send a request to an instance, and to another one if it was `unreached`, so that nobody got it.

    Args:
        status: of an answer.
        broken: errors that speak against the instance; others are the caller's own.

    Raises:
        Unavailable: no instance is well, or nothing is known of the service.
        Exception: what the last attempt raised.
    """
    await resolver.follow(service)
    tried: list[Pick] = []
    while True:
        picked = resolver.pick(service, tried=tried)
        tried.append(picked)
        with picked as instance:
            try:
                answer = await attempt(instance)
            except Exception as error:
                if not _goes_on(error, picked, len(tried), unreached, broken):
                    raise
                continue
            _answered(picked, status(answer))
            return answer


def send_blocking(
    resolver: blocking.Resolver,
    service: str,
    attempt: Callable[[Instance], Any],
    status: Callable[[Any], int],
    unreached: Callable[[Exception], bool],
    broken: Errors,
) -> Any:
    """The same in the calling thread; see `send`."""
    tried: list[Pick] = []
    while True:
        picked = resolver.pick(service, tried=tried)
        tried.append(picked)
        with picked as instance:
            try:
                answer = attempt(instance)
            except Exception as error:
                if not _goes_on(error, picked, len(tried), unreached, broken):
                    raise
                continue
            _answered(picked, status(answer))
            return answer


def _goes_on(
    error: Exception, picked: Pick, tries: int, unreached: Callable[[Exception], bool], broken: Errors
) -> bool:
    """Say what an error means for the instance; return whether another one may be asked."""
    if unreached(error):
        picked.failed(refused=True)
        return tries < TRIES
    if isinstance(error, broken):
        picked.failed()
    else:
        picked.unknown()
    return False


def _answered(picked: Pick, status: int) -> None:
    if status >= SICK:
        picked.failed(status=status)
