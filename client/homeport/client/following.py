"""What a resolver follows: its services, what may be used of each now, and the file that outlives the process.

All of it changes on the client's loop. `found` and `choices` are read from any thread, one access at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Balancing, Outliers
from homeport.client.core.errors import Closed, HomeportError, LimitExceeded
from homeport.client.core.group import Group
from homeport.client.core.limits import FOLLOWED_MAX
from homeport.client.core.model import Instance, ServiceEvent
from homeport.client.core.snapshot import Known, Snapshot
from homeport.client.last_known import LastKnown, taken
from homeport.client.picks import Followed

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

SWEEP_S: Final = 0.5  # how exactly suspicions (1 s), ejections (30 s) and `max_age_s` end


class Following:
    """The services of one resolver.

    Attributes:
        services: those that are followed, in the order in which they were first asked for.
        found: the instances of those that may be used now: an entry goes when what is known is too old, so that using
            it is one access.
        choices: what those are picked by.
        lock: held wherever a pick or an outcome changes something.
        now: the clock that outcomes are told by: once begun, the loop's.
    """

    def __init__(
        self,
        client: Client,
        *,
        balancing: Balancing,
        outliers: Outliers | None,
        max_age_s: float | None,
        state_file: str | os.PathLike[str] | None,
        rng: Rng,
    ) -> None:
        self.services: dict[str, Followed] = {}
        self.found: dict[str, tuple[Instance, ...]] = {}
        self.choices: dict[str, Followed] = {}
        self.lock: threading.RLock = threading.RLock()
        self.now: Callable[[], float] = time.monotonic
        self._client = client
        self._balancing = balancing
        self._outliers = outliers
        self._max_age_s = max_age_s
        self._state_file = state_file
        self._rng = rng
        self._loop: asyncio.AbstractEventLoop | None = None  # once begun
        self._thread = 0  # that it runs in
        self._last_known: LastKnown | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin without waiting for anything, with the state file if there is one. Idempotent."""
        if self._loop is not None:
            return
        self._client.expect_usable()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.now = self._loop.time
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        if self._state_file is not None:
            from pathlib import Path  # loaded only by who has a file: it is a good part of this package's import

            self._last_known = LastKnown(Path(self._state_file), self._taken)
            last = self._last_known.load()
            for known in last.services[:FOLLOWED_MAX] if last is not None else ():
                self.follow(known.service, known)
            self._last_known.start()

    def follow(self, service: str, last: Known | None = None) -> Followed:
        """Follow a service, if it is not, beginning with what the state file said of it."""
        known = self.services.get(service)
        if known is not None:  # the state file named it, or another thread was first
            return known
        if len(self.services) >= FOLLOWED_MAX:
            self._make_room()
        subscription = self._client.subscribe(service)
        if last is not None:
            subscription.recall(last.instances, last.revision, max(0.0, time.time() - last.confirmed_at_s))
        group = Group(self._balancing, self._outliers)
        followed = Followed(subscription, group, self.lock, self.now, self._rng)
        self.services[service] = followed

        def changed(_event: ServiceEvent) -> None:
            self._take(service, followed)
            if self._last_known is not None:
                self._last_known.changed()

        followed.stop_listening = subscription.listen(changed)
        if subscription.known:
            self._take(service, followed)
        return followed

    def forget(self, service: str) -> bool:
        """Follow a service no more; False if it was not followed."""
        followed = self.services.pop(service, None)
        if followed is None:
            return False
        self._drop(service)
        followed.stop_listening()
        followed.subscription.close()
        return True

    def ask_from_thread(self, follow: Callable[[str], Any], service: str) -> bool:
        """Have the loop follow a service, and return whether this is another thread, which cannot do so itself.

        Raises:
            Closed: the loop is closed.
        """
        if self._loop is None or threading.get_ident() == self._thread:
            return False

        def quietly() -> None:
            try:
                follow(service)
            except HomeportError as error:
                _log.info("service %r cannot be followed: %s", service, error)

        try:
            self._loop.call_soon_threadsafe(quietly)
        except RuntimeError:
            raise Closed("the client's loop is closed") from None
        return True

    async def close(self) -> None:
        """Save the state file, and follow nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._last_known is not None:
                await self._last_known.close()
        finally:  # cancelled, say
            for service in tuple(self.services):
                self.forget(service)

    def _make_room(self) -> None:
        """Names that were asked for by accident must not keep out those of services."""
        for service, followed in self.services.items():
            if followed.subscription.known and not followed.subscription.instances:
                self.forget(service)
                return
        raise LimitExceeded(
            f"{FOLLOWED_MAX} services are followed, which is all that is allowed; `forget` some", allowed=FOLLOWED_MAX
        )

    def _take(self, service: str, followed: Followed) -> None:
        """Something is known that was not, or not any more."""
        instances = followed.subscription.instances
        with self.lock:
            followed.group.update(instances, self.now())
            followed.rechosen()
            if self._is_too_old(followed):
                self._drop(service)
                return
            self.found[service] = tuple([each for each in instances.values() if each.available])
            self.choices[service] = followed

    def _drop(self, service: str) -> None:
        self.found.pop(service, None)
        self.choices.pop(service, None)

    def _is_too_old(self, followed: Followed) -> bool:
        return self._max_age_s is not None and followed.subscription.age_s() > self._max_age_s

    def _sweep(self) -> None:
        """End what has lasted long enough."""
        assert self._loop is not None
        try:
            self._client.expect_usable()
        except Closed:  # nobody closed this; there is nothing more to follow, nor to say of it
            if self._last_known is not None:
                self._last_known.stop()
            return
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        now = self.now()
        for service, followed in self.services.items():
            if followed.group.unsettled:
                with self.lock:
                    followed.group.sweep(now, self._rng)
                    followed.rechosen()
            if self._max_age_s is not None and service in self.found and self._is_too_old(followed):
                self._drop(service)
                _log.warning("what is known of service %r is too old to be used", service)

    def _taken(self, now_s: float) -> Snapshot:
        subscriptions = {service: followed.subscription for service, followed in self.services.items()}
        return taken(self._client.store_id, subscriptions, {}, now_s)
