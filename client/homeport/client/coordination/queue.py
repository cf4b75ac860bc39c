"""A queue: items in the order in which they were put, each handed to one consumer at a time until it is done.

Under `<name>/~queue/`:

tail              the number of the newest item
items/<number>    an item, until it is done
claims/<number>   who has it, on that consumer's lease: when the consumer dies, the item is there again
turn/             consumers in the order in which they came; only the first of them looks for an item, and so claims
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from homeport.client.budget import Budget
from homeport.client.coordination.holding import Holding
from homeport.client.coordination.place import Place, given_back, got, insist, left, name_of, prefix_of
from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import BadValue, Busy, LeaseGone
from homeport.client.core.messages import KvList, KvTxn
from homeport.client.core.model import KeyValue, Lost
from homeport.client.core.txn import Compare, Delete, Get, Put
from homeport.client.leases import Lease

if TYPE_CHECKING:
    from homeport.client.client import Client

_TRIES_MAX: Final = 256  # of a put, others having been faster: someone is, each time, so this takes hundreds of them
_ECHO: Final = 40  # bytes of what stands there that an error repeats
_HASTY_TRIES: Final = 4  # before it lets the others go first


class Queue:
    """A queue of bytes, made by `Client.queue` or `Session.queue`.

        queue = client.queue("jobs")
        await queue.put(b"resize 17")

        async with queue.claim() as job:      # waits for one
            await resize(job.value)           # done when this ends well; again in the queue if it raises, or we die

    Every item is handed out at least once, and to one consumer at a time; `Claim.token` tells a late one from its
    successor.
    """

    def __init__(
        self, client: Client, name: str | bytes, *, ttl_s: float | None, session: Lease | None, rng: Rng
    ) -> None:
        self.prefix: bytes = prefix_of(name, b"queue")
        self._client = client
        self._ttl_s = ttl_s
        self._session = session
        self._rng = rng
        self._tail: tuple[int, int] | None = None  # the number of the newest item, and the revision that says so
        self.claim()  # so that a wrong TTL is told at once

    @property
    def items(self) -> bytes:
        """The prefix that items stand under."""
        return self.prefix + b"items/"

    async def put(self, value: bytes, *, timeout_s: float | None = None) -> int:
        """Put an item at the end of the queue, and return the revision of that.

        Args:
            timeout_s: for all of it, the attempts included in which others were faster; default: 5 s a request.

        Raises:
            LimitExceeded: the value is too long.
            ConnectionLost: whether it was put is not known; putting it again may put it twice.
            Unavailable: no registry answered; it was not put.
            Busy: others were faster every one of many times; it was not put.
            BadValue: something else stands where the queue keeps its end.
        """
        key = self.prefix + b"tail"
        backoff, budget = Backoff(self._rng), Budget(timeout_s)
        for tries in range(_TRIES_MAX):
            number, seen = self._tail or _tail(await self._client.kv.get(key, timeout_s=budget.left_s))
            still = [Compare(key, "mod", "=", seen)]
            if seen:  # the number too: in another history the same revision may say another
                still.append(Compare(key, "value", "=", b"%d" % number))
            then = (Put(key, b"%d" % (number + 1)), Put(self.items + b"%016x" % (number + 1), value))
            try:
                written = KvTxn(tuple(still), then, (Get(key),))
                done = await self._client.call(written, timeout_s=budget.left_s)
            except BaseException:
                self._tail = None
                raise
            if done.succeeded:
                self._tail = (number + 1, done.revision)
                return done.revision
            entries = got(done.responses[0]).entries
            self._tail = _tail(entries[0] if entries else None)
            if tries >= _HASTY_TRIES:
                await asyncio.sleep(backoff.next_s())
        raise Busy(f"others put items every one of {_TRIES_MAX} times meanwhile", retry_after_s=1.0)

    def claim(self) -> Claim:
        """One item, for as long as the returned claim is entered; entering waits until there is one."""
        return Claim(self._client, self.prefix, ttl_s=self._ttl_s, session=self._session, rng=self._rng)

    async def length(self, *, timeout_s: float | None = None) -> int:
        """How many items are not done, those that are claimed included."""
        # Page by page, since a transaction counts 10,000.
        return len(await self._client.kv.list(self.items, keys_only=True, timeout_s=timeout_s))


class Claim(Holding):
    """An item that was handed to this consumer; see `Holding` for `token`, `lost` and the like.

    Leaving its context without an exception says that the item is done; with one, it goes back to its place in the
    queue. So it does when the claim is lost.

    Attributes:
        value: the item, while it is claimed.
    """

    def __init__(self, client: Client, prefix: bytes, *, ttl_s: float | None, session: Lease | None, rng: Rng) -> None:
        super().__init__(client, ttl_s=ttl_s, session=session, rng=rng)
        self.value: bytes = b""
        self._prefix = prefix
        self._items = prefix + b"items/"
        self._claims = prefix + b"claims/"
        self._place: Place | None = None
        self._number = b""

    def __str__(self) -> str:
        return f"queue {name_of(self._prefix)!r}"

    async def done(self) -> None:
        """The item is done: take it off the queue for good.

        Raises:
            LeaseGone: the claim was lost, and the item may be with another consumer.
            Closed: the client is closed; the item will be handed out again.
        """
        lease = self._held_lease()
        item, claim = self._items + self._number, self._claims + self._number
        mine = Compare(claim, "create", "=", self.token)
        try:
            async with lease.guarded():
                finish = KvTxn((mine,), (Delete(item), Delete(claim)), (Get(item, keys_only=True), Get(claim)))
                finished = await insist(self._client, finish, self._rng)
                if not finished.succeeded and any(got(each).entries for each in finished.responses):
                    raise LeaseGone(f"the claim on an item of {self} was lost")
        finally:
            await self.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._lease is not None:
            await self.done()
        else:
            await super().__aexit__(kind, error, trace)

    async def _take(self, lease: Lease, wait: bool) -> int | None:
        self._place = place = Place(self._client, lease, self._prefix + b"turn/", b"", self._rng)
        await place.take()
        if wait:
            await place.turn()
        else:
            older, claimed = await place.crowd(self._claims)
            if older and not (await self._keys(self._items, older + claimed + 1))[1][older + claimed :]:
                return None
            if older and not await place.turn_soon():
                return None
        while True:
            store_id = self._client.store_id
            # First the claims: nobody else makes any, so whatever item is not among them is free.
            revision, claims = await self._keys(self._claims)
            taken = {kv.key.removeprefix(self._claims) for kv in claims}
            _, items = await self._keys(self._items, len(taken) + 1)
            if store_id != self._client.store_id:
                continue
            free = next((kv for kv in items if kv.key.removeprefix(self._items) not in taken), None)
            if free is not None:
                token = await self._claimed(place, lease, free)
                if token is not None:
                    return token
            elif not wait:
                return None
            else:
                stands = await insist(self._client, KvTxn(then=(place.standing(),)), self._rng)
                place.expect(stands.responses[0])
                await self._news(revision, store_id)

    async def _keys(self, prefix: bytes, most: int = 0) -> tuple[int, list[KeyValue]]:
        """The first keys under a prefix (0: all), page by page, and the revision of the first page."""
        page = await insist(self._client, KvList(prefix=prefix, limit=most, keys_only=True), self._rng)
        revision, found = page.revision, [*page.entries]
        while page.more and not 0 < most <= len(found):
            after = found[-1].key
            page = await insist(self._client, KvList(prefix=prefix, after=after, keys_only=True), self._rng)
            found += page.entries
        return revision, found

    async def _claimed(self, place: Place, lease: Lease, item: KeyValue) -> int | None:
        """Claim an item and give the turn on; None if the item is gone."""
        self._number = item.key.removeprefix(self._items)
        key, name = self._claims + self._number, place.key.rpartition(b"/")[2]
        there, unclaimed = Compare(item.key, "create", "=", item.create_revision), Compare(key, "version", "=", 0)
        claim = KvTxn(
            (place.held(), there, unclaimed),
            (Get(item.key), Put(key, name, lease.id), Delete(place.key)),
            (Get(item.key), Get(key), place.standing()),
        )
        done = await insist(self._client, claim, self._rng)
        found = got(done.responses[0]).entries
        if done.succeeded:
            self.value = found[0].value
            return done.revision
        claims = got(done.responses[1]).entries
        if found and claims and claims[0].value == name:
            self.value = found[0].value
            return claims[0].create_revision  # an earlier try came through, and its answer did not
        place.expect(done.responses[2])
        self._number = b""
        return None

    async def _news(self, revision: int, store_id: str) -> None:
        """Return when an item was put or a claim has ended, or that cannot be told any more."""
        watch = self._client.kv.watch(self._prefix, prefix=True, start_revision=revision + 1, store_id=store_id)
        async with aclosing(watch) as changes:
            async for change in changes:
                if isinstance(change, Lost):
                    return
                for event in change.events:
                    if event.key.startswith(self._items if event.value is not None else self._claims):
                        return

    def _put_back(self, lease: Lease) -> Coroutine[Any, Any, None]:
        place, self._place = self._place, None
        number, self._number = self._number, b""

        async def put_back() -> None:
            await left(place)  # first: without its turn, no try that is under way can claim any more
            if number and place is not None:  # only one's own: others may have claimed that item by now
                claim, name = self._claims + number, place.key.rpartition(b"/")[2]
                own = Compare(claim, "value", "=", name)
                await given_back(self._client, KvTxn((own,), (Delete(claim),)), lease, self._rng)

        return put_back()


def _tail(found: KeyValue | None) -> tuple[int, int]:
    """The number of the newest item, and the revision that says so."""
    if found is None:
        return 0, 0
    if not found.value.isdigit():
        raise BadValue(f"key {found.key!r} is a queue's, and holds no number: {found.value[:_ECHO]!r}")
    return int(found.value), found.mod_revision
