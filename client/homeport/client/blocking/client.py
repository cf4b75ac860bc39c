"""The client for code that blocks: every name is the async client's, which does the work in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from homeport.client import client as async_client
from homeport.client import leases, resolver
from homeport.client.blocking.coordination import Barrier, DoubleBarrier, Election, Lock, Queue, Semaphore, Session
from homeport.client.blocking.keys import Kv, Lease
from homeport.client.blocking.life import OWNER, Changes, Life
from homeport.client.blocking.picking import Resolver
from homeport.client.blocking.services import Registration, Subscription
from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Outliers, Subset
from homeport.client.core.balancing.settings import PolicyName
from homeport.client.core.errors import Closed, HomeportError
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import Request, Welcome
from homeport.client.core.model import TTL_S_DEFAULT, Check, Instance, ServiceEvent
from homeport.client.transport import Transport

R = TypeVar("R")

_clients: Final[weakref.WeakSet[Client]] = weakref.WeakSet()
# In the child of a fork: what belongs to the parent's threads, with all that hangs on it. Finalizing a loop here would
# reach into the parent's, since both share one epoll descriptor.
_left_behind: Final[list[object]] = []


class Client:
    """A registry's client for scripts, Django, Flask and whatever else blocks; may be shared by threads.

        client = Client("127.0.0.1:8300")
        client.kv.put("greeting", b"hello")
        with client.register("orders", port=8080):
            ...

    It starts with its first use, in each process: one that is made before a fork works in the children, each of which
    has a connection of its own. What was made of it before the fork (registrations, leases, watches) stays the parent's
    and raises `Closed` in a child, but for resolvers, which begin anew. It is closed by `close`, by leaving its
    `with` block, and when the interpreter exits.

    Methods raise what their async namesakes raise, and `WrongLoop` in the client's own thread, where callbacks run.

    Args:
        addresses: where registries are, "host:port" or "unix:/path", tried in turn; default 127.0.0.1:8300.
        transport: instead of addresses, any way to open links.
        token: what to present to the registry.
        name: how this client calls itself, for the registry's listings.
        rng: the source of jitter.
        client: instead of all these, what makes the async client, called in its thread: `registry.client`, say.

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
        client: Callable[[], async_client.Client] | None = None,
    ) -> None:
        def make() -> async_client.Client:
            return async_client.Client(*addresses, transport=transport, token=token, name=name, rng=rng)

        self._make = client or make
        if client is None:
            make()  # who gives a malformed address should hear of it here
        self._lock = threading.Lock()
        self._begun: Life | None = None
        self._closed = False
        self._resolvers: weakref.WeakSet[Resolver] = weakref.WeakSet()
        self.kv: Kv = Kv(self._life)
        _clients.add(self)

    def _life(self) -> Life:
        """The client behind this one, started if need be."""
        begun = self._begun
        if begun is None:
            with self._lock:
                if self._closed:
                    raise Closed(f"{OWNER} is closed")
                if self._begun is None:
                    self._begun = Life(self._make)
                begun = self._begun
        return begun

    def start(self) -> None:
        """Start connecting; otherwise the first use does. Idempotent."""
        self._life()

    def close(self) -> None:
        """Save what resolvers know, close the link and end the thread. Idempotent."""
        with self._lock:
            self._closed = True
            begun = self._begun
        if begun is not None:
            for each in tuple(self._resolvers):
                with suppress(HomeportError):
                    each.close()
            begun.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def forked(self) -> None:
        """Begin anew: this is the child of a fork, where neither the loop nor whoever held the lock exists."""
        self._lock = threading.Lock()
        self._begun = None
        for each in tuple(self._resolvers):
            each.forked()

    # --- the connection -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a link to a registry."""
        return self._life().client.connected

    @property
    def welcome(self) -> Welcome | None:
        """What the registry said of itself, while connected."""
        return self._life().client.welcome

    @property
    def store_id(self) -> str:
        """The history that the last link showed; "" before the first."""
        return self._life().client.store_id

    def wait_connected(self, timeout_s: float = CALL_S) -> bool:
        """Return whether there is a link, waiting for it up to `timeout_s`."""
        life = self._life()
        return life.run(life.client.wait_connected(timeout_s))

    def call(self, request: Request[R], *, timeout_s: float = CALL_S) -> R:
        """Ask the registry anything of `homeport.client.core.messages`."""
        life = self._life()
        return life.run(life.client.call(request, timeout_s=timeout_s))

    # --- leases -------------------------------------------------------------------------------------------------

    def lease(self, ttl_s: float = TTL_S_DEFAULT) -> Lease:
        """A lease for keys, renewed until the returned object is closed."""
        life = self._life()
        return Lease(life, life.call(lambda: life.client.lease(ttl_s)))

    def session(self, ttl_s: float = TTL_S_DEFAULT) -> Session:
        """A lease that several locks, permits, candidacies and claims share."""
        life = self._life()
        return Session(life, life.call(lambda: life.client.session(ttl_s)), self)

    # --- coordination -------------------------------------------------------------------------------------------

    def lock(
        self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None, value: bytes = b""
    ) -> Lock:
        """A lock, held for as long as the returned object is entered; entering waits for its turn."""
        life = self._life()
        return Lock(life, life.client.lock(name, ttl_s=ttl_s, session=_inner(session), value=value))

    def semaphore(
        self, name: str | bytes, permits: int, *, ttl_s: float | None = None, session: Lease | None = None
    ) -> Semaphore:
        """One of so many permits, held for as long as the returned object is entered."""
        life = self._life()
        return Semaphore(life, life.client.semaphore(name, permits, ttl_s=ttl_s, session=_inner(session)))

    def election(
        self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None, value: bytes = b""
    ) -> Election:
        """An election to stand for, or to observe."""
        life = self._life()
        return Election(life, life.client.election(name, ttl_s=ttl_s, session=_inner(session), value=value))

    def barrier(self, name: str | bytes) -> Barrier:
        """A gate that holds up everyone who waits while it is held; `name` is its key."""
        life = self._life()
        return Barrier(life, life.client.barrier(name))

    def double_barrier(
        self, name: str | bytes, count: int, *, ttl_s: float | None = None, session: Lease | None = None
    ) -> DoubleBarrier:
        """A barrier that lets a group in when `count` are there, and out when all leave."""
        life = self._life()
        return DoubleBarrier(life, life.client.double_barrier(name, count, ttl_s=ttl_s, session=_inner(session)))

    def queue(self, name: str | bytes, *, ttl_s: float | None = None, session: Lease | None = None) -> Queue:
        """A queue to put items into and to claim them from."""
        life = self._life()
        return Queue(life, life.client.queue(name, ttl_s=ttl_s, session=_inner(session)))

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
            bound_to: a task of a loop in another thread: the registration ends when it does, or when that loop hangs.
        """
        life = self._life()
        inner = life.client.register(
            service,
            port=port,
            id=id,
            address=address,
            node=node,
            tags=tags,
            meta=meta,
            weight=weight,
            zone=zone,
            version=version,
            ttl_s=ttl_s,
            checks=checks,
            idle_timeout_s=idle_timeout_s,
            bound_to=bound_to,
        )
        return Registration(life, inner)

    def deregister(self, id: str, *, node: str = "", timeout_s: float = CALL_S) -> bool:  # noqa: A002
        """Deregister an instance, whoever registered it; False if there was none."""
        life = self._life()
        return life.run(life.client.deregister(id, node=node, timeout_s=timeout_s))

    def services(self, *, timeout_s: float | None = None) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of its instances."""
        life = self._life()
        return life.run(life.client.services(timeout_s=timeout_s))

    def resolve(self, service: str, *, passing: bool = True, timeout_s: float = CALL_S) -> tuple[Instance, ...]:
        """The instances of a service that can take traffic, or with `passing=False` all of them."""
        life = self._life()
        return life.run(life.client.resolve(service, passing=passing, timeout_s=timeout_s))

    def subscribe(self, service: str) -> Subscription:
        """Follow a service."""
        life = self._life()
        return Subscription(life, life.call(lambda: life.client.subscribe(service)))

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
        """A resolver, for who asks often: services looked up and picked from without leaving the thread."""

        def make(life: Life) -> resolver.Resolver:
            return life.client.resolver(
                *services,
                policy=policy,
                zone=zone,
                subset=subset,
                slow_start_s=slow_start_s,
                panic=panic,
                outliers=outliers,
                max_age_s=max_age_s,
                state_file=state_file,
            )

        made = Resolver(self._life, make)
        self._resolvers.add(made)
        return made

    def watch(self, service: str) -> Changes[ServiceEvent]:
        """The instances of a service as a snapshot, then every change."""
        life = self._life()
        return Changes(life, life.client.watch(service))


def _inner(session: Lease | None) -> leases.Lease | None:
    return None if session is None else session._inner


def _forked() -> None:
    _left_behind.extend(Life.running)
    Life.running.clear()
    for client in tuple(_clients):
        client.forked()


def _close_all() -> None:
    for client in tuple(_clients):
        with suppress(HomeportError):
            client.close()
    for life in tuple(Life.running):  # whose clients nobody holds any more
        with suppress(HomeportError):
            life.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
atexit.register(_close_all)
