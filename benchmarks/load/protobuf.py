"""The few etcd v3 messages that are sent, encoded by hand; field numbers from etcd's rpc.proto.

Answers are counted, not read, so nothing here decodes.
"""

from __future__ import annotations

from typing import Final

RANGE: Final = "/etcdserverpb.KV/Range"
PUT: Final = "/etcdserverpb.KV/Put"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH: Final = "/etcdserverpb.Watch/Watch"


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, low ones first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else b"\x00"


def range_request(prefix: bytes, *, serializable: bool) -> bytes:
    """All keys that start with `prefix`; serializable: from this server's own state, without asking the quorum."""
    return _bytes(1, prefix) + _bytes(2, prefix_end(prefix)) + (_integer(7, 1) if serializable else b"")


def get_request(key: bytes) -> bytes:
    """One key, from this server's own state."""
    return _bytes(1, key) + _integer(7, 1)


def put_request(key: bytes, value: bytes, *, lease: int = 0) -> bytes:
    return _bytes(1, key) + _bytes(2, value) + (_integer(3, lease) if lease else b"")


def lease_revoke_request(lease: int) -> bytes:
    return _integer(1, lease)


def lease_grant_request(lease: int, ttl_s: int) -> bytes:
    return _integer(1, ttl_s) + _integer(2, lease)


def lease_keep_alive_request(lease: int) -> bytes:
    return _integer(1, lease)


def watch_create_request(key: bytes) -> bytes:
    return _bytes(1, _bytes(1, key))
