"""A place in a queue: a key of one's own under a prefix, whose turn it is when no older key stands there.

Keys are as old as their creation, which the registry decides, so the queue is fair. Whoever waits watches the one key
that was created before its own, and nothing else: a release wakes one waiter, not all.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import HomeportError, Internal, InvalidArgument, LeaseGone, RegistryError, Unavailable
from homeport.client.core.messages import KvTxn, Request
from homeport.client.core.model import Lost
from homeport.client.core.txn import Compare, Delete, Get, Got, Op, Put, Response, prefix_end
from homeport.client.leases import Lease
from homeport.client.names import key_bytes

if TYPE_CHECKING:
    from homeport.client.client import Client

R = TypeVar("R")

_CROWD_S: Final = 1.0  # for those who came just before, and want what there is enough of: a few round trips of each

# What passes by itself: no registry, or one that cannot do it now.
PASSING: Final = (Unavailable, RegistryError)


def prefix_of(name: str | bytes, kind: bytes) -> bytes:
    """The prefix under which everything of a name stands.

    It is set apart by a segment `~<kind>`: a lock `jobs` is not held up by another called `jobs/nightly`, by a queue
    `jobs`, nor by what a user keeps under `jobs/`.

    Raises:
        InvalidArgument: the name is empty.
    """
    whole = key_bytes(name)
    if not whole:
        raise InvalidArgument("the name is empty; allowed: any key", field="name")
    return whole.rstrip(b"/") + b"/~" + kind + b"/"


def name_of(prefix: bytes) -> str:
    """The name that a prefix was made of, to be read by people."""
    return prefix.rpartition(b"/~")[0].decode("utf-8", "replace")


def passes(error: HomeportError) -> bool:
    """Whether it makes sense to ask again."""
    return isinstance(error, PASSING) and not isinstance(error, Internal)


async def insist(client: Client, request: Request[R], rng: Rng) -> R:
    """Ask until there is an answer; for what may happen twice without harm. Bounded by whoever cancels it."""
    backoff = Backoff(rng)
    while True:
        try:
            return await client.call(request)
        except HomeportError as error:
            if not passes(error):
                raise
        await asyncio.sleep(backoff.next_s())


async def given_back(client: Client, request: KvTxn, lease: Lease, rng: Rng) -> None:
    """Ask until there is an answer, or the lease is over and with it what was to be given back."""
    backoff = Backoff(rng)
    while lease.valid:
        try:
            await client.call(request)
            return
        except HomeportError as error:
            if not passes(error):
                raise
        await asyncio.sleep(backoff.next_s())


def got(response: Response) -> Got:
    """The answer of a `Get`."""
    assert isinstance(response, Got)
    return response


async def deletion(client: Client, key: bytes, revision: int, store_id: str, *, prefix: bool = False) -> None:
    """Return when a key (or one that starts with it) is deleted after `revision`, or that cannot be told any more."""
    watch = client.kv.watch(key, prefix=prefix, start_revision=revision + 1, store_id=store_id)
    async with aclosing(watch) as changes:
        async for change in changes:
            if isinstance(change, Lost) or any(event.value is None for event in change.events):
                return


class Place:
    """One place in the queue under `prefix`, on a lease.

    Attributes:
        key: where it stands.
        revision: of its creation, by which it is older or younger than others; 0 before it was taken.
    """

    def __init__(self, client: Client, lease: Lease, prefix: bytes, value: bytes, rng: Rng) -> None:
        name = lease.next_name().encode()
        self.key: bytes = prefix + name
        self.revision: int = 0
        self._client = client
        self._lease = lease
        self._prefix = prefix
        self._value = value
        self._rng = rng
        # Stands when this place was left while nobody knew whether it had been taken: that it may not be, any more.
        self._left = prefix[:-1] + b".left/" + name

    async def take(self, *before: Op) -> int:
        """Stand in the queue, at its end, and return the revision of that.

        Args:
            before: operations that come first, in the same transaction.

        Raises:
            LeaseGone: the lease has ended.
        """
        free = tuple([Compare(key, "version", "=", 0) for key in (self.key, self._left)])
        # A shared store may give transactions that do not touch each other one revision, and two places of one revision
        # would both be the first. Looking at the queue makes each of these concern the others.
        queue = Get(self._prefix, prefix_end(self._prefix), limit=1, keys_only=True)
        request = KvTxn(free, (*before, queue, Put(self.key, self._value, self._lease.id)), (Get(self.key),))
        done = await insist(self._client, request, self._rng)
        if done.succeeded:
            self.revision = done.revision
            return self.revision
        entries = got(done.responses[0]).entries
        if not entries:
            raise LeaseGone("the place in the queue was left", lease=self._lease.id)
        self.revision = entries[0].create_revision  # an earlier try came through, and its answer did not
        return self.revision

    async def before(self) -> tuple[bytes | None, int, str]:
        """The key just before this one (None: it is this one's turn), the revision of that, and its history.

        Raises:
            LeaseGone: this place is not there any more.
        """
        older = Get(
            self._prefix,
            prefix_end(self._prefix),
            limit=1,
            sort_by="create",
            descending=True,
            keys_only=True,
            max_create_revision=self.revision - 1,
        )
        while True:
            store_id = self._client.store_id
            done = await insist(self._client, KvTxn(then=(self.standing(), older)), self._rng)
            if store_id == self._client.store_id:
                break
        self.expect(done.responses[0])
        entries = got(done.responses[1]).entries
        return (entries[0].key if entries else None), done.revision, store_id

    def standing(self) -> Get:
        """Reads this place itself, for `expect`."""
        return Get(self.key, keys_only=True)

    def expect(self, response: Response) -> None:
        """Raise `LeaseGone` unless this place stands."""
        entries = got(response).entries
        if not entries or entries[0].create_revision != self.revision:
            raise LeaseGone("the place in the queue is gone: its lease has ended, or somebody deleted it")

    def held(self) -> Compare:
        """Demands, in a transaction, that this place stands."""
        return Compare(self.key, "create", "=", self.revision)

    async def turn(self) -> None:
        """Return when it is this one's turn.

        Raises:
            LeaseGone: this place is not there any more.
        """
        while True:
            older, revision, store_id = await self.before()
            if older is None:
                return
            await deletion(self._client, older, revision, store_id)

    async def crowd(self, prefix: bytes) -> tuple[int, int]:
        """How many places are older than this one, and how many keys stand under a prefix."""
        end = prefix_end(self._prefix)
        older = Get(self._prefix, end, count_only=True, max_create_revision=self.revision - 1)
        others = Get(prefix, prefix_end(prefix), count_only=True)
        done = await insist(self._client, KvTxn(then=(older, others)), self._rng)
        return got(done.responses[0]).count, got(done.responses[1]).count

    async def turn_soon(self) -> bool:
        """Let those go first who came at the same time; return whether it is this one's turn a moment later."""
        try:
            async with asyncio.timeout(_CROWD_S):
                await self.turn()
        except TimeoutError:
            return False
        return True

    async def leave(self) -> None:
        """Give the place up, however often that has to be said while its lease lives; without it, it is gone anyway."""
        ops: tuple[Put | Delete, ...] = (Delete(self.key),)
        if not self.revision:
            ops += (Put(self._left, b"", self._lease.id),)
        await given_back(self._client, KvTxn(then=ops), self._lease, self._rng)


async def left(place: Place | None) -> None:
    """Leave a place, if there is one."""
    if place is not None:
        await place.leave()
