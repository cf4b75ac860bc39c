"""A session: one lease that several things are held on, so that all of them are lost at once or none is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeport.client.leases import Lease

if TYPE_CHECKING:
    from homeport.client.coordination.barrier import DoubleBarrier
    from homeport.client.coordination.election import Election
    from homeport.client.coordination.lock import Lock
    from homeport.client.coordination.queue import Queue
    from homeport.client.coordination.semaphore import Semaphore


class Session(Lease):
    """A lease that locks, permits, candidacies and claims share; made by `Client.session`, and used as a `Lease`.

        async with client.session(ttl_s=15) as session:
            async with session.lock("a"), session.lock("b"):
                ...

    What is held on it is lost with it, and given back when it is closed. Each method is its namesake of `Client`.
    """

    def lock(self, name: str | bytes, *, value: bytes = b"") -> Lock:
        """See `Client.lock`."""
        return self._client.lock(name, value=value, session=self)

    def semaphore(self, name: str | bytes, permits: int) -> Semaphore:
        """See `Client.semaphore`."""
        return self._client.semaphore(name, permits, session=self)

    def election(self, name: str | bytes, *, value: bytes = b"") -> Election:
        """See `Client.election`."""
        return self._client.election(name, value=value, session=self)

    def double_barrier(self, name: str | bytes, count: int) -> DoubleBarrier:
        """See `Client.double_barrier`."""
        return self._client.double_barrier(name, count, session=self)

    def queue(self, name: str | bytes) -> Queue:
        """See `Client.queue`; what is claimed from it is claimed on this session."""
        return self._client.queue(name, session=self)
