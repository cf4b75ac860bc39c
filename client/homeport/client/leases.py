"""A lease: keys hang on it, and it is renewed while this process is well; when it ends, so do they.

The registry keeps a lease for its TTL after the last renewal that it *received*. Here it counts from when the last
acknowledged renewal was *sent*, which is earlier: so its owner knows that it may be over before the registry ends it,
whatever is slow, cut off or paused. `docs/coordination.md` says what follows from that, and what does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import Closed, HomeportError, LeaseGone, ReadOnly, again
from homeport.client.core.limits import CALL_S, CLOCKS_APART, FAREWELL_S
from homeport.client.core.messages import LeaseGrant, LeaseRevoke
from homeport.client.core.model import validate_ttl

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

RENEWALS_PER_TTL: Final = 3  # two may be lost before the third comes too late
_TIMER_STEP_S: Final = 0.001  # before a timer that fired early is asked again: the coarsest step of a loop's clock


class Farewells:
    """Last words to the registry that outlive whoever wanted to say them: a cancelled task must not wait for them."""

    def __init__(self) -> None:
        self._tasks: dict[
            asyncio.Task[None], None
        ] = {}  # in order; bounded by what was acquired and not given back yet

    def say(self, words: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[None]:
        """Start saying something; an error of the registry's ends in the log."""
        task = asyncio.create_task(_spoken(words, name), name=name)
        self._tasks[task] = None
        task.add_done_callback(lambda said: self._tasks.pop(said, None))
        return task

    async def close(self, timeout_s: float) -> None:
        """Wait for what is being said, up to `timeout_s`, and say no more."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_s)
        left = tuple(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _spoken(words: Coroutine[Any, Any, Any], name: str) -> None:
    try:
        await words
    except HomeportError as error:
        _log.info("%s: %s", name, error)


class Lease:
    """A lease of the registry, renewed until it is closed or lost; an async context manager. Made by `Client.lease`.

        async with client.lease(ttl_s=10) as lease:
            await client.kv.put("here/me", b"", lease=lease)
            ...

    It is lost, once and for good, when no renewal was acknowledged for a TTL (counted from when it was sent), when the
    registry says that it is gone, or when the client is closed. Then `lost` is set and the callbacks are called, before
    the registry can have ended it.

    Attributes:
        id: the registry's number for it; 0 before `start`.
        ttl_s: how long it lives after its last renewal.
        lost: set when it is lost.
        error: why it was lost.
    """

    def __init__(self, client: Client, ttl_s: float, rng: Rng) -> None:
        validate_ttl("ttl_s", ttl_s)
        self.id: int = 0
        self.ttl_s = ttl_s
        self.lost: asyncio.Event = asyncio.Event()
        self.error: HomeportError | None = None
        self._client = client
        self._backoff = Backoff(rng, cap_s=ttl_s / RENEWALS_PER_TTL)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sent_at = 0.0  # when the last acknowledged renewal was sent
        self._deadline = 0.0
        self._open = False
        self._names = 0
        self._callbacks: dict[object, Callable[[], None]] = {}  # for when it is lost
        self._ends: dict[object, Callable[[], None]] = {}  # and for when it is lost or closed
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask the registry for it, and renew it from now on. Cancelling gives it back.

        Raises:
            RequestError: the registry refuses.
            Unavailable: no registry answers in time.
            Closed: it was started before, or the client is closed.
        """
        if self._loop is not None:
            raise Closed("a lease starts once; make another")
        self._loop = asyncio.get_running_loop()
        self._open = True
        granting = asyncio.ensure_future(self._grant())
        try:
            await asyncio.shield(granting)
        except BaseException as error:
            self._open = False
            if isinstance(error, asyncio.CancelledError):
                self._client.farewells.say(_after(granting, self._revoke), "give back a lease")
            raise
        self._client.leases[self] = None
        self._arm()
        self._task = asyncio.create_task(self._keep(), name=f"renewals of lease {self.id:016x}")

    async def _grant(self) -> None:
        await self._client.wait_link(CALL_S)  # first, so that it counts from when it is really sent
        sent_at = self._time()
        self.id = (await self._client.call(LeaseGrant(ttl_s=self.ttl_s))).lease
        self._acknowledged(sent_at)

    def _acknowledged(self, sent_at: float) -> None:
        """The registry answered what was sent then: it keeps the lease for a TTL from some moment after that."""
        self._sent_at = sent_at
        self._deadline = sent_at + self.ttl_s * (1 - CLOCKS_APART)

    async def close(self) -> None:
        """Give it back, which deletes its keys; if the registry cannot be reached, it ends by itself. Idempotent.

        Cancelling does not keep it from being given back.
        """
        if self._open:
            await asyncio.shield(self.let_go())

    def let_go(self) -> asyncio.Task[None]:
        """Give it back without waiting for that; return what can be waited for."""
        self._open = False
        self._stop()
        self._tell(self._ends)
        return self._client.farewells.say(self._revoke(), "give back a lease")

    async def _revoke(self) -> None:
        if self.id:
            await self._client.call(LeaseRevoke(lease=self.id), timeout_s=FAREWELL_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # --- how it stands ------------------------------------------------------------------------------------------

    @property
    def valid(self) -> bool:
        """Whether it is certain that the registry keeps it at this moment; looks at the clock, and so is never late."""
        return self._open and not self.lost.is_set() and self._time() < self._deadline

    @property
    def deadline(self) -> float:
        """Until when it is certain that the registry keeps it, by the clock of the loop (`loop.time()`)."""
        return self._deadline

    @property
    def remaining_s(self) -> float:
        """Seconds for which it is certain that the registry keeps it; 0.0 if it is not."""
        return max(0.0, self._deadline - self._time()) if self.valid else 0.0

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback`, synchronously, when it is lost (at once, if it is); return what takes that back.

        Closing it is no loss. A callback must neither block nor raise.
        """
        return self._listen(self._callbacks, callback)

    def on_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """The same, but when it is closed as well: for what is held on it, by whichever task."""
        return self._listen(self._ends, callback)

    def _listen(self, callbacks: dict[object, Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
        if self.lost.is_set():
            callback()
            return lambda: None
        token = object()
        callbacks[token] = callback
        return lambda: callbacks.pop(token, None) and None

    def guarded(self) -> Guard:
        """A context manager that cancels its body when this is lost, and then raises `LeaseGone`.

        Raises:
            LeaseGone: on entering: it is lost, or was closed.
        """
        return Guard(self)

    def expect_valid(self) -> None:
        """Raise `LeaseGone` unless it is certain that the registry keeps it."""
        if not self.valid:
            raise again(self.error) if self.error is not None else _gone(self.id, "was closed, or not started")

    def next_name(self) -> str:
        """A name that nothing else in this registry has."""
        self._names += 1
        return f"{self.id:016x}-{self._names}"

    # --- staying alive ------------------------------------------------------------------------------------------

    def _time(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    async def _keep(self) -> None:
        """Renew at a third of the TTL after the last renewal was sent, and after failures with growing delays."""
        period_s = self.ttl_s / RENEWALS_PER_TTL
        delay_s = self._delay_s(period_s)
        while True:
            await asyncio.sleep(delay_s)
            epoch = self._client.link_epoch
            try:
                await self._client.wait_link()
                epoch = self._client.link_epoch
                sent_at = self._time()
                if not await self._client.renewals.renew(self.id, self.ttl_s):
                    return self._lose(_gone(self.id, "is gone from the registry"))
                if not self.valid:
                    return self._expired()
            except Closed as error:
                return self.abandon(error.message)
            except HomeportError as error:
                if isinstance(error, ReadOnly):
                    self._client.go_elsewhere(epoch, error)
                _log.info("lease %016x could not be renewed: %s", self.id, error)
                self.error = error
                delay_s = self._backoff.next_s()
                continue
            self.error = None
            self._backoff.reset()
            self._acknowledged(sent_at)
            self._arm()
            delay_s = self._delay_s(period_s)

    def _delay_s(self, period_s: float) -> float:
        """Until the next renewal; a little early, if that lets it go with others of this client."""
        now = self._time()
        return self._client.renewals.delay_s(now, period_s, max(0.0, self._sent_at + period_s - now))

    def _arm(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._expired)

    def _expired(self) -> None:
        if not self._open:
            return
        if self._time() < self._deadline:  # a timer is a hint
            assert self._loop is not None
            self._timer = self._loop.call_later(_TIMER_STEP_S, self._expired)
            return
        why = f": {self.error.message}" if self.error is not None else ""
        self._lose(_gone(self.id, f"may be over: no renewal was acknowledged for {self.ttl_s:g} s{why}"))

    def _lose(self, error: LeaseGone) -> None:
        if not self._open or self.lost.is_set():
            return
        self.error = error
        self._stop()
        _log.warning("%s", error)
        self.lost.set()
        self._tell(self._callbacks)
        self._tell(self._ends)

    def _tell(self, callbacks: dict[object, Callable[[], None]]) -> None:
        while callbacks:
            callback = callbacks.pop(next(iter(callbacks)))
            try:
                callback()
            except Exception:  # noqa: BLE001 - whatever it is, the others must hear of it
                _log.exception("a callback of lease %016x failed", self.id)

    def abandon(self, why: str) -> None:
        """It is not renewed any more: lost, whatever the clock says."""
        self._lose(_gone(self.id, f"is not renewed any more: {why}"))

    def _stop(self) -> None:
        self._client.leases.pop(self, None)
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Guard:
    """Cancels the body of its `async with` when a lease is lost, and makes a `LeaseGone` of that; see `guarded`.

    So it does when another task closes the lease.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._fired = False
        self._forget: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self._lease.expect_valid()
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._forget = self._lease.on_end(self._lost)
        return self

    def _lost(self) -> None:
        assert self._task is not None
        if self._lease.lost.is_set() or self._task is not _current_task():
            self._fired = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._forget()
        if not self._fired:
            return
        assert self._task is not None
        # As in asyncio.timeout: if somebody else cancelled the task as well, that counts.
        if self._task.uncancel() <= self._cancelling and (kind is None or issubclass(kind, asyncio.CancelledError)):
            raise again(self._lease.error or _gone(self._lease.id, "was closed")) from error


def _gone(lease: int, why: str) -> LeaseGone:
    return LeaseGone(f"lease {lease:016x} {why}", lease=lease)


def _current_task() -> asyncio.Task[Any] | None:
    """The task that runs, if it is one: a lease may also be lost in a callback, or with no loop running."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _after(first: asyncio.Future[Any], then: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    await first
    await then()
