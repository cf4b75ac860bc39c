"""Events: small messages fired by name, of which the newest are kept in the store for whoever lists or waits for them.

One is kept as `e/<name>/<time>`, the time a Lamport clock that every event steps by one, so that those of one name can
be waited for alone. The ring is bounded: a new event and the end of the oldest are one transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import KeyValue
from homeport.client.core.patterns import Pattern
from homeport.registry.core import keys
from homeport.registry.core.txn import Compare, Delete, Op, Put, Txn
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.waiting import Keys

EVENTS_MAX: Final = 256  # Consul's ring
EVENT_BYTES_MAX: Final = 512  # of a payload, and of a name; Serf's limit for a whole event
_HASTY_TRIES: Final = 3  # of an event that others overtook, before it waits for its turn among those fired here
_RACES_MAX: Final = 16  # times an event is put in its place anew because another came first
_VERSION: Final = 1  # of the format, as Consul counts it


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `e/<name>/<time>`."""

    id: str
    name: str
    time: int
    payload: bytes = b""
    node: str = ""
    service: str = ""
    tag: str = ""


async def fire(call: Call) -> Answer:
    """Add an event, and drop the oldest of a full ring."""
    agent = call.agent
    if len(call.raw) > EVENT_BYTES_MAX:
        raise Refusal(400, f"the event's name has {len(call.raw)} bytes; allowed: at most {EVENT_BYTES_MAX}")
    node, service, tag = (_filter(call, each) for each in ("node", "service", "tag"))
    if tag and not service:
        raise Refusal(400, "Cannot provide tag filter without service filter")
    for number in range(_RACES_MAX):
        if number >= _HASTY_TRIES:
            async with agent.firing:  # one after the other: then only those of other replicas can come first
                fired = await _attempt(call, node, service, tag)
        else:
            fired = await _attempt(call, node, service, tag)
        if fired is not None:
            return Answer(body=bodies.encode(_shown(fired)))
    raise Refusal(500, f"other events came first {_RACES_MAX} times; try again")


async def _attempt(call: Call, node: str, service: str, tag: str) -> Event | None:
    """Put an event behind the newest that is known; None if there was a newer one."""
    agent, name, end = call.agent, call.name, keys.prefix_end(keys.EVENTS)
    standing = sorted(agent.store.at_head(keys.EVENTS, end), key=_time)
    newest = standing[-1] if standing else None
    event = Event(
        id=agent.new_id(),
        name=name,
        time=_time(newest) + 1 if newest else 1,
        payload=call.body,
        node=node,
        service=service,
        tag=tag,
    )
    nothing_newer = Compare(keys.EVENTS, "mod", "<", newest.mod_revision + 1 if newest else 1, end)
    ops: list[Op] = [Put(keys.event(name, event.time), wire.encode(event))]
    ops += [Delete(each.key) for each in standing[: max(len(standing) + 1 - EVENTS_MAX, 0)]]
    return event if (await agent.store.commit(Txn((nothing_newer,), tuple(ops)))).succeeded else None


def resource(call: Call) -> Keys:
    """What a reader of events waits for: those of a name, or all."""
    return Keys(call.agent.store, call.agent.event_indexes, *_range(call))


def listed(call: Call) -> Answer:
    """The events that are kept, oldest first."""
    shown = [_shown(event) for event in sorted(_kept(call.agent, call), key=lambda event: event.time)]
    return Answer(body=bodies.encode(shown), index=resource(call).index())


def _kept(agent: Agent, call: Call) -> Iterator[Event]:
    start, end = _range(call)
    asked = [(each, call.text(each)) for each in ("node", "service", "tag")]
    for key in agent.store.mvcc.keys(start, end):
        found = agent.store.mvcc.get(key)
        if found is None:
            continue
        event = wire.decode(Event, found.value)
        if all(not name or _is_meant_for(getattr(event, each), name) for each, name in asked):
            yield event


def _range(call: Call) -> tuple[bytes, bytes]:
    name = call.text("name")
    prefix = keys.events_of(name) if name else keys.EVENTS
    return prefix, keys.prefix_end(prefix)


def _time(kept: KeyValue) -> int:
    return int(kept.key.rpartition(b"/")[2], 16)


def _filter(call: Call, parameter: str) -> str:
    text = call.text(parameter)
    try:
        _pattern(text)
    except InvalidArgument as error:
        raise Refusal(400, f"Invalid {parameter} filter: {error.message}") from None
    return text


_pattern: Final = functools.lru_cache(maxsize=EVENTS_MAX)(Pattern)


def _is_meant_for(filter_: str, name: str) -> bool:
    """Whether a filter takes a name; none takes all."""
    return not filter_ or _pattern(filter_).found_in(name)


def _shown(event: Event) -> shapes.Event:
    return shapes.Event(
        id=event.id,
        name=event.name,
        payload=event.payload or None,
        node_filter=event.node,
        service_filter=event.service,
        tag_filter=event.tag,
        version=_VERSION,
        l_time=event.time,
    )
