"""Keys: reads, conditional writes, locks and deletions, as transactions over `k/<key>` and what stands beside it.

Every write is one transaction: decided on the state at hand, on the condition that it still stands, else decided anew.
A PUT of what stands already changes nothing and wakes nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from homeport.registry.core import keys, user_keys
from homeport.registry.core.limits import KEY_BYTES_MAX
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.sessions import Refused, lock, unlock
from homeport.registry.core.txn import Compare, Delete, Put, Range, RangeResult, Txn
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import NO, TEXT, YES, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.waiting import Keys

KV_BYTES_MAX: Final = 512 * 1024  # Consul's limit for a value
# A value that is shown as a page on this origin must not run as one.
_RAW_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


def resource(call: Call) -> Keys:
    """What a read of keys waits for: the key, or all that start with it."""
    key = keys.USER + call.raw
    prefix = call.flag("recurse") or call.flag("keys")
    return Keys(call.agent.store, call.agent.key_indexes, key, keys.prefix_end(key) if prefix else None)


def read(call: Call) -> Answer:
    """A key; with `recurse` all that start with it; with `keys` only their names."""
    if call.flag("keys"):
        return _names(call)
    if not call.raw and not call.flag("recurse"):
        raise Refusal(400, "Missing key name")
    mvcc = call.agent.store.mvcc
    if call.flag("recurse"):
        found = mvcc.range(Range(keys.USER + call.raw, keys.prefix_end(keys.USER + call.raw))).entries
        index = resource(call).index()
        if found and call.flag("raw"):
            raise Refusal(400, "Conflicting flags: raw shows one key, recurse many")
    else:
        one = mvcc.get(keys.USER + call.raw)
        found = () if one is None else (one,)
        index = resource(call).index() if one is None else one.mod_revision
    if not found:
        return Answer(status=404, content_type=TEXT, index=index)
    if call.flag("raw"):
        return Answer(body=found[0].value, content_type=TEXT, index=index, headers=_RAW_HEADERS)
    return Answer(body=bodies.encode([shape(user_keys.shown(mvcc, entry)) for entry in found]), index=index)


async def write(call: Call) -> Answer:
    """Write a key, whoever holds it; with `cas` only at that index (0: only if it is absent). Or lock or unlock it."""
    if not call.raw:
        raise Refusal(400, "Missing key name")
    if len(call.raw) > KEY_BYTES_MAX - len(keys.USER):
        raise Refusal(413, f"the key has {len(call.raw)} bytes; allowed: {KEY_BYTES_MAX - len(keys.USER)}")
    if sum(name in call.values for name in ("cas", "acquire", "release")) > 1:
        raise Refusal(400, "Conflicting flags: only one of cas, acquire and release")
    if "acquire" in call.values:
        return await _lock(call)
    if "release" in call.values:
        return await _unlock(call)
    return await _set(call)


async def _set(call: Call) -> Answer:
    key, meta = keys.USER + call.raw, keys.USER_DETAILS + call.raw
    cas, flags = call.number("cas"), call.number("flags") or 0

    def attempt(overlay: Overlay) -> bool:
        if cas is not None:
            found = overlay.get(key)
            if (found.mod_revision if found else 0) != cas:
                return False
        user_keys.write(overlay, call.raw, call.body, flags)
        return True

    store = call.agent.store
    standing = store.mvcc.get(key)
    if cas is None and not flags and standing is None and store.mvcc.get(meta) is None:
        # Nothing to keep: the commonest write of all is decided by the store alone.
        absent = (Compare(key, "version", "=", 0), Compare(meta, "version", "=", 0))
        if (await store.commit(Txn(absent, (Put(key, call.body),)))).succeeded:
            return YES
    done, _ = await call.agent.sessions.decide(attempt)
    return YES if done else NO


async def _lock(call: Call) -> Answer:
    session, flags = call.text("acquire"), call.number("flags") or 0
    sessions = call.agent.sessions
    while True:
        outcome, _ = await sessions.decide(lambda overlay: lock(overlay, call.raw, session, call.body, flags))
        match outcome:
            case Refused(why="unknown session"):
                raise Refusal(500, f'invalid session "{session}"')
            case Refused(why="abandoned", session=gone):
                await sessions.settled(gone)
            case Refused():
                return NO
            case _:
                return YES


async def _unlock(call: Call) -> Answer:
    session, flags = call.text("release"), call.number("flags") or 0
    released, _ = await call.agent.sessions.decide(lambda overlay: unlock(overlay, call.raw, session, call.body, flags))
    return NO if released is None else YES


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


def shape(entry: user_keys.UserKey) -> shapes.KvEntry:
    """A key as clients see it."""
    kv, details = entry.kv, entry.details
    kind = shapes.KvEntry(
        lock_index=details.lock_index,
        key=_text(entry.name),
        flags=details.flags,
        value=kv.value or None,
        create_index=kv.create_revision,
        modify_index=kv.mod_revision,
    )
    if not details.session:
        return kind
    return shapes.HeldKvEntry(**msgspec.structs.asdict(kind), session=details.session)


def _text(key: bytes) -> str:
    """A key as JSON can show it; bytes that are not UTF-8 become U+FFFD, as in Go."""
    return key.decode("utf-8", "replace")
