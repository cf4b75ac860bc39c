"""The client: everything that a program asks of a registry, over one connection that is kept up.

`async with Client("host:8300") as client:` starts connecting and never fails for want of a registry; each call waits
for a link as long as its own timeout allows. Watches and registrations follow the client from link to link.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from homeport.client.budget import Budget
from homeport.client.connection import Connection
from homeport.client.coordination import Barrier, DoubleBarrier, Election, Lock, Queue, Semaphore, Session
from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Outliers, Subset
from homeport.client.core.balancing.settings import PolicyName
from homeport.client.core.errors import HomeportError, InvalidArgument, Unavailable
from homeport.client.core.limits import AGAIN_AT_ONCE, CALL_S, FAREWELL_S, RENEWED_S, RENEWED_SHARE
from homeport.client.core.messages import Deregister, Renew, Renewed, Request, Services, Welcome
from homeport.client.core.model import TTL_S_DEFAULT, Check, Instance, ServiceEvent
from homeport.client.kv import Kv
from homeport.client.leases import Farewells, Lease
from homeport.client.randomness import own_rng
from homeport.client.registration import Registration
from homeport.client.renewals import Renewals
from homeport.client.resolved import Resolved
from homeport.client.resolver import Resolver
from homeport.client.rpc import StreamTransport
from homeport.client.subscription import Subscription
from homeport.client.transport import Link, Transport
from homeport.client.watching import Watches

R = TypeVar("R")

ADDRESS_DEFAULT: Final = "127.0.0.1:8300"
_ID_RANGE: Final = 1 << 32  # of what makes an id unique that has no port to do so


class Client:
    """A registry's client; an async context manager, for use on one event loop.

    Args:
        addresses: where registries are, "host:port" or "unix:/path", tried in turn; default 127.0.0.1:8300.
        transport: instead of addresses, any way to open links.
        token: what to present to the registry.
        name: how this client calls itself, for the registry's listings.
        rng: the source of jitter.

    Attributes:
        kv: the key-value store.

    Raises:
        InvalidArgument: an address is malformed.
    """

    def __init__(
        self,
        *addresses: str,
        transport: Transport | None = None,
        token: str = "",
        name: str = "",
        rng: Rng | None = None,
    ) -> None:
        if addresses and transport is not None:
            raise InvalidArgument("give addresses or a transport, not both")
        transports: list[Transport] = (
            [transport]
            if transport is not None
            else [StreamTransport(address, token=token, name=name) for address in addresses or (ADDRESS_DEFAULT,)]
        )
        self.rng: Rng = rng or own_rng()
        self.watches: Watches = Watches()
        self._connection = self.watches.connection = Connection(transports, self.rng, self.watches)
        self._resolved = Resolved(self.subscribe, self._connection)
        self.kv: Kv = Kv(self)
        self.farewells: Farewells = Farewells()
        self.leases: dict[Lease, None] = {}  # those that are renewed
        self.renewals: Renewals = Renewals(self._renew, self.rng)
        self.registering_again: asyncio.Semaphore = asyncio.Semaphore(AGAIN_AT_ONCE)

    async def start(self) -> None:
        """Start connecting; the same as entering the context.

        Raises:
            Closed: it was started before.
        """
        await self._connection.start()

    async def close(self) -> None:
        """Close the link; calls under way fail with `ConnectionLost`, later ones with `Closed`. Idempotent.

        What is being given back (leases, locks) has two seconds for that; leases that are still held are lost.

        Raises:
            WrongLoop: another loop runs than the one that started it.
        """
        if self._connection.outlives_its_loop():
            return
        try:
            await self.farewells.close(FAREWELL_S if self.connected else 0.0)
        finally:
            for lease in tuple(self.leases):
                lease.abandon("the client is closed")
            await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # --- the connection -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a link to a registry."""
        return self._connection.link is not None

    @property
    def welcome(self) -> Welcome | None:
        """What the registry said of itself, while connected."""
        return self._connection.link.welcome if self._connection.link is not None else None

    @property
    def store_id(self) -> str:
        """The history that the last link showed, which is what revisions known here belong to; "" before the first."""
        return self._connection.store_id

    @property
    def link_epoch(self) -> int:
        """How many links there have been."""
        return self._connection.link_epoch

    def expect_usable(self) -> None:
        """Return if this client can be used.

        Raises:
            Closed: it is closed, or was not started, or belongs to the process that this one was forked from.
            WrongLoop: another event loop runs than the one that started it, or none.
        """
        self._connection.expect_usable()

    async def wait_connected(self, timeout_s: float = CALL_S) -> bool:
        """Return whether there is a link, waiting for it up to `timeout_s`, also while a registry refuses this client.

        Raises:
            Closed: this client is closed, or was not started.
        """
        return await self._connection.wait_connected(timeout_s)

    async def wait_relinked(self, epoch: int, timeout_s: float) -> bool:
        """Return whether there is another link than number `epoch`, waiting for one up to `timeout_s`.

        Raises:
            Closed: this client is closed, or was not started.
        """
        return await self._connection.wait_relinked(epoch, timeout_s)

    async def wait_link(self, timeout_s: float | None = None) -> Link:
        """The present link to a registry, or the next, waiting for it up to `timeout_s` (default: for ever).

        Raises:
            Unavailable: there was none in time.
            RequestError: the registries refuse this client.
            Closed: this client is closed, or was not started.
        """
        return await self._connection.wait_link(timeout_s)

    def go_elsewhere(self, epoch: int, error: HomeportError) -> None:
        """Give up link number `epoch`, if there are other registries, because of what this one cannot do now."""
        self._connection.go_elsewhere(epoch, error)

    async def call(self, request: Request[R], *, timeout_s: float = CALL_S) -> R:
        """Ask the registry anything of `homeport.client.core.messages`.

        Raises:
            RequestError: the registry refuses; the message says why and what is allowed. At once, if what it
                refuses is this client (`Unauthorized`), which goes on trying in the background.
            Unavailable: no answer within `timeout_s`; `ConnectionLost` if a write may have happened all the same.
            Closed: this client is closed, or was not started.
        """
        return await self._connection.call(request, timeout_s)

    async def _renew(self, request: Renew, ttl_s: float) -> Renewed:
        """Renew, at another registry if this one is slow to answer: it may stand still, and no other know of it yet.

        With long TTLs there is time to wait: it may only be busy, and all who go elsewhere make the others so too. So
        do those whose leases it is taking over, which is writing.
        """
        if request.moved:
            return await self.call(request)
        late_s = max(RENEWED_S, ttl_s * RENEWED_SHARE)
        late = Unavailable(f"a renewal was not answered within {late_s:.3g} s")
        timer = asyncio.get_running_loop().call_later(late_s, self.go_elsewhere, self.link_epoch, late)
        try:
            return await self.call(request)
        finally:
            timer.cancel()

    # --- leases -------------------------------------------------------------------------------------------------

    def lease(self, ttl_s: float = TTL_S_DEFAULT) -> Lease:
        """A lease for as long as the returned one is entered (or started); keys that are put on it end with it.

        Raises:
            InvalidArgument: no lease can have this TTL.
        """
        return Lease(self, ttl_s, self.rng)

    def session(self, ttl_s: float = TTL_S_DEFAULT) -> Session:
        """A lease that several locks, permits, candidacies and claims share; see `Session`.

        Raises:
            InvalidArgument: no lease can have this TTL.
        """
        return Session(self, ttl_s, self.rng)

    # --- coordination -------------------------------------------------------------------------------------------

    def lock(
        self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None, value: bytes = b""
    ) -> Lock:
        """A lock, held for as long as the returned object is entered; entering waits for its turn.

        Args:
            name: the lock's; its keys stand under `<name>/`.
            ttl_s: how long it stays held when this process is gone; default: 10 s.
            session: in place of a TTL, the lease to hold it on.
            value: what stands in its key, for people to read.

        Raises:
            InvalidArgument: the name is empty, no lease can have this TTL, or both it and a session are given.
        """
        return Lock(self, name, ttl_s=ttl_s, session=session, value=value, rng=self.rng)

    def semaphore(
        self, name: str | bytes, permits: int, *, ttl_s: float | None = None, session: Lease | None = None
    ) -> Semaphore:
        """One of so many permits, held for as long as the returned object is entered; arguments as for `lock`.

        Args:
            permits: how many there are; all who use the name must say the same.
        """
        return Semaphore(self, name, permits, ttl_s=ttl_s, session=session, rng=self.rng)

    def election(
        self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None, value: bytes = b""
    ) -> Election:
        """An election to stand for, or to observe; arguments as for `lock`.

        Args:
            value: what a leader says of itself, its address say.
        """
        return Election(self, name, ttl_s=ttl_s, session=session, value=value, rng=self.rng)

    def barrier(self, name: str | bytes) -> Barrier:
        """A gate that holds up everyone who waits while it is held; `name` is its key."""
        return Barrier(self, name, self.rng)

    def double_barrier(
        self, name: str | bytes, count: int, *, ttl_s: float | None = None, session: Lease | None = None
    ) -> DoubleBarrier:
        """A barrier that lets a group in when `count` are there, and out when all leave; arguments as for `lock`."""
        return DoubleBarrier(self, name, count, ttl_s=ttl_s, session=session, rng=self.rng)

    def queue(self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None) -> Queue:
        """A queue to put items into and to claim them from; arguments as for `lock`.

        Args:
            ttl_s: how long an item stays with a consumer that is gone.
        """
        return Queue(self, name, ttl_s=ttl_s, session=session, rng=self.rng)

    # --- services -----------------------------------------------------------------------------------------------

    def register(
        self,
        service: str,
        *,
        port: int = 0,
        id: str = "",  # noqa: A002 - the field's name everywhere else
        address: str = "127.0.0.1",
        node: str = "",
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        weight: int = 1,
        zone: str = "",
        version: str = "",
        ttl_s: float = TTL_S_DEFAULT,
        checks: Sequence[Check] = (),
        idle_timeout_s: float = 0.0,
        bound_to: asyncio.Task[Any] | None = None,
    ) -> Registration:
        """Register an instance for as long as the returned registration is entered (or started).

        Args:
            id: unique per node; default `<service>-<host>-<port>`, with something random in place of port 0.
            ttl_s: how long the registry keeps it after the last renewal; 0: until deregistered.
            idle_timeout_s: how long this server keeps idle connections; proxies stay below it.
            bound_to: a task, the server's say: the registration ends when it does. Renewals ride this client's loop, so
                a loop that hangs ends it after a TTL; if the task is on another loop, nothing is renewed while that one
                hangs, and the registration ends after four thirds of a TTL at the latest.

        Raises:
            InvalidArgument: a field is out of range.
        """
        if isinstance(tags, str):
            raise InvalidArgument(f"tags is {tags!r}; allowed: a list of texts", field="tags")
        instance = Instance(
            service=service,
            id=id or f"{service}-{socket.gethostname()}-{port or f'{self.rng.randrange(_ID_RANGE):08x}'}",
            node=node,
            address=address,
            port=port,
            tags=tuple(tags),
            meta=dict(meta or {}),
            weight=weight,
            zone=zone,
            version=version,
            ttl_s=ttl_s,
            checks=tuple(checks),
            idle_timeout_s=idle_timeout_s,
        )
        return Registration(self, instance, self.rng, bound_to)

    async def deregister(self, id: str, *, node: str = "", timeout_s: float = CALL_S) -> bool:  # noqa: A002
        """Deregister an instance, whoever registered it; False if there was none."""
        return (await self.call(Deregister(id=id, node=node), timeout_s=timeout_s)).applied

    async def services(self, *, timeout_s: float | None = None) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of its instances.

        Args:
            timeout_s: for the whole list; default: 5 s for each of its pages.
        """
        budget = Budget(timeout_s)
        services: dict[str, tuple[str, ...]] = {}
        page = await self.call(Services(), timeout_s=budget.left_s)
        while page.more:
            services |= page.services
            page = await self.call(Services(after=next(reversed(page.services))), timeout_s=budget.left_s)
        return services | page.services

    async def resolve(self, service: str, *, passing: bool = True, timeout_s: float = CALL_S) -> tuple[Instance, ...]:
        """The instances of a service that can take traffic, or with `passing=False` all of them.

        The first call opens a watch, which stays until a thousand other services were asked for since; later calls
        answer from memory, also while no registry can be reached.

        Raises:
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            Unavailable: the registry has not said anything about the service within `timeout_s`.
            Closed: this client is closed, or was not started.
        """
        self._connection.expect_usable()
        subscription = self._resolved.known(service) or await self._resolved.first(service, timeout_s)
        instances = subscription.instances.values()
        found = tuple([instance for instance in instances if instance.available] if passing else instances)
        if not found:
            await asyncio.sleep(0)  # who asks until there is one lets in what would say so
        return found

    def subscribe(self, service: str) -> Subscription:
        """Follow a service; all subscriptions of one service share one watch.

        Raises:
            InvalidArgument: no service can have this name.
            Closed: this client is closed, or was not started.
        """
        self._connection.expect_usable()
        return Subscription(self.watches.feed(service))

    def resolver(
        self,
        *services: str,
        policy: PolicyName = "least-request",
        zone: str = "",
        subset: Subset | None = None,
        slow_start_s: float = 0.0,
        panic: float = 0.5,
        outliers: Outliers | None = Outliers(),  # noqa: B008 - frozen
        max_age_s: float | None = None,
        state_file: str | os.PathLike[str] | None = None,
    ) -> Resolver:
        """A resolver, for who asks often: services looked up and picked from without leaving the process.

        Args:
            services: what to wait for when it is entered; more are followed when they are first asked for.
            policy: "least-request" (of two drawn at random the less busy), "peak-ewma" (the smaller latency times
                queue), "round-robin" (smooth weighted turns) or "maglev" (by key, with bounded load).
            zone: prefer instances of this zone, and spill over to others as it loses capacity.
            subset: only these instances.
            slow_start_s: how long a newcomer's weight takes to grow to all of it.
            panic: under this share of well instances, balance over all that are meant to serve; 0: never.
            outliers: when outcomes speak so much against an instance that it is left alone for a while; None: never.
            max_age_s: raise `Stale` instead of using what no registry has confirmed for longer; None: use it anyway.
            state_file: where to keep what is known, for a process that starts while no registry answers. Processes
                of one program may share it: each writes it whole.

        Raises:
            InvalidArgument: an argument is out of range.
        """
        return Resolver(
            self,
            services,
            policy=policy,
            zone=zone,
            subset=subset,
            slow_start_s=slow_start_s,
            panic=panic,
            outliers=outliers,
            max_age_s=max_age_s,
            state_file=state_file,
        )

    async def watch(self, service: str) -> AsyncIterator[ServiceEvent]:
        """Yield the instances of a service as a snapshot, then every change.

        Raises:
            InvalidArgument: no service can have this name.
            RequestError: the registry refuses to tell.
            Closed: this client was closed, or not started.
        """
        subscription = self.subscribe(service)
        try:
            async for event in subscription.events():
                yield event
        finally:
            subscription.close()
