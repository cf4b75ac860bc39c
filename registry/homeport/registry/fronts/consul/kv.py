"""Keys: reads, conditional writes and deletions, as transactions over `k/<key>` and, where flags are set, `m/<key>`.

Every write is decided by the store in one transaction. A PUT of what stands already changes nothing and wakes nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.txn import Compare, Delete, Op, Put, Range, RangeResult, Txn, TxnResult
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import NO, TEXT, YES, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.waiting import Keys

KV_BYTES_MAX: Final = 512 * 1024  # Consul's limit for a value
_RACES_MAX: Final = 16  # times a write is decided anew because the key's lease or flags changed meanwhile
# A value that is shown as a page on this origin must not run as one.
_RAW_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


class KeyDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `m/<key>`: what only Consul's clients know of a key.

    It belongs to the key as it stands only if it is no older: a key that ended with its lease, or was deleted by
    someone who knows nothing of it, leaves it behind.
    """

    flags: int = 0
    lock_index: int = 0
    session: str = ""


def resource(call: Call) -> Keys:
    """What a read of keys waits for: the key, or all that start with it."""
    key = keys.USER + call.raw
    prefix = call.flag("recurse") or call.flag("keys")
    return Keys(call.agent, key, keys.prefix_end(key) if prefix else None)


def read(call: Call) -> Answer:
    """A key; with `recurse` all that start with it; with `keys` only their names."""
    if call.flag("keys"):
        return _names(call)
    if not call.raw and not call.flag("recurse"):
        raise Refusal(400, "Missing key name")
    entries = list(_entries(call))
    index = resource(call).index()
    if not entries:
        return Answer(status=404, content_type=TEXT, index=index)
    if call.flag("raw"):
        if call.flag("recurse"):
            raise Refusal(400, "Conflicting flags: raw shows one key, recurse many")
        return Answer(body=entries[0].value, content_type=TEXT, index=index, headers=_RAW_HEADERS)
    return Answer(body=bodies.encode([_shown(call.agent, entry) for entry in entries]), index=index)


async def write(call: Call) -> Answer:
    """Write a key, with `cas` only if it is at that index (0: only if it is absent)."""
    if not call.raw:
        raise Refusal(400, "Missing key name")
    key, meta = keys.USER + call.raw, keys.USER_DETAILS + call.raw
    cas = call.number("cas")
    store = call.agent.store
    for _ in range(_RACES_MAX):
        old, old_meta = store.mvcc.get(key), store.mvcc.get(meta)
        details = _details(old_meta, old)
        new = msgspec.structs.replace(details, flags=call.number("flags") or 0)
        lease = old.lease if old else 0
        writes: list[Op] = [Put(key, call.body, lease)]
        if new != details:
            writes.append(Put(meta, wire.encode(new), lease) if new != KeyDetails() else Delete(meta))
        # What the decision was made from; if it changed meanwhile, it is made anew.
        basis = (
            Compare(key, "lease", "=", lease),
            Compare(meta, "mod", "=", old_meta.mod_revision if old_meta else 0),
        )
        same = (Compare(key, "value", "=", call.body),) if new == details else (_never(key),)
        inner = Txn(basis, (Txn(same, (), tuple(writes)),))
        demand = () if cas is None else (Compare(key, "mod", "=", cas),)
        result = await store.commit(Txn(demand, (inner,)))
        if not result.succeeded:
            return NO
        decided = result.responses[0]
        assert isinstance(decided, TxnResult)
        if decided.succeeded:
            return YES
    raise Refusal(500, f"the key was changed by others {_RACES_MAX} times meanwhile; try again")


async def delete(call: Call) -> Answer:
    """Delete a key, or with `recurse` all that start with it; with `cas` only if it is at that index, or absent."""
    recurse, cas = call.flag("recurse"), call.number("cas")
    if recurse and cas is not None:
        raise Refusal(400, "Conflicting flags: recurse and cas")
    if not call.raw and not recurse:
        raise Refusal(400, "Missing key name")
    key, meta = keys.USER + call.raw, keys.USER_DETAILS + call.raw
    if recurse:
        deletes = (Delete(key, keys.prefix_end(key)), Delete(meta, keys.prefix_end(meta)))
    else:
        deletes = (Delete(key), Delete(meta))
    demand = () if cas is None else (Compare(key, "mod", "=", cas),)
    result = await call.agent.store.commit(Txn(demand, deletes, (Range(key),)))
    if result.succeeded:
        return YES
    found = result.responses[0]
    assert isinstance(found, RangeResult)
    return NO if found.entries else YES


def _names(call: Call) -> Answer:
    index = resource(call).index()
    separator = (call.text("separator") or call.text("seperator")).encode()
    names = [_text(name) for name in _grouped(call.agent, call.raw, separator)]
    if not names and call.raw:
        return Answer(status=404, content_type=TEXT, index=index)
    return Answer(body=bodies.encode(names), index=index)


def _grouped(agent: Agent, prefix: bytes, separator: bytes) -> Iterator[bytes]:
    """The names under a prefix, each up to and with the first separator after it, once."""
    start, end = keys.USER + prefix, keys.prefix_end(keys.USER + prefix)
    skip = len(start)
    mvcc = agent.store.mvcc
    if not separator:
        for key in mvcc.keys(start, end):
            yield key[len(keys.USER) :]
        return
    while (first := next(iter(mvcc.keys(start, end)), None)) is not None:
        cut = first.find(separator, skip)
        if cut < 0:
            yield first[len(keys.USER) :]
            start = first + b"\0"
        else:
            group = first[: cut + len(separator)]
            yield group[len(keys.USER) :]
            start = keys.prefix_end(group)  # past all of the group at once, however many there are


def _entries(call: Call) -> Iterable[KeyValue]:
    key = keys.USER + call.raw
    end = keys.prefix_end(key) if call.flag("recurse") else None
    return call.agent.store.mvcc.range(Range(key, end)).entries


def _shown(agent: Agent, entry: KeyValue) -> shapes.KvEntry:
    user_key = entry.key[len(keys.USER) :]
    details = _details(agent.store.mvcc.get(keys.USER_DETAILS + user_key), entry)
    shape = shapes.KvEntry(
        lock_index=details.lock_index,
        key=_text(user_key),
        flags=details.flags,
        value=entry.value or None,
        create_index=entry.create_revision,
        modify_index=entry.mod_revision,
    )
    if not details.session:
        return shape
    return shapes.HeldKvEntry(**msgspec.structs.asdict(shape), session=details.session)


def _details(found: KeyValue | None, entry: KeyValue | None) -> KeyDetails:
    """What is known of `entry`, from what was `found` beside it."""
    if found is None or entry is None or found.mod_revision < entry.create_revision:
        return KeyDetails()
    return wire.decode(KeyDetails, found.value)


def _never(key: bytes) -> Compare:
    """A condition that no key meets."""
    return Compare(key, "version", "<", 0)


def _text(key: bytes) -> str:
    """A key as JSON can show it; bytes that are not UTF-8 become U+FFFD, as in Go."""
    return key.decode("utf-8", "replace")
