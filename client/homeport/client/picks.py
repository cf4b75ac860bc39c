"""A pick: one instance that was chosen for one piece of work, and what is said of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from types import TracebackType

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Closed
from homeport.client.core.group import Endpoint, Group
from homeport.client.core.model import Instance
from homeport.client.subscription import Subscription


class Followed:
    """One service as a resolver follows it. `choose` is what a pick asks first, made anew when something changes."""

    __slots__ = ("choose", "group", "lock", "now", "rng", "stop_listening", "subscription", "timed")

    def __init__(
        self, subscription: Subscription, group: Group, lock: RLock, now: Callable[[], float], rng: Rng
    ) -> None:
        self.subscription: Subscription = subscription
        self.group: Group = group
        self.timed: bool = group.timed
        self.lock: RLock = lock  # held wherever an endpoint's counts change: picks end in whatever thread they began
        self.now: Callable[[], float] = now
        self.rng: Rng = rng
        self.choose: Callable[[Rng], Endpoint | None] = group.choice.pick
        self.stop_listening: Callable[[], None] = lambda: None

    def ended(self, endpoint: Endpoint, ok: bool, status: int, refused: bool, took_s: float | None) -> None:
        """Count an outcome. The lock is held."""
        group = self.group
        if ok:
            group.succeeded(endpoint, took_s, 0.0 if took_s is None else self.now())
            return
        choice = group.choice
        group.failed(endpoint, status, self.now(), self.rng, refused=refused)
        if group.choice is not choice:
            self.rechosen()

    def rechosen(self) -> None:
        """The group's choice is another one. The lock is held."""
        pick = self.group.choice.pick
        self.choose = self._picked if self.group.moves else pick

    def _picked(self, rng: Rng) -> Endpoint | None:
        with self.lock:
            return self.group.choice.pick(rng, (), self.now())


class Pick(msgspec.Struct, eq=False, gc=False):
    """An instance that `Resolver.pick` has chosen: use it in a `with` block, so that its load and outcome count.

        with resolver.pick("orders") as instance:
            ask(instance.address, instance.port)

    While the block runs the instance counts as busy. Leaving it says how that went: an `Exception` that escapes speaks
    against the instance, anything else for it; a cancellation says nothing. `succeeded`, `failed` and `unknown` say
    otherwise, and the first of them stands. Without a block nothing is counted.
    """

    _endpoint: Endpoint
    _followed: Followed
    _state: int = 0  # 0: not entered; 1: in its block; 2: done
    _began_s: float = 0.0
    _verdict: tuple[bool | None, int, bool] | None = None  # ok (None: nobody knows), status, refused

    @property
    def instance(self) -> Instance:
        """The instance, as the registry described it last."""
        return self._endpoint.instance

    def succeeded(self) -> None:
        """Say that the instance did well, whatever becomes of the block: its answer is here, the rest is our own."""
        if self._verdict is None:
            self._verdict = (True, 0, False)

    def failed(self, *, status: int = 0, refused: bool = False) -> None:
        """Say that the instance did badly, though no exception leaves the block.

        Args:
            status: of an answer that no healthy server gives (500 to 599); 0: there was no answer.
            refused: no connection came to be.
        """
        if self._verdict is None:
            self._verdict = (False, status, refused)

    def unknown(self) -> None:
        """Say that the block says nothing of the instance, whatever becomes of it."""
        if self._verdict is None:
            self._verdict = (None, 0, False)

    def __enter__(self) -> Instance:
        if self._state:
            raise Closed("a pick is entered once; pick again")
        self._state = 1
        endpoint, followed = self._endpoint, self._followed
        if followed.timed:
            self._began_s = followed.now()
        with followed.lock:
            endpoint.active += 1
        return endpoint.instance

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._state = 2
        endpoint, followed = self._endpoint, self._followed
        if kind is None and self._verdict is None and not followed.timed:  # what nearly always happens, at its price
            with followed.lock:
                endpoint.active -= 1
                followed.group.succeeded(endpoint, None, 0.0)
            return
        if self._verdict is not None:
            ok, status, refused = self._verdict
        elif kind is None or issubclass(kind, Exception):
            ok, status, refused = kind is None, 0, False
        else:  # cancelled, or the program ends
            ok, status, refused = None, 0, False
        took_s = followed.now() - self._began_s if followed.timed else None
        with followed.lock:
            endpoint.active -= 1
            if ok is not None:
                followed.ended(endpoint, ok, status, refused, took_s)
