"""What callers may write for a key and for a lease, and what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeport.client.core.errors import InvalidArgument, RequestError

if TYPE_CHECKING:
    from homeport.client.leases import Lease


def key_bytes(key: str | bytes) -> bytes:
    """A key's bytes.

    Raises:
        RequestError: it is text that cannot be written as UTF-8, or neither text nor bytes.
    """
    try:
        if isinstance(key, str):
            return key.encode()
        if isinstance(key, bytes | bytearray | memoryview):
            return bytes(key)
    except UnicodeEncodeError:
        raise RequestError(f"key {key!r} is not valid UTF-8 text; pass bytes") from None
    raise InvalidArgument(f"key is {key!r}; allowed: text or bytes", field="key")


def is_text(value: object) -> bool:
    """Whether this is text, whatever its type was said to be: not everybody's checker looks."""
    return isinstance(value, str)


def lease_id(lease: Lease | int) -> int:
    """A lease's number; 0 is none.

    Raises:
        LeaseGone: the lease is lost, closed, or not started.
    """
    if isinstance(lease, int):
        return lease
    lease.expect_valid()
    return lease.id
