"""What `Client.resolve` follows: a service from its first lookup on, until many others were asked for since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeport.client.connection import Connection
from homeport.client.core.errors import Unavailable
from homeport.client.core.limits import RESOLVED_MAX
from homeport.client.subscription import Subscription


class Resolved:
    """Subscriptions by service, the least recently asked for first; bounded by `RESOLVED_MAX`."""

    def __init__(self, subscribe: Callable[[str], Subscription], connection: Connection) -> None:
        self._subscribe = subscribe
        self._connection = connection
        self._known: dict[str, Subscription] = {}

    def known(self, service: str) -> Subscription | None:
        """The subscription of a service that was asked for lately; by that, it is the last to be let go."""
        subscription = self._known.pop(service, None)
        if subscription is not None:
            self._known[service] = subscription
        return subscription

    async def first(self, service: str, timeout_s: float) -> Subscription:
        """The subscription of a service that was not, once something is known of it.

        Raises:
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            Unavailable: it has not said anything about the service within `timeout_s`.
        """
        subscription = self._subscribe(service)
        try:
            if not subscription.known:
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._connection.wait_link()
                        await subscription.wait_known(timeout_s)
                except TimeoutError:
                    pass
            if not subscription.known:
                why = self._connection.why_not
                raise Unavailable(f"nothing is known of service {service!r} after {timeout_s} s{why}")
        except BaseException:
            subscription.close()
            raise
        meanwhile = self._known.pop(service, None)
        if meanwhile is not None:
            meanwhile.close()
        self._known[service] = subscription
        if len(self._known) > RESOLVED_MAX:
            self._known.pop(next(iter(self._known))).close()
        return subscription
