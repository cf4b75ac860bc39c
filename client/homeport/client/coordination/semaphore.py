"""A semaphore: so many holders at a time, in the order in which they came.

Whoever wants a permit first waits for its turn under `<name>/~semaphore/turn/`; then only it watches those who hold
one, under `<name>/~semaphore/held/`, takes the next that is free, and gives the turn on. So a release wakes one waiter,
and nobody overtakes.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from homeport.client.coordination.holding import Holding
from homeport.client.coordination.place import Place, deletion, given_back, got, insist, left, name_of, prefix_of
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import InvalidArgument, LeaseGone
from homeport.client.core.messages import KvTxn
from homeport.client.core.txn import Delete, Get, Put, prefix_end
from homeport.client.leases import Lease

if TYPE_CHECKING:
    from homeport.client.client import Client


class Semaphore(Holding):
    """A semaphore's permit, made by `Client.semaphore` or `Session.semaphore`; one object holds one permit.

    All who use a name must agree on `permits`; whoever does not is told so when it acquires.
    """

    def __init__(
        self,
        client: Client,
        name: str | bytes,
        permits: int,
        *,
        ttl_s: float | None,
        session: Lease | None,
        rng: Rng,
    ) -> None:
        super().__init__(client, ttl_s=ttl_s, session=session, rng=rng)
        if permits < 1:
            raise InvalidArgument(f"permits is {permits}; allowed: 1 or more", field="permits")
        self.permits: int = permits
        self.prefix: bytes = prefix_of(name, b"semaphore")
        self._holders = self.prefix + b"held/"
        self._place: Place | None = None
        self._permit = b""

    def __str__(self) -> str:
        return f"semaphore {name_of(self.prefix)!r}"

    async def _take(self, lease: Lease, wait: bool) -> int | None:
        self._place = place = Place(self._client, lease, self.prefix + b"turn/", b"", self._rng)
        await place.take()
        if wait:
            await place.turn()
        else:
            older, held = await place.crowd(self._holders)
            if older and (older + held >= self.permits or not await place.turn_soon()):
                return None
        holders = Get(self._holders, prefix_end(self._holders))
        while True:
            store_id = self._client.store_id
            done = await insist(self._client, KvTxn(then=(place.standing(), holders)), self._rng)
            if store_id != self._client.store_id:
                continue
            place.expect(done.responses[0])
            found = got(done.responses[1])
            for holder in found.entries:
                if holder.value != b"%d" % self.permits:
                    others = holder.value.decode("ascii", "replace")
                    raise InvalidArgument(
                        f"{self} has {others} permits for others, not {self.permits}", field="permits"
                    )
            if found.count < self.permits:
                return await self._permitted(place, lease)
            if not wait:
                return None
            await deletion(self._client, self._holders, done.revision, store_id, prefix=True)

    async def _permitted(self, place: Place, lease: Lease) -> int:
        """Take a permit, which nobody else can meanwhile, and give the turn on."""
        self._permit = key = self._holders + place.key.rpartition(b"/")[2]
        request = KvTxn(
            (place.held(),), (Put(key, b"%d" % self.permits, lease.id), Delete(place.key)), (Get(key, keys_only=True),)
        )
        done = await insist(self._client, request, self._rng)
        if done.succeeded:
            return done.revision
        entries = got(done.responses[0]).entries
        if not entries:
            raise LeaseGone(f"the turn at {self} is gone: its lease has ended, or somebody deleted it")
        return entries[0].create_revision  # an earlier try came through, and its answer did not

    def _put_back(self, lease: Lease) -> Coroutine[Any, Any, None]:
        place, self._place = self._place, None
        permit, self._permit = self._permit, b""

        async def put_back() -> None:
            await left(place)  # first: without its turn, no try that is under way can take the permit any more
            if permit:
                await given_back(self._client, KvTxn(then=(Delete(permit),)), lease, self._rng)

        return put_back()
