"""Holding something that others may hold later: the common part of locks, semaphores, elections, barriers and claims.

Everything hangs on a lease. With a lease of its own (the default) a holding that was given up while nobody could say
whether it was acquired ends with that lease; on a session it is given up key by key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from homeport.client.coordination.place import passes
from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import HomeportError, InvalidArgument, LeaseGone, Unavailable, again
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import TTL_S_DEFAULT, validate_ttl
from homeport.client.leases import Guard, Lease

if TYPE_CHECKING:
    from homeport.client.client import Client

_FREE: Final = "free"
_ACQUIRING: Final = "being acquired"
_HELD: Final = "held"


class Holding:
    """Something to hold; an async context manager, for one task at a time.

    Entering it waits until it is held. Leaving it gives it back, and raises `LeaseGone` if it was lost meanwhile, so
    that what was done under it is never taken for protected when it was not.

    Attributes:
        token: the fencing token while it is held, else 0. Every later holder has a larger one, as long as the registry
            keeps its data: let whatever is protected refuse a smaller one than it has seen.
        lost: set when it is lost, before the registry can give it to another, or its session is closed by another
            task; a new event for each acquisition. A registry in memory that restarts has forgotten every holder, and
            may give it to another up to a third of the TTL earlier than this is set.
    """

    def __init__(self, client: Client, *, ttl_s: float | None, session: Lease | None, rng: Rng) -> None:
        if session is not None and ttl_s is not None:
            raise InvalidArgument("give ttl_s or a session, which has one", field="ttl_s")
        self.token: int = 0
        self.lost: asyncio.Event = asyncio.Event()
        self._client = client
        self._rng = rng
        self._session = session
        self._ttl_s = TTL_S_DEFAULT if ttl_s is None else ttl_s
        validate_ttl("ttl_s", self._ttl_s)
        self._state = _FREE
        self._lease: Lease | None = None  # while it is held
        self._forget: list[Callable[[], None]] = []  # what to call when it is given back, so that nobody hears of more

    # --- what kinds of holdings differ in -----------------------------------------------------------------------

    async def _take(self, lease: Lease, wait: bool) -> int | None:
        """Acquire on a lease that lives, and return the token; None: not without waiting, which is not wanted.

        Raises:
            LeaseGone: the lease has ended.
        """
        raise NotImplementedError

    def _put_back(self, lease: Lease) -> Coroutine[Any, Any, None]:
        """What deletes all that `_take` wrote, or may have written, on a lease that lives on.

        Not a coroutine function: what is to be deleted is settled when it is called. By the time it runs, this may be
        about to be acquired anew.
        """
        raise NotImplementedError

    # --- acquiring ----------------------------------------------------------------------------------------------

    async def acquire(self, *, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Acquire it, and return whether that was done.

        With a lease of its own it waits through outages of the registry, with its place in the queue if they are
        shorter than the TTL. Cancelling leaves nothing behind.

        Args:
            wait: whether to wait until others have given it back.
            timeout_s: how long to wait at most, asking included: with 0 nothing is acquired; default: for ever.

        Raises:
            InvalidArgument: it is held already, or somebody waits for it with this very object.
            LeaseGone: the session has ended.
            Unavailable: with `wait=False`, whether it is free could not be found out within 5 s, or the lease's TTL.
            RequestError: the registry refuses.
            Closed: the client is closed.
        """
        if self._state != _FREE:
            raise InvalidArgument(f"{self} is {self._state} already; it is for one task at a time")
        self._state = _ACQUIRING
        backoff = Backoff(self._rng)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await (self._attempt(wait=True) if wait else self._at_once())
                    except HomeportError as error:
                        if not (wait and self._session is None and (passes(error) or isinstance(error, LeaseGone))):
                            raise
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            return False
        finally:
            if self._state == _ACQUIRING:
                self._state = _FREE

    async def _at_once(self) -> bool:
        try:
            async with asyncio.timeout(CALL_S):
                return await self._attempt(wait=False)
        except TimeoutError:
            raise Unavailable(f"{self}: no registry answered within {CALL_S} s") from None
        except LeaseGone as error:
            if self._session is not None:
                raise
            self._client.expect_usable()  # else that is why
            raise Unavailable(f"{self}: {error.message}") from None

    async def _attempt(self, wait: bool) -> bool:
        lease = self._session or self._client.lease(self._ttl_s)
        if lease is not self._session:
            await lease.start()
        try:
            async with lease.guarded():
                token = await self._take(lease, wait)
                if token is not None:
                    lease.expect_valid()
        except BaseException:
            self._let_go(lease)
            raise
        if token is None:
            await asyncio.shield(self._let_go(lease))
            return False
        self._state = _HELD
        self._lease = lease
        self.token = token
        self.lost = asyncio.Event()
        self._forget = [lease.on_end(self.lost.set)]
        return True

    def _let_go(self, lease: Lease) -> asyncio.Task[None]:
        """Give everything back, without waiting for it."""
        if lease is self._session:
            return self._client.farewells.say(self._put_back(lease), f"give back {self}")
        return lease.let_go()

    async def release(self) -> None:
        """Give it back. Idempotent; cancelling does not keep it from being given back.

        If the registry cannot be reached it is free when its lease has ended.
        """
        lease, self._lease = self._lease, None
        if lease is None:
            return
        for forget in self._forget:
            forget()
        self._state = _FREE
        self.token = 0
        await asyncio.shield(self._let_go(lease))

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        lease = self._lease
        lost = lease is not None and not lease.valid  # by the clock: who was paused may not have been told yet
        await self.release()
        if kind is None and lease is not None and lost:
            raise again(lease.error) if lease.error is not None else LeaseGone(f"{self} was lost")

    # --- while it is held ---------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it is certain that this holds it at this moment; looks at the clock, and so is never late.

        The next moment is another matter: only a token that is checked where it counts protects against a pause.
        """
        return self._lease is not None and self._lease.valid

    @property
    def remaining_s(self) -> float:
        """Seconds for which it is certain to be held if no renewal succeeds any more; 0.0 if it is not held."""
        return self._lease.remaining_s if self._lease is not None else 0.0

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback`, synchronously, when it is lost before it is given back; return what takes that back.

        Raises:
            LeaseGone: it is not held.
        """
        forget = self._held_lease().on_end(callback)
        self._forget.append(forget)
        return forget

    def guarded(self) -> Guard:
        """A context manager that cancels its body when this is lost, and then raises `LeaseGone`.

        Raises:
            LeaseGone: it is not held.
        """
        return self._held_lease().guarded()

    def _held_lease(self) -> Lease:
        if self._lease is None:
            raise LeaseGone(f"{self} is not held")
        return self._lease
