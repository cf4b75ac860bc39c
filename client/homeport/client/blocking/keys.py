"""The key-value store, typed values, transactions and leases, waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Self, TypeVar

from homeport.client import leases, transaction, typed
from homeport.client.blocking.life import Changes, Life
from homeport.client.core.errors import HomeportError
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import KvEvents
from homeport.client.core.model import KeyValue, KvSnapshot, Lost
from homeport.client.typed import Entry, Format, TypedEvents, TypedSnapshot

T = TypeVar("T")


class Kv:
    """The key-value store; every method is that of `homeport.client.Kv`, and raises the same."""

    def __init__(self, life: Callable[[], Life]) -> None:
        self._life = life

    def get(self, key: str | bytes, *, newest: bool = False, timeout_s: float = CALL_S) -> KeyValue | None:
        """The entry of a key, or None."""
        life = self._life()
        return life.run(life.client.kv.get(key, newest=newest, timeout_s=timeout_s))

    def put(
        self,
        key: str | bytes,
        value: bytes,
        *,
        cas: int | None = None,
        lease: Lease | int = 0,
        timeout_s: float = CALL_S,
    ) -> int:
        """Write a key and return the revision of the write."""
        life = self._life()
        return life.run(life.client.kv.put(key, value, cas=cas, lease=known_lease(lease), timeout_s=timeout_s))

    def cas(
        self, key: str | bytes, value: bytes, revision: int, *, lease: Lease | int = 0, timeout_s: float = CALL_S
    ) -> int | None:
        """Write a key if its mod_revision is exactly `revision` (0: if it is absent); None if it is not."""
        life = self._life()
        return life.run(life.client.kv.cas(key, value, revision, lease=known_lease(lease), timeout_s=timeout_s))

    def delete(
        self, key: str | bytes, *, prefix: bool = False, cas: int | None = None, timeout_s: float = CALL_S
    ) -> int:
        """Delete a key, or with `prefix` all that start with it; return how many there were."""
        life = self._life()
        return life.run(life.client.kv.delete(key, prefix=prefix, cas=cas, timeout_s=timeout_s))

    def list(
        self, prefix: str | bytes = b"", *, keys_only: bool = False, timeout_s: float | None = None
    ) -> list[KeyValue]:
        """All entries whose keys start with `prefix`, in key order, as of one revision."""
        life = self._life()
        return life.run(life.client.kv.list(prefix, keys_only=keys_only, timeout_s=timeout_s))

    def snapshot(
        self, prefix: str | bytes = b"", *, keys_only: bool = False, timeout_s: float | None = None
    ) -> KvSnapshot:
        """All entries whose keys start with `prefix`, and the revision they are of."""
        life = self._life()
        return life.run(life.client.kv.snapshot(prefix, keys_only=keys_only, timeout_s=timeout_s))

    def txn(self) -> Transaction:
        """A transaction, to be filled and committed: all of it happens at one revision, or nothing."""
        return Transaction(self._life())

    def typed(self, kind: type[T], *, format: Format = "json") -> TypedKv[T]:  # noqa: A002 - what everybody calls it
        """The same store for values of one type, anything that msgspec can check."""
        life = self._life()
        return TypedKv(life, life.client.kv.typed(kind, format=format))

    def follow(self, prefix: str | bytes = b"") -> Changes[KvSnapshot | KvEvents | Lost]:
        """All entries whose keys start with `prefix`, then every change to them, each revision once."""
        life = self._life()
        return Changes(life, life.client.kv.follow(prefix))

    def watch(
        self, key: str | bytes, *, prefix: bool = False, start_revision: int = 0, store_id: str = ""
    ) -> Changes[KvEvents | Lost]:
        """The changes of a key, or of a prefix, from `start_revision` on (0: from now), each revision once."""
        life = self._life()
        source = life.client.kv.watch(key, prefix=prefix, start_revision=start_revision, store_id=store_id)
        return Changes(life, source)


class TypedKv(Generic[T]):
    """Keys whose values are all of one type; every method is that of `homeport.client.TypedKv`."""

    def __init__(self, life: Life, inner: typed.TypedKv[T]) -> None:
        self._life = life
        self._inner = inner

    def get(self, key: str | bytes, *, newest: bool = False, timeout_s: float = CALL_S) -> Entry[T] | None:
        """The entry of a key, or None."""
        return self._life.run(self._inner.get(key, newest=newest, timeout_s=timeout_s))

    def put(
        self,
        key: str | bytes,
        value: T,
        *,
        cas: int | None = None,
        lease: Lease | int = 0,
        timeout_s: float = CALL_S,
    ) -> int:
        """Write a key and return the revision of the write."""
        return self._life.run(self._inner.put(key, value, cas=cas, lease=known_lease(lease), timeout_s=timeout_s))

    def cas(
        self, key: str | bytes, value: T, revision: int, *, lease: Lease | int = 0, timeout_s: float = CALL_S
    ) -> int | None:
        """Write a key if it is at `revision`; None if it is not."""
        return self._life.run(self._inner.cas(key, value, revision, lease=known_lease(lease), timeout_s=timeout_s))

    def update(self, key: str | bytes, change: Callable[[T | None], T], *, timeout_s: float | None = None) -> Entry[T]:
        """Write what `change` makes of a key's value, in the client's thread; it may be called more than once."""
        return self._life.run(self._inner.update(key, change, timeout_s=timeout_s))

    def list(self, prefix: str | bytes = b"", *, timeout_s: float | None = None) -> list[Entry[T]]:
        """All entries whose keys start with `prefix`."""
        return self._life.run(self._inner.list(prefix, timeout_s=timeout_s))

    def delete(
        self, key: str | bytes, *, prefix: bool = False, cas: int | None = None, timeout_s: float = CALL_S
    ) -> int:
        """Delete a key; return how many there were."""
        return self._life.run(self._inner.delete(key, prefix=prefix, cas=cas, timeout_s=timeout_s))

    def follow(self, prefix: str | bytes = b"") -> Changes[TypedSnapshot[T] | TypedEvents[T] | Lost]:
        """What there is, then every change."""
        return Changes(self._life, self._inner.follow(prefix))


class Transaction(transaction.Transaction):
    """A transaction on keys; filled as `homeport.client.Transaction` is, and committed by waiting."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.client)
        self._life = life

    def commit(self, *, timeout_s: float = CALL_S) -> Self:  # type: ignore[override]  # it waits: that is the point
        """Carry it out, and return it with every answer."""
        return self._life.run(super().commit(timeout_s=timeout_s))


