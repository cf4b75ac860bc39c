"""Locks, semaphores, elections, barriers and queues for threads; their promises are those of docs/coordination.md.

One object is for one thread at a time, as the async one is for one task. A thread cannot be interrupted when what it
holds is lost: it has `lost` to look at or to wait for, and `token` for what must refuse a late holder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from homeport.client import coordination
from homeport.client.blocking.keys import Lease, known_lease
from homeport.client.blocking.life import Changes, Life
from homeport.client.coordination import Leader
from homeport.client.core.errors import Closed, HomeportError, LeaseGone
from homeport.client.core.limits import CALL_S

if TYPE_CHECKING:
    from homeport.client.blocking.client import Client


class Holding:
    """Something to hold; a context manager, for one thread at a time. See `homeport.client.Holding`.

    Entering it waits until it is held. Leaving it gives it back, and raises `LeaseGone` if it was lost meanwhile.

    Attributes:
        lost: a `threading.Event`, set when it is lost; a new one for each acquisition.
    """

    def __init__(self, life: Life, inner: coordination.Holding) -> None:
        self._life = life
        self._inner = inner
        self.lost: threading.Event = threading.Event()

    def __str__(self) -> str:
        return str(self._inner)

    @property
    def token(self) -> int:
        """The fencing token while it is held, else 0. Every later holder has a larger one."""
        return self._inner.token

    @property
    def held(self) -> bool:
        """Whether it is certain that this holds it at this moment."""
        return self._inner.held

    @property
    def remaining_s(self) -> float:
        """Seconds for which it is certain to be held if no renewal succeeds any more; 0.0 if it is not held."""
        return self._inner.remaining_s

    def acquire(self, *, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Acquire it, and return whether that was done; an interrupt (Ctrl-C) leaves nothing behind.

        Args:
            wait: whether to wait until others have given it back.
            timeout_s: how long to wait at most; default: for ever.
        """
        return self._hold(lambda: self._inner.acquire(wait=wait, timeout_s=timeout_s))

    def _hold(self, acquire: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        async def hold() -> bool:
            done = await acquire()
            if done:
                self.lost = lost = threading.Event()
                self._inner.on_lost(lost.set)
            return done

        try:
            return self._life.run(hold())
        except Exception:
            raise
        except BaseException:  # an interrupt, which may have come when it was held already
            with suppress(HomeportError):
                self._life.submit(self._inner.release())
            raise

    def release(self) -> None:
        """Give it back. Idempotent."""
        self._life.end(self._inner.release())

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback`, in the client's thread, when it is lost; return what takes that back."""
        stop = self._life.call(lambda: self._inner.on_lost(callback))
        return lambda: self._life.call(stop)

    def guarded(self) -> AbstractContextManager[None]:
        """A context manager that raises `LeaseGone` if this is lost, before its body or after it."""
        return self._guarded()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self._expect_held()
        yield
        self._expect_held()

    def _expect_held(self) -> None:
        if not self._inner.held:
            raise LeaseGone(f"{self} is not held")

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._life.run(self._inner.__aexit__(kind, exc, tb))
        except Closed:
            if kind is None:  # else the body's own error says more
                raise


class Lock(Holding):
    """A lock, made by `Client.lock` or `Session.lock`; see `homeport.client.Lock`.

        with client.lock("jobs/nightly") as lock:
            storage.write(report, fence=lock.token)

    It is not reentrant.
    """

    def __init__(self, life: Life, inner: coordination.Lock) -> None:
        super().__init__(life, inner)
        self._lock = inner
        self.prefix: bytes = inner.prefix

    @property
    def key(self) -> bytes:
        """The key that it is held under, b"" when it is not held: `txn.require(lock.key, created=lock.token)`."""
        return self._lock.key


class Semaphore(Holding):
    """A semaphore's permit; see `homeport.client.Semaphore`."""

    def __init__(self, life: Life, inner: coordination.Semaphore) -> None:
        super().__init__(life, inner)
        self.permits: int = inner.permits
        self.prefix: bytes = inner.prefix


class Election(Lock):
    """An election, to stand for or to observe; see `homeport.client.Election`."""

    def __init__(self, life: Life, inner: coordination.Election) -> None:
        super().__init__(life, inner)
        self._election = inner

    def campaign(self, value: bytes | None = None, *, timeout_s: float | None = None) -> bool:
        """Stand for election, wait until elected, and return whether that came to pass within `timeout_s`."""
        return self._hold(lambda: self._election.campaign(value, timeout_s=timeout_s))

    def resign(self) -> None:
        """Lead no more; the next candidate is elected. Idempotent. The same as `release`."""
        self.release()

    def proclaim(self, value: bytes, *, timeout_s: float = CALL_S) -> None:
        """Say something else of oneself, as the leader."""
        self._life.run(self._election.proclaim(value, timeout_s=timeout_s))

    def leader(self, *, timeout_s: float = CALL_S) -> Leader | None:
        """Who leads now, or None."""
        return self._life.run(self._election.leader(timeout_s=timeout_s))

    def observe(self) -> Changes[Leader | None]:
        """Who leads (None: nobody), then whoever does after each change."""
        return Changes(self._life, self._election.observe())


class Barrier:
    """A gate: while its key stands everyone who waits is held up. See `homeport.client.Barrier`."""

    def __init__(self, life: Life, inner: coordination.Barrier) -> None:
        self._life = life
        self._inner = inner
        self.key: bytes = inner.key

    def hold(self, *, lease: Lease | int = 0) -> None:
        """Close the gate; with a lease, until that ends at the latest."""
        self._life.run(self._inner.hold(lease=known_lease(lease)))

    def release(self) -> None:
        """Open the gate for everyone who waits."""
        self._life.run(self._inner.release())

    def wait(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the gate is open, waiting for it up to `timeout_s` (default: for ever)."""
        return self._life.run(self._inner.wait(timeout_s=timeout_s))


class DoubleBarrier(Holding):
    """Lets a group in when `count` are there, and out when all have left; see `homeport.client.DoubleBarrier`."""

    def __init__(self, life: Life, inner: coordination.DoubleBarrier) -> None:
        super().__init__(life, inner)
        self._barrier = inner
        self.count: int = inner.count
        self.prefix: bytes = inner.prefix

    def enter(self, *, timeout_s: float | None = None) -> bool:
        """Come in, and return whether the group was complete within `timeout_s`; if not, this one is out again."""
        return self._hold(lambda: self._barrier.enter(timeout_s=timeout_s))

    def leave(self, *, timeout_s: float | None = None) -> bool:
        """Leave, and return whether all others had left within `timeout_s`."""
        return self._life.run(self._barrier.leave(timeout_s=timeout_s))


class Queue:
    """A queue of bytes; see `homeport.client.Queue`.

        with client.queue("jobs").claim() as job:
            resize(job.value)      # done when this ends well, else again in the queue

    Every item is handed out at least once, and to one consumer at a time.
    """

    def __init__(self, life: Life, inner: coordination.Queue) -> None:
        self._life = life
        self._inner = inner
        self.prefix: bytes = inner.prefix

    @property
    def items(self) -> bytes:
        """The prefix that items stand under."""
        return self._inner.items

    def put(self, value: bytes, *, timeout_s: float | None = None) -> int:
        """Put an item at the end of the queue, and return the revision of that."""
        return self._life.run(self._inner.put(value, timeout_s=timeout_s))

    def claim(self) -> Claim:
        """One item, for as long as the returned claim is entered; entering waits until there is one."""
        return Claim(self._life, self._life.call(self._inner.claim))

    def length(self, *, timeout_s: float | None = None) -> int:
        """How many items are not done, those that are claimed included."""
        return self._life.run(self._inner.length(timeout_s=timeout_s))


class Claim(Holding):
    """An item that was handed to this consumer; see `homeport.client.Claim`.

    Leaving its context without an exception says that the item is done; with one, it goes back.
    """

    def __init__(self, life: Life, inner: coordination.Claim) -> None:
        super().__init__(life, inner)
        self._claim = inner

    @property
    def value(self) -> bytes:
        """The item, while it is claimed."""
        return self._claim.value

    def done(self) -> None:
        """The item is done: take it off the queue for good."""
        self._life.run(self._claim.done())


class Session(Lease):
    """A lease that locks, permits, candidacies and claims share; see `homeport.client.Session`."""

    def __init__(self, life: Life, inner: coordination.Session, maker: Client) -> None:
        super().__init__(life, inner)
        self._maker = maker

    def lock(self, name: str | bytes, *, value: bytes = b"") -> Lock:
        """See `Client.lock`."""
        return self._maker.lock(name, value=value, session=self)

    def semaphore(self, name: str | bytes, permits: int) -> Semaphore:
        """See `Client.semaphore`."""
        return self._maker.semaphore(name, permits, session=self)

    def election(self, name: str | bytes, *, value: bytes = b"") -> Election:
        """See `Client.election`."""
        return self._maker.election(name, value=value, session=self)

    def double_barrier(self, name: str | bytes, count: int) -> DoubleBarrier:
        """See `Client.double_barrier`."""
        return self._maker.double_barrier(name, count, session=self)

    def queue(self, name: str | bytes) -> Queue:
        """See `Client.queue`; what is claimed from it is claimed on this session."""
        return self._maker.queue(name, session=self)
