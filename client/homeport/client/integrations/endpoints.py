"""What all integrations share: which names are services, and which instance takes the next request.

The instances come from the client's own watch, so a pick leaves the process only for a service's first request. Picks
are two-choice least request over what is well; an endpoint that failed lately is the second choice until it answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, Self

from homeport.client.client import Client
from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import LeastRequest
from homeport.client.core.errors import Closed, Unavailable
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import Instance, InstanceKey, ServiceEvent
from homeport.client.randomness import own_rng
from homeport.client.subscription import Subscription

DOMAIN: Final = ".service.homeport"
TRIES: Final = 3  # of a request that reached nobody: with more, a service that is gone takes long to say so
FOLLOWED_MAX: Final = 1000  # services; whoever asks for more of them does not ask by name but by accident


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


class Endpoint:
    """An instance and how it has done. Whoever sends it a request says so by `begin`, and then `end`."""

    __slots__ = ("active", "instance", "suspect")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.active = 0
        self.suspect = False  # it could not be reached at the last try

    @property
    def weight(self) -> float:
        return self.instance.weight

    def begin(self) -> None:
        self.active += 1

    def end(self, *, failed: bool) -> None:
        """The request has its answer, or could not be sent."""
        self.active -= 1
        self.suspect = failed


class _Followed:
    """One service: its endpoints, and the choice among them, made anew when they change."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self._endpoints: dict[InstanceKey, Endpoint] = {}
        self.choice: LeastRequest[Endpoint] = LeastRequest()
        subscription.listen(self.changed)

    def changed(self, _event: ServiceEvent | None = None) -> None:
        kept: dict[InstanceKey, Endpoint] = {}
        for key, instance in self.subscription.instances.items():
            known = self._endpoints.get(key)
            moved = known is None or (known.instance.address, known.instance.port) != (instance.address, instance.port)
            endpoint = kept[key] = Endpoint(instance) if known is None or moved else known
            endpoint.instance = instance
        self._endpoints = kept
        self.choice = LeastRequest(each for each in kept.values() if each.instance.available)


class Endpoints:
    """Picks endpoints of services by their names, on the client's loop.

    Args:
        client: a started client.
        rng: the source of choices.
    """

    def __init__(self, client: Client, *, rng: Rng | None = None) -> None:
        self._client = client
        self._rng: Rng = rng or own_rng()
        self._followed: dict[str, _Followed] = {}

    async def pick(self, service: str, *, tried: Collection[Endpoint] = (), timeout_s: float = CALL_S) -> Endpoint:
        """An endpoint of the service that is well, and none of `tried` while there are others.

        Raises:
            Unavailable: no instance is well, or nothing is known of the service within `timeout_s`.
            HomeportError: what `Client.subscribe` raises.
        """
        followed = await self._follow(service, timeout_s)
        endpoint = followed.choice.pick(self._rng, tried) or followed.choice.pick(self._rng)
        if endpoint is None:
            count = len(followed.subscription.instances)
            well = f"none of its {count} instances is well" if count else "it has no instance"
            raise Unavailable(f"nobody serves {service!r}: {well}")
        return endpoint

    async def send(
        self, service: str, attempt: Callable[[Endpoint], Awaitable[Any]], unreached: tuple[type[BaseException], ...]
    ) -> Any:
        """Let `attempt` send a request to an endpoint, and to another one if it was `unreached`, so that nobody got it.

        Raises:
            Unavailable: no instance is well.
            BaseException: what the last attempt raised.
        """
        tried: list[Endpoint] = []
        while True:
            endpoint = await self.pick(service, tried=tried)
            tried.append(endpoint)
            endpoint.begin()
            failed = False
            try:
                return await attempt(endpoint)
            except unreached:
                failed = True
                if len(tried) == TRIES:
                    raise
            finally:
                endpoint.end(failed=failed)

    async def _follow(self, service: str, timeout_s: float) -> _Followed:
        followed = self._followed.pop(service, None)
        if followed is None:
            followed = _Followed(self._client.subscribe(service))
            try:
                known = await followed.subscription.wait_known(timeout_s)
            except BaseException:
                followed.subscription.close()
                raise
            if not known:
                followed.subscription.close()
                raise Unavailable(f"nothing is known of service {service!r} after {timeout_s} s")
            followed.changed()
            meanwhile = self._followed.pop(service, None)
            if meanwhile is not None:
                followed.subscription.close()
                followed = meanwhile
        self._followed[service] = followed  # least recently asked for first
        if len(self._followed) > FOLLOWED_MAX:
            self._followed.pop(next(iter(self._followed))).subscription.close()
        return followed

    def close(self) -> None:
        """Follow nothing any more. Idempotent."""
        for followed in self._followed.values():
            followed.subscription.close()
        self._followed.clear()


class EndpointsThread:
    """Endpoints for code that blocks: a client on a loop in a thread of its own. A plain context manager.

    Args:
        addresses: as for `Client`.
        client: instead of addresses, what makes the client, called on the thread's loop.
        token: as for `Client`.
    """

    def __init__(self, *addresses: str, client: Callable[[], Client] | None = None, token: str = "") -> None:
        self._make = client or (lambda: Client(*addresses, token=token))
        self._loop: asyncio.AbstractEventLoop  # made by `start`: a loop does not survive a fork
        self._thread: threading.Thread | None = None
        self._started = False
        self._client: Client
        self._endpoints: Endpoints

    def start(self) -> None:
        """Start the thread; connecting goes on behind it."""
        if self._started:
            raise Closed("these endpoints start once")
        self._started = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="homeport endpoints", daemon=True)
        self._thread.start()
        self._run(self._begin())

    async def _begin(self) -> None:
        self._client = self._make()
        await self._client.start()
        self._endpoints = Endpoints(self._client)

    def _run(self, work: Any) -> Any:
        if self._thread is None:
            work.close()
            raise Closed("these endpoints were not started, or are closed; use with")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def pick(self, service: str, *, tried: Collection[Endpoint] = ()) -> Endpoint:
        """See `Endpoints.pick`."""
        endpoint: Endpoint = self._run(self._picked(service, tried))
        return endpoint

    async def _picked(self, service: str, tried: Collection[Endpoint]) -> Endpoint:
        return await self._endpoints.pick(service, tried=tried)

    def send(self, service: str, attempt: Callable[[Endpoint], Any], unreached: Callable[[Exception], bool]) -> Any:
        """See `Endpoints.send`; `attempt` runs in the calling thread."""
        tried: list[Endpoint] = []
        while True:
            endpoint = self.pick(service, tried=tried)
            tried.append(endpoint)
            self._loop.call_soon_threadsafe(endpoint.begin)  # counters move on the loop alone
            failed = False
            try:
                return attempt(endpoint)
            except Exception as error:
                failed = unreached(error)
                if not failed or len(tried) == TRIES:
                    raise
            finally:
                self._loop.call_soon_threadsafe(_ended, endpoint, failed)

    def close(self) -> None:
        """Stop the thread. Idempotent."""
        if self._thread is None:
            return
        self._run(self._end())
        thread, self._thread = self._thread, None
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._endpoints.close()
        await self._client.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _ended(endpoint: Endpoint, failed: bool) -> None:
    endpoint.end(failed=failed)
