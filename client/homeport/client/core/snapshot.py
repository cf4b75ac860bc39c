"""The last known endpoints and routes as bytes: what a sidecar or a resolver without a registry begins with.

A file is a line that names the format, a CRC-32 of the rest, and the rest in MessagePack. Whatever is wrong with one is
said by `SnapshotError`; a damaged file is never half believed, since a made-up endpoint is worse than none.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from homeport.client.core.errors import HomeportError
from homeport.client.core.model import Instance
from homeport.client.core.wire import UNREADABLE

FORMAT: Final = b"homeport endpoints 1\n"
SNAPSHOT_BYTES_MAX: Final = 64 * 1024 * 1024  # some 300,000 instances: past it something is wrong with what is followed
AGE_S_MAX: Final = 7 * 86_400.0  # older addresses belong to somebody else by now

_CRC_BYTES: Final = 4


class SnapshotError(HomeportError):
    """The endpoints' file cannot be used, or not be written; the message says why."""


class Known(msgspec.Struct, frozen=True):
    """One service as last known; `confirmed_at_s` is the wall clock's time when the registry last said so."""

    service: str
    revision: int
    confirmed_at_s: float
    instances: tuple[Instance, ...]


class Snapshot(msgspec.Struct, frozen=True):
    """Every service followed; `store_id` names the registry's history that the revisions belong to."""

    store_id: str
    services: tuple[Known, ...]
    routes: dict[str, bytes] = {}  # documents by service, as the store has them


_decoder: Final = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """Return the file's content.

    Raises:
        SnapshotError: it would be too long.
    """
    body = msgspec.msgpack.encode(snapshot)
    if len(body) > SNAPSHOT_BYTES_MAX:
        raise SnapshotError(f"the endpoints take {len(body)} bytes; allowed: {SNAPSHOT_BYTES_MAX}")
    return FORMAT + zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body


def decode(data: bytes, now_s: float) -> Snapshot:
    """Read the file's content; services that nobody has confirmed for `AGE_S_MAX` are left out.

    Args:
        now_s: the wall clock's time.

    Raises:
        SnapshotError: this is not such a file, of another version, or damaged.
    """
    if not data.startswith(FORMAT):
        raise SnapshotError(f"it begins with {data[: len(FORMAT)]!r} instead of {FORMAT!r}")
    start = len(FORMAT) + _CRC_BYTES
    body = memoryview(data)[start:]
    if zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != data[len(FORMAT) : start]:
        raise SnapshotError("its checksum does not match its content")
    try:
        snapshot = _decoder.decode(body)
    except UNREADABLE as error:
        raise SnapshotError(f"it does not hold endpoints: {error}") from None
    fresh = tuple(known for known in snapshot.services if now_s - known.confirmed_at_s <= AGE_S_MAX)
    return msgspec.structs.replace(snapshot, services=fresh)
