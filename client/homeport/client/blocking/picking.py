"""The resolver for threads: lookups and picks run where they are called, and wait only for a service's first word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Self, TypeVar

from homeport.client import resolver
from homeport.client.blocking.life import Life
from homeport.client.core.errors import Unavailable
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import Instance
from homeport.client.picks import Pick
from homeport.client.resolver import ServiceState

R = TypeVar("R")


class Resolver:
    """See `homeport.client.Resolver`; here a first lookup or pick waits until the service is known.

    It begins with its first use, in each process: one that is made before a fork begins anew in the child.
    """

    def __init__(self, life: Callable[[], Life], make: Callable[[Life], resolver.Resolver]) -> None:
        self._life = life
        self._make = make
        self._lock = threading.Lock()
        self._begun: tuple[Life, resolver.Resolver] | None = None

    def forked(self) -> None:
        """Begin anew: this is the child of a fork, where neither the loop nor whoever held the lock exists."""
        self._lock = threading.Lock()
        self._begun = None

    def _inner(self) -> resolver.Resolver:
        begun = self._begun
        if begun is None:
            with self._lock:
                if self._begun is None:
                    life = self._life()
                    made = life.call(lambda: self._make(life))
                    life.call(made.begin)
                    self._begun = (life, made)
                begun = self._begun
        return begun[1]

    def _known(self, service: str, ask: Callable[[resolver.Resolver], R]) -> R:
        """Ask, and once more when the service is known: which it may have become since."""
        inner = self._inner()
        try:
            return ask(inner)
        except Unavailable:
            pass
        self.follow(service)
        return ask(inner)

    def lookup(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service that can take traffic."""
        return self._known(service, lambda inner: inner.lookup(service))

    def pick(self, service: str, key: str | bytes | None = None, *, tried: Collection[Pick] = ()) -> Pick:
        """Choose an instance of a service for one piece of work."""
        return self._known(service, lambda inner: inner.pick(service, key, tried=tried))

    def report(
        self, instance: Instance, *, ok: bool, status: int = 0, refused: bool = False, took_s: float | None = None
    ) -> bool:
        """Say how an instance did, for work that was not done in a pick's block."""
        return self._inner().report(instance, ok=ok, status=status, refused=refused, took_s=took_s)

    def state(self, service: str) -> ServiceState:
        """How it stands with a service."""
        return self._inner().state(service)

    def services(self) -> tuple[str, ...]:
        """The services that are followed."""
        return self._inner().services()

    def follow(self, service: str, *, timeout_s: float = CALL_S) -> None:
        """Follow a service from now on, and return when it is known."""
        inner = self._inner()
        self._life().run(inner.follow(service, timeout_s=timeout_s))

    def forget(self, service: str) -> bool:
        """Follow a service no more; False if it was not followed."""
        inner = self._inner()
        return self._life().call(lambda: inner.forget(service))

    def start(self, timeout_s: float = CALL_S) -> None:
        """Begin with the state file, if there is one, and wait until the services named at the making are known."""
        inner = self._inner()
        self._life().run(inner.start(timeout_s))

    def close(self) -> None:
        """Save the state file, and follow nothing any more. Idempotent."""
        begun = self._begun
        if begun is not None:
            life, inner = begun
            life.end(inner.close())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
