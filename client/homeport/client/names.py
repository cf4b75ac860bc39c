"""What callers may write for a key and for a lease, and what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeport.client.core.errors import RequestError

if TYPE_CHECKING:
    from homeport.client.leases import Lease


def key_bytes(key: str | bytes) -> bytes:
    """A key's bytes.

    Raises:
        RequestError: it is text that cannot be written as UTF-8.
    """
    try:
        return key.encode() if isinstance(key, str) else bytes(key)
    except UnicodeEncodeError:
        raise RequestError(f"key {key!r} is not valid UTF-8 text; pass bytes") from None


def lease_id(lease: Lease | int) -> int:
    """A lease's number; 0 is none.

    Raises:
        LeaseGone: the lease is lost, closed, or not started.
    """
    if isinstance(lease, int):
        return lease
    lease.expect_valid()
    return lease.id
