"""A lock: one holder at a time, in the order in which they came."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from homeport.client.coordination.holding import Holding
from homeport.client.coordination.place import Place, left, name_of, prefix_of
from homeport.client.core.backoff import Rng
from homeport.client.leases import Lease

if TYPE_CHECKING:
    from homeport.client.client import Client


class Lock(Holding):
    """A lock, made by `Client.lock` or `Session.lock`; see `Holding` for what can be done with it.

        async with client.lock("jobs/nightly") as lock:
            await storage.write(report, fence=lock.token)

    It is not reentrant. Holders and waiters stand under `<name>/~lock/`, the oldest first; the first of them holds it.
    """

    _kind = b"lock"

    def __init__(
        self, client: Client, name: str | bytes, *, ttl_s: float | None, session: Lease | None, value: bytes, rng: Rng
    ) -> None:
        super().__init__(client, ttl_s=ttl_s, session=session, rng=rng)
        self.prefix: bytes = prefix_of(name, self._kind)
        self._value = value
        self._place: Place | None = None

    def __str__(self) -> str:
        return f"lock {name_of(self.prefix)!r}"

    @property
    def key(self) -> bytes:
        """The key that it is held under, b"" when it is not held: `txn.require(lock.key, created=lock.token)`."""
        return self._place.key if self._lease is not None and self._place is not None else b""

    async def _take(self, lease: Lease, wait: bool) -> int | None:
        self._place = place = Place(self._client, lease, self.prefix, self._value, self._rng)
        await place.take()
        if wait:
            await place.turn()
        elif (await place.before())[0] is not None:
            return None
        return place.revision

    def _put_back(self, lease: Lease) -> Coroutine[Any, Any, None]:
        place, self._place = self._place, None
        return left(place)
