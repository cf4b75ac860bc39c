"""An election: one leader at a time, whom everybody can observe."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from homeport.client.coordination.lock import Lock
from homeport.client.coordination.place import got, name_of
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import LeaseGone
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import KvEvents, KvTxn
from homeport.client.core.model import KvSnapshot
from homeport.client.core.txn import Get, Put, prefix_end
from homeport.client.leases import Lease

if TYPE_CHECKING:
    from homeport.client.client import Client


class Leader(msgspec.Struct, frozen=True):
    """Who leads: what it said of itself, its fencing token, and the key that it stands under."""

    value: bytes
    token: int
    key: bytes


class Election(Lock):
    """An election, made by `Client.election` or `Session.election`; also a `Holding`, which is held while leading.

        election = client.election("orders/leader", value=b"host-1")
        async with election:             # waits until elected
            await lead(election.token)   # and resigns

        async for leader in election.observe():
            print(leader.value if leader else "nobody")

    Candidates stand under `<name>/~election/`, the oldest first; the first of them leads.
    """

    _kind = b"election"

    def __init__(
        self, client: Client, name: str | bytes, *, ttl_s: float | None, session: Lease | None, value: bytes, rng: Rng
    ) -> None:
        super().__init__(client, name, ttl_s=ttl_s, session=session, value=value, rng=rng)

    def __str__(self) -> str:
        return f"election {name_of(self.prefix)!r}"

    async def campaign(self, value: bytes | None = None, *, timeout_s: float | None = None) -> bool:
        """Stand for election, wait until elected, and return whether that came to pass within `timeout_s`.

        Args:
            value: what to say of oneself; default: what was given before.

        Raises:
            HomeportError: what `acquire` raises.
        """
        if value is not None:
            self._value = value
        return await self.acquire(timeout_s=timeout_s)

    async def resign(self) -> None:
        """Lead no more; the next candidate is elected. Idempotent. The same as `release`."""
        await self.release()

    async def proclaim(self, value: bytes, *, timeout_s: float = CALL_S) -> None:
        """Say something else of oneself, as the leader.

        Raises:
            LeaseGone: this does not lead (any more).
            ConnectionLost: whether it was said is not known.
        """
        lease, place = self._held_lease(), self._place
        assert place is not None
        lease.expect_valid()
        said = KvTxn((place.held(),), (Put(place.key, value, lease.id),))
        done = await self._client.call(said, timeout_s=timeout_s)
        if not done.succeeded:
            raise LeaseGone(f"{self} was lost")
        self._value = value

    async def leader(self, *, timeout_s: float = CALL_S) -> Leader | None:
        """Who leads now, or None."""
        first = Get(self.prefix, prefix_end(self.prefix), limit=1, sort_by="create")
        (found,) = (await self._client.call(KvTxn(then=(first,)), timeout_s=timeout_s)).responses
        entries = got(found).entries
        return Leader(entries[0].value, entries[0].create_revision, entries[0].key) if entries else None

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Yield who leads (None: nobody), then whoever does after each change; over broken connections and restarts.

        Whoever follows in the meantime of an outage may be skipped; the last one never is.

        Raises:
            Closed: the client was closed, or not started.
        """
        standing: dict[bytes, Leader] = {}
        told: list[Leader | None] = []
        async with aclosing(self._client.kv.follow(self.prefix)) as steps:
            async for step in steps:
                match step:
                    case KvSnapshot():
                        standing = {kv.key: Leader(kv.value, kv.create_revision, kv.key) for kv in step.entries}
                    case KvEvents():
                        for event in step.events:
                            if event.value is None:
                                standing.pop(event.key, None)
                                continue
                            before = standing.get(event.key)
                            token = before.token if before is not None else event.revision
                            standing[event.key] = Leader(event.value, token, event.key)
                    case _:
                        continue  # what was lost is made good by the snapshot that follows
                now = min(standing.values(), key=lambda leader: leader.token, default=None)
                if told != [now]:
                    told = [now]
                    yield now
