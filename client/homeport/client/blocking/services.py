"""Registrations and subscriptions that wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Self

from homeport.client import registration, subscription
from homeport.client.blocking.life import Changes, Life
from homeport.client.core.errors import HomeportError
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import Instance, InstanceKey, ServiceEvent, State, Status


class Registration:
    """One registered instance, kept registered in the background; see `homeport.client.Registration`.

    `with`, or `start` and `stop`.
    """

    def __init__(self, life: Life, inner: registration.Registration) -> None:
        self._life = life
        self._inner = inner

    @property
    def instance(self) -> Instance:
        """What is registered."""
        return self._inner.instance

    @property
    def lease(self) -> int:
        """The lease it stands on; 0 before it is registered."""
        return self._inner.lease

    @property
    def registered(self) -> bool:
        """Whether it stands, as far as is known here."""
        return self._inner.registered

    @property
    def error(self) -> HomeportError | None:
        """What the last renewal or registration met; None while all is well."""
        return self._inner.error

    def start(self) -> None:
        """Register, and stay registered; see `homeport.client.Registration.start`."""
        self._life.run(self._inner.start())

    def stop(self) -> None:
        """Deregister and stop renewing. Idempotent."""
        self._life.end(self._inner.stop())

    def set_state(self, state: State, *, timeout_s: float = CALL_S) -> int:
        """Tell everyone that this instance is `up`, `draining` or in `maintenance`; return the revision of that."""
        return self._life.run(self._inner.set_state(state, timeout_s=timeout_s))

    def drain(self, *, ack_timeout_s: float = 5.0, min_s: float = 2.0) -> None:
        """Take this instance out of rotation, and return when no follower sends to it any more."""
        self._life.run(self._inner.drain(ack_timeout_s=ack_timeout_s, min_s=min_s))

    def report(self, check: str, status: Status, output: str = "") -> None:
        """Report the status of a `ttl` check, which also starts its TTL anew."""
        self._life.run(self._inner.report(check, status, output))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


class Subscription:
    """The last known instances of one service, kept current in the background; see `homeport.client.Subscription`."""

    def __init__(self, life: Life, inner: subscription.Subscription) -> None:
        self._life = life
        self._inner = inner
        self.service: str = inner.service

    @property
    def instances(self) -> Mapping[InstanceKey, Instance]:
        """All known instances, whatever their status; `Instance.available` says which may take traffic."""
        return self._inner.instances

    @property
    def revision(self) -> int:
        """The revision that they are of."""
        return self._inner.revision

    @property
    def known(self) -> bool:
        """Whether the registry has ever said who is there."""
        return self._inner.known

    @property
    def live(self) -> bool:
        """Whether the registry confirms it right now."""
        return self._inner.live

    @property
    def held(self) -> bool:
        """Whether instances that a reconnected registry does not know (yet) are kept in use."""
        return self._inner.held

    @property
    def error(self) -> HomeportError | None:
        """Why the registry tells nothing more, unless the next link says otherwise; None while it does."""
        return self._inner.error

    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None:
        """Begin with what an earlier process knew, `age_s` seconds ago."""
        self._life.call(lambda: self._inner.recall(instances, revision, age_s))

    def age_s(self) -> float:
        """Seconds since the registry last confirmed what is known; 0.0 while it does."""
        return self._inner.age_s()

    def listen(self, changed: Callable[[ServiceEvent], None]) -> Callable[[], None]:
        """Call `changed` after each change, in the client's thread; return what stops that.

        It must neither block nor raise, nor call anything of this client that waits.
        """
        stop = self._life.call(lambda: self._inner.listen(changed))
        return lambda: self._life.call(stop)

    def wait_known(self, timeout_s: float) -> bool:
        """Return whether the registry has said who is there, waiting for it up to `timeout_s`."""
        return self._life.run(self._inner.wait_known(timeout_s))

    def events(self) -> Changes[ServiceEvent]:
        """What is known as a snapshot, then every change."""
        return Changes(self._life, self._inner.events())

    def close(self) -> None:
        """Let go. Idempotent."""
        self._life.end(self._close())

    async def _close(self) -> None:
        self._inner.close()
