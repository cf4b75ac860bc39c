"""Values of a type of one's own, in place of bytes: checked when they are read, encoded when they are written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import msgspec

from homeport.client.budget import Budget
from homeport.client.core.errors import BadValue, CasFailed, InvalidArgument
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import KvEvents
from homeport.client.core.model import KeyValue, KvSnapshot, Lost
from homeport.client.leases import Lease
from homeport.client.names import key_bytes

if TYPE_CHECKING:
    from homeport.client.kv import Kv

T = TypeVar("T")

Format = Literal["json", "msgpack"]
_TRIES_MAX: Final = 64  # of `update`, others having been faster: then somebody writes this key without a pause


class Entry(msgspec.Struct, Generic[T], frozen=True):
    """A key at one revision, with its value as what it means; the other fields are those of `KeyValue`."""

    key: bytes
    value: T
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class TypedSnapshot(msgspec.Struct, Generic[T], frozen=True):
    """Entries in key order, all as of `revision` of the history that `store_id` names."""

    revision: int
    entries: tuple[Entry[T], ...]
    store_id: str


class TypedEvent(msgspec.Struct, Generic[T], frozen=True):
    """A key was put (`value` present) or deleted (`value` None)."""

    key: bytes
    value: T | None


class TypedEvents(msgspec.Struct, Generic[T], frozen=True):
    """A revision's changes."""

    revision: int
    events: tuple[TypedEvent[T], ...]


class TypedKv(Generic[T]):
    """Keys whose values are all of one type, made by `Kv.typed`; the type is anything that msgspec can check.

        class Limits(msgspec.Struct):
            requests_per_s: int

        limits = client.kv.typed(Limits)
        await limits.put("limits/orders", Limits(requests_per_s=100))
        await limits.update("limits/orders", lambda old: Limits(old.requests_per_s * 2 if old else 1))

    Every method raises what its namesake of `Kv` does; reading also raises `BadValue`, where what is stored is not of
    the type, and writing `InvalidArgument`, where a value cannot be encoded.
    """

    def __init__(self, kv: Kv, kind: type[T], format: Format) -> None:  # noqa: A002 - what everybody calls it
        self._kv = kv
        self._kind = kind
        self._encode: Callable[[Any], bytes]
        self._decode: Callable[[bytes], T]
        match format:
            case "json":
                self._encode, self._decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(kind).decode
            case "msgpack":
                self._encode, self._decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(kind).decode
            case _:
                raise InvalidArgument(f"format is {format!r}; allowed: json, msgpack", field="format")

    async def get(self, key: str | bytes, *, newest: bool = False, timeout_s: float = CALL_S) -> Entry[T] | None:
        """The entry of a key, or None; see `Kv.get`."""
        found = await self._kv.get(key, newest=newest, timeout_s=timeout_s)
        return None if found is None else self._entry(found)

    async def put(
        self,
        key: str | bytes,
        value: T,
        *,
        cas: int | None = None,
        lease: Lease | int = 0,
        timeout_s: float = CALL_S,
    ) -> int:
        """Write a key and return the revision of the write; see `Kv.put`."""
        return await self._kv.put(key, self._encoded(value), cas=cas, lease=lease, timeout_s=timeout_s)

    async def cas(
        self, key: str | bytes, value: T, revision: int, *, lease: Lease | int = 0, timeout_s: float = CALL_S
    ) -> int | None:
        """Write a key if it is at `revision`; see `Kv.cas`."""
        return await self._kv.cas(key, self._encoded(value), revision, lease=lease, timeout_s=timeout_s)

    async def update(
        self, key: str | bytes, change: Callable[[T | None], T], *, timeout_s: float | None = None
    ) -> Entry[T]:
        """Read a key, let `change` make its new value of the old one (None: there is none), and write that.

        If others write the key meanwhile it begins anew, so `change` may be called more than once. The key stays on
        the lease it is on. `timeout_s` is for all of that; default: 5 s for each request.

        Raises:
            CasFailed: others were faster every one of many times.
        """
        budget = Budget(timeout_s)
        for _ in range(_TRIES_MAX):
            old = await self.get(key, newest=True, timeout_s=budget.left_s)
            new = change(None if old is None else old.value)
            at, lease = (0, 0) if old is None else (old.mod_revision, old.lease)
            revision = await self.cas(key, new, at, lease=lease, timeout_s=budget.left_s)
            if revision is not None:
                if old is None:
                    return Entry(key_bytes(key), new, revision, revision, 1, lease)
                return Entry(old.key, new, old.create_revision, revision, old.version + 1, lease)
        raise CasFailed(f"others wrote the key every one of {_TRIES_MAX} times meanwhile", revision=0)

    async def list(self, prefix: str | bytes = b"", *, timeout_s: float | None = None) -> list[Entry[T]]:
        """All entries whose keys start with `prefix`; see `Kv.list`."""
        return [self._entry(kv) for kv in await self._kv.list(prefix, timeout_s=timeout_s)]

    async def delete(
        self, key: str | bytes, *, prefix: bool = False, cas: int | None = None, timeout_s: float = CALL_S
    ) -> int:
        """Delete a key; see `Kv.delete`."""
        return await self._kv.delete(key, prefix=prefix, cas=cas, timeout_s=timeout_s)

    async def follow(self, prefix: str | bytes = b"") -> AsyncGenerator[TypedSnapshot[T] | TypedEvents[T] | Lost, None]:
        """What there is, then every change; see `Kv.follow`."""
        steps = self._kv.follow(prefix)
        try:
            async for step in steps:
                match step:
                    case KvSnapshot():
                        entries = tuple([self._entry(kv) for kv in step.entries])
                        yield TypedSnapshot(step.revision, entries, step.store_id)
                    case KvEvents():
                        yield TypedEvents(step.revision, tuple([self._event(e.key, e.value) for e in step.events]))
                    case Lost():
                        yield step
        finally:
            await steps.aclose()

    def _event(self, key: bytes, value: bytes | None) -> TypedEvent[T]:
        return TypedEvent(key, None if value is None else self._decoded(key, value))

    def _entry(self, kv: KeyValue) -> Entry[T]:
        value = self._decoded(kv.key, kv.value)
        return Entry(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def _encoded(self, value: T) -> bytes:
        try:
            return self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"the value cannot be encoded: {error}", field="value") from None

    def _decoded(self, key: bytes, value: bytes) -> T:
        try:
            return self._decode(value)
        except (msgspec.MsgspecError, RecursionError) as error:
            kind = getattr(self._kind, "__name__", str(self._kind))
            raise BadValue(
                f"key {key!r} holds no {kind}: {error}", key=key.decode("utf-8", "backslashreplace")
            ) from None
