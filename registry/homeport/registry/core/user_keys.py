"""Users' keys as Consul means them: a value with flags, a lock index and perhaps a holder.

The value stands under `k/<key>`; the rest under `m/<key>`, only where it is not the default. Each change of the one
writes the other's key too, for a key has one index. All of it happens on an `Overlay`, which makes it one transaction.
"""

from __future__ import annotations

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.overlay import PENDING, Overlay


class KeyDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `m/<key>`.

    It belongs to the key as it stands only if it is no older: a key that ended with its lease, or was deleted by
    someone who knows nothing of it, leaves it behind.
    """

    flags: int = 0
    lock_index: int = 0  # how often it was locked, by whomever
    session: str = ""  # who holds it
    lock_delay_s: float = 0.0  # how long nobody may lock it when that session ends and releases it


class UserKey(msgspec.Struct, frozen=True):
    """A key with all that is known of it."""

    kv: KeyValue
    details: KeyDetails

    @property
    def name(self) -> bytes:
        return self.kv.key[len(keys.USER) :]


def details(found: KeyValue | None, kv: KeyValue | None) -> KeyDetails:
    """What is known of `kv`, from what was `found` beside it."""
    if found is None or kv is None:
        return KeyDetails()
    if kv.create_revision != PENDING and found.mod_revision < kv.create_revision:
        return KeyDetails()
    return wire.decode(KeyDetails, found.value)


def shown(mvcc: Mvcc, kv: KeyValue) -> UserKey:
    """A key read from the store."""
    return UserKey(kv, details(mvcc.get(keys.USER_DETAILS + kv.key[len(keys.USER) :]), kv))


def find(overlay: Overlay, name: bytes) -> UserKey | None:
    """The key, relying on all of it."""
    kv = overlay.get(keys.USER + name)
    found = overlay.get(keys.USER_DETAILS + name)
    return None if kv is None else UserKey(kv, details(found, kv))


def find_under(overlay: Overlay, prefix: bytes) -> list[UserKey]:
    """Those that start with `prefix`, relying on all of that."""
    start = keys.USER + prefix
    return [
        UserKey(kv, details(overlay.get(keys.USER_DETAILS + kv.key[len(keys.USER) :]), kv))
        for kv in overlay.range(start, keys.prefix_end(start))
    ]


def write(overlay: Overlay, name: bytes, value: bytes, flags: int) -> UserKey:
    """Set a key, whoever holds it. One that is so already is left alone, and its index with it."""
    kv, found = overlay.shape(keys.USER + name), overlay.get(keys.USER_DETAILS + name)
    old = details(found, kv)
    new = msgspec.structs.replace(old, flags=flags)
    if kv is not None and kv.value == value and new == old:
        overlay.get(kv.key)  # now all of it matters
        return UserKey(kv, old)
    return store(overlay, name, value, new, kv.lease if kv else 0)


def store(overlay: Overlay, name: bytes, value: bytes, new: KeyDetails, lease: int) -> UserKey:
    """Write a key with these details on that lease."""
    kv = overlay.put(keys.USER + name, value, lease)
    if new != KeyDetails():
        overlay.put(keys.USER_DETAILS + name, wire.encode(new), lease)
    else:
        overlay.delete(keys.USER_DETAILS + name)
    return UserKey(kv, new)


def delete(overlay: Overlay, name: bytes) -> None:
    """Delete a key, there or not, and whatever is known of it."""
    overlay.delete(keys.USER + name)
    overlay.delete(keys.USER_DETAILS + name)