class Lease:
    """A lease, renewed in the background until it is closed or lost; see `homeport.client.Lease`.

    Attributes:
        lost: a `threading.Event`, set when it is lost.
    """

    def __init__(self, life: Life, inner: leases.Lease) -> None:
        self._life = life
        self._inner = inner
        self.lost: threading.Event = threading.Event()
        inner.on_lost(self.lost.set)

    @property
    def id(self) -> int:
        """The registry's number for it; 0 before `start`."""
        return self._inner.id

    @property
    def ttl_s(self) -> float:
        """How long it lives after its last renewal."""
        return self._inner.ttl_s

    @property
    def error(self) -> HomeportError | None:
        """Why it was lost, or what the last renewal met."""
        return self._inner.error

    @property
    def valid(self) -> bool:
        """Whether it is certain that the registry keeps it at this moment."""
        return self._inner.valid

    @property
    def deadline(self) -> float:
        """Until when it is certain that the registry keeps it, by `time.monotonic()`."""
        return self._inner.deadline

    @property
    def remaining_s(self) -> float:
        """Seconds for which it is certain that the registry keeps it; 0.0 if it is not."""
        return self._inner.remaining_s

    def start(self) -> None:
        """Ask the registry for it, and renew it from now on."""
        self._life.run(self._inner.start())

    def close(self) -> None:
        """Give it back, which deletes its keys. Idempotent."""
        self._life.end(self._inner.close())

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` in the client's thread when it is lost; return what takes that back."""
        stop = self._life.call(lambda: self._inner.on_lost(callback))
        return lambda: self._life.call(stop)

    def on_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """The same, but when it is closed as well."""
        stop = self._life.call(lambda: self._inner.on_end(callback))
        return lambda: self._life.call(stop)

    def guarded(self) -> AbstractContextManager[None]:
        """A context manager that raises `LeaseGone` if this is lost, before its body or after it.

        A thread cannot be interrupted: the body itself must look at `lost` or `valid` before what must not go wrong.
        """
        return self._guarded()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self.expect_valid()
        yield
        self.expect_valid()

    def expect_valid(self) -> None:
        """Raise `LeaseGone` unless it is certain that the registry keeps it."""
        self._inner.expect_valid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def known_lease(lease: Lease | int) -> leases.Lease | int:
    """The async client's own lease."""
    return lease if isinstance(lease, int) else lease._inner
