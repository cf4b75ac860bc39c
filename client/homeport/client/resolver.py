"""The cached resolver: services are followed, and from then on looked up and picked from without leaving the process.

    async with client.resolver("orders") as resolver:
        resolver.lookup("orders")                       # a tuple of instances, at the price of a dict access
        with resolver.pick("orders") as instance: ...   # balanced; the block's end is the outcome

What is known stays when the registry is lost, and says how old it is; with a `state_file` it also outlives the process.
A registry that comes back empty does not empty it at once (see `Subscription.held`).

`lookup`, `pick`, `report` and `state` may be called from any thread. Everything else belongs to the client's loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, Self, get_args

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Balancing, HashOn, Outliers, Subset
from homeport.client.core.balancing.settings import PolicyName
from homeport.client.core.errors import (
    Closed,
    InvalidArgument,
    Stale,
    Unavailable,
    WrongLoop,
    again,
)
from homeport.client.core.group import Endpoint
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import Instance
from homeport.client.following import Following
from homeport.client.last_known import confirmed
from homeport.client.picks import Followed, Pick
from homeport.client.randomness import own_rng

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

POLICIES: Final[tuple[str, ...]] = get_args(PolicyName)
_NOBODY_SAID: Final = "nothing is known of service {!r} yet: await resolver.follow({!r}) first"


_resolvers: Final[weakref.WeakSet[Resolver]] = weakref.WeakSet()


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """How a resolver stands with one service.

    Attributes:
        known: whether anything was ever said of it, by the registry or by a state file.
        live: whether the registry confirms it right now.
        held: whether instances that a reconnected registry does not know (yet) are kept in use.
        age_s: seconds since the registry last confirmed it; 0.0 while it does.
        revision: the store's revision that it is of.
        instances: all instances, whatever their status.
        ejected: how many of them are left alone because of their outcomes.
    """

    service: str
    known: bool
    live: bool
    held: bool
    age_s: float
    revision: int
    instances: tuple[Instance, ...]
    ejected: int


class Resolver:
    """Follows services for a program that asks for them often; made by `Client.resolver`, closed by `close`.

    It begins with its first use; entering it (or `start`) also waits for the services it was made with.
    """

    def __init__(
        self,
        client: Client,
        services: Collection[str],
        *,
        policy: PolicyName,
        zone: str,
        subset: Subset | None,
        slow_start_s: float,
        panic: float,
        outliers: Outliers | None,
        max_age_s: float | None,
        state_file: str | os.PathLike[str] | None,
        rng: Rng | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise InvalidArgument(f"policy is {policy!r}; allowed: {', '.join(POLICIES)}", field="policy")
        if max_age_s is not None and not max_age_s > 0:
            raise InvalidArgument(
                f"max_age_s is {max_age_s}; allowed: more than 0, or None for ever", field="max_age_s"
            )
        self._balancing = Balancing(
            policy=policy,
            zone=zone,
            subset=subset,
            slow_start_s=slow_start_s,
            panic=panic,
            hash_on=HashOn(source=True) if policy == "maglev" else None,  # `pick` is told the key itself
        )
        self._services = tuple(services)
        self._max_age_s = max_age_s
        self._rng: Rng = rng or own_rng()
        self._closed = ""  # why it cannot be used any more
        self._following = following = Following(
            client,
            balancing=self._balancing,
            outliers=outliers,
            max_age_s=max_age_s,
            state_file=state_file,
            rng=self._rng,
        )
        self._followed = following.services
        self._found = following.found
        self._choices = following.choices
        _resolvers.add(self)

    # --- from any thread ----------------------------------------------------------------------------------------

    def lookup(self, service: str) -> tuple[Instance, ...]:
        """The instances of a followed service that can take traffic, from memory.

        A service that is not followed yet begins to be, so that asking again a moment later may succeed.

        Raises:
            Stale: what is known was confirmed longer than `max_age_s` ago.
            Unavailable: nothing is known of the service (yet); `follow` waits for it.
            InvalidArgument: no service can have this name.
            Closed: the resolver or its client is closed, or the client was not started.
        """
        try:
            return self._found[service]
        except KeyError:
            pass
        self._expect(service)
        found = self._found.get(service)
        if found is None:  # another thread has forgotten it meanwhile, or it has just become too old
            raise Unavailable(_NOBODY_SAID.format(service, service))
        return found

    def pick(self, service: str, key: str | bytes | None = None, *, tried: Collection[Pick] = ()) -> Pick:
        """Choose an instance of a followed service for one piece of work, from memory.

        Args:
            key: what belongs together goes to one instance, with the policy `maglev`; others do without.
            tried: earlier picks for the same work, avoided while there are others.

        Raises:
            InvalidArgument: a key for a policy that heeds none, or no service can have this name.
            Stale: what is known was confirmed longer than `max_age_s` ago.
            Unavailable: no instance is well, or nothing is known of the service (yet); `follow` waits for it.
            Closed: the resolver or its client is closed, or the client was not started.
        """
        try:
            followed = self._choices[service]
        except KeyError:
            self._expect(service)
            again_followed = self._choices.get(service)
            if again_followed is None:  # as in `lookup`
                raise Unavailable(_NOBODY_SAID.format(service, service)) from None
            followed = again_followed
        endpoint = followed.choose(self._rng) if key is None and not tried else self._picked(followed, key, tried)
        if endpoint is None:
            raise _nobody(service, followed)
        return Pick(endpoint, followed)

    def _picked(self, followed: Followed, key: str | bytes | None, tried: Collection[Pick]) -> Endpoint | None:
        group = followed.group
        if key is not None:
            if self._balancing.policy != "maglev":
                raise InvalidArgument(
                    f"the policy {self._balancing.policy} heeds no key; make the resolver with policy='maglev'",
                    field="key",
                )
            key = key.encode() if isinstance(key, str) else key
        with self._following.lock:
            now = self._following.now()
            if not tried:
                return group.choice.pick(self._rng, (), now, key)
            return group.pick_other(self._rng, [pick._endpoint for pick in tried], now, key)

    def report(
        self, instance: Instance, *, ok: bool, status: int = 0, refused: bool = False, took_s: float | None = None
    ) -> bool:
        """Say how an instance did, for work that was not done in a pick's block.

        Args:
            ok: whether it did well.
            status: of an answer that no healthy server gives (500 to 599); 0: there was no answer.
            refused: no connection came to be.
            took_s: how long a good answer took, for the policy `peak-ewma`.

        Returns:
            Whether the instance is still one that this resolver picks from.
        """
        followed = self._followed.get(instance.service)
        endpoint = followed.group.endpoints.get(instance.key) if followed is not None else None
        if followed is None or endpoint is None:
            return False
        with self._following.lock:
            followed.ended(endpoint, ok, status, refused, took_s)
        return True

    def state(self, service: str) -> ServiceState:
        """How it stands with a service; one that is not followed is simply not known."""
        followed = self._followed.get(service)
        if followed is None:
            return ServiceState(
                service=service, known=False, live=False, held=False, age_s=0.0, revision=0, instances=(), ejected=0
            )
        subscription = followed.subscription
        return ServiceState(
            service=service,
            known=subscription.known,
            live=subscription.live,
            held=subscription.held,
            age_s=subscription.age_s(),
            revision=subscription.revision,
            instances=tuple(subscription.instances.values()),
            ejected=followed.group.ejected,
        )

    def services(self) -> tuple[str, ...]:
        """The services that are followed, in the order in which they were first asked for."""
        return tuple(self._followed)

    # --- on the client's loop -----------------------------------------------------------------------------------

    async def follow(self, service: str, *, timeout_s: float = CALL_S) -> None:
        """Follow a service from now on, and return when it is known: at once, if it was asked for before.

        Raises:
            Unavailable: the registry has not said anything about it within `timeout_s`; it is followed all the same.
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            LimitExceeded: too many services are followed that have instances.
            Closed: the resolver or its client is closed, or the client was not started.
        """
        if service in self._choices:
            return
        subscription = (self._followed.get(service) or self._follow(service)).subscription
        if not await subscription.wait_known(timeout_s):
            raise Unavailable(f"nothing is known of service {service!r} after {timeout_s} s")

    def forget(self, service: str) -> bool:
        """Follow a service no more; False if it was not followed."""
        return self._following.forget(service)

    async def start(self, timeout_s: float = CALL_S) -> None:
        """Begin with the state file, if there is one, and wait until the services named at the making are known.

        It does not fail for want of a registry: what is not known after `timeout_s` goes to the log.

        Raises:
            InvalidArgument: no service can have one of these names.
            RequestError: the registry refuses to tell.
            Closed: the client is closed, or was not started.
        """
        self.begin()
        recalled = [each.subscription for each in self._followed.values()]
        for service in self._services:
            if service not in self._followed:
                self._follow(service)
        try:
            async with asyncio.timeout(timeout_s):
                for service in self._services:
                    await self.follow(service, timeout_s=timeout_s)
        except (TimeoutError, Unavailable):
            unknown = [service for service in self._services if not self._followed[service].subscription.known]
            _log.warning("no registry has said anything yet of %s", ", ".join(unknown))
        if recalled:
            await confirmed(recalled)

    async def close(self) -> None:
        """Save the state file, and follow nothing any more. Idempotent."""
        if self._closed:
            return
        self._closed = "this resolver is closed"
        self._found.clear()
        self._choices.clear()
        await self._following.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def begin(self) -> None:
        """Begin without waiting for anything, with the state file if there is one. Idempotent."""
        if self._closed:
            raise Closed(self._closed)
        self._following.begin()

    def _follow(self, service: str) -> Followed:
        self.begin()
        return self._following.follow(service)

    def _expect(self, service: str) -> None:
        """Return when a service can be used after all; one that is new is followed from now on.

        Raises:
            HomeportError: why it cannot.
        """
        if self._closed:
            raise Closed(self._closed)
        followed = self._followed.get(service)
        if followed is None:
            if self._following.ask_from_thread(self._follow, service):
                raise Unavailable(_NOBODY_SAID.format(service, service))
            try:
                followed = self._follow(service)
            except WrongLoop:
                raise WrongLoop("this resolver has not begun: start it on the client's loop") from None
        subscription = followed.subscription
        if not subscription.known:
            raise again(subscription.error or Unavailable(_NOBODY_SAID.format(service, service)))
        if service not in self._found:
            age_s = subscription.age_s()
            raise Stale(
                f"what is known of {service!r} was confirmed {age_s:.1f} s ago; allowed: {self._max_age_s} s",
                age_s=age_s,
            )


def _forked() -> None:
    """In the child of a fork nobody keeps what was known current: it must not be taken for the truth."""
    for resolver in tuple(_resolvers):
        resolver._closed = "this resolver was made before a fork; make one in the child"
        resolver._found.clear()
        resolver._choices.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _nobody(service: str, followed: Followed) -> Unavailable:
    count = len(followed.subscription.instances)
    well = f"none of its {count} instances is well" if count else "it has no instance"
    return Unavailable(f"nobody serves {service!r}: {well}")
