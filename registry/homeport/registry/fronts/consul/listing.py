"""From rows to answers: the one place where every list of nodes, services and checks is chosen from and encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import Call

T = TypeVar("T", bound=msgspec.Struct)


def listed(call: Call, rows: Iterable[T], index: int = 0) -> Answer:
    """A list of rows: those that the caller wants."""
    return Answer(body=bodies.encode(chosen(call, rows)), index=index)


def listed_by_name(call: Call, rows: dict[str, T], index: int = 0) -> Answer:
    """The same, each under its name."""
    return Answer(body=bodies.encode(chosen_by_name(call, rows)), index=index)


def chosen(call: Call, rows: Iterable[T]) -> list[T]:
    """The rows that the caller wants."""
    wanted = call.filter
    return list(rows) if wanted is None else [row for row in rows if wanted(row)]


def chosen_by_name(call: Call, rows: dict[str, T]) -> dict[str, T]:
    """The same of named rows."""
    kept = {id(row) for row in chosen(call, rows.values())}
    return {name: row for name, row in rows.items() if id(row) in kept}


def node_meta(call: Call) -> tuple[tuple[str, str], ...]:
    """The metadata that nodes must have, each `key:value`."""
    pairs = (text.partition(":") for text in call.texts("node-meta"))
    return tuple(sorted({(key, value) for key, _, value in pairs}))


def has_meta(meta: dict[str, str], wanted: tuple[tuple[str, str], ...]) -> bool:
    return all(meta.get(key) == value for key, value in wanted)


def nearest(call: Call) -> str:
    """The node that the caller wants first; empty: any."""
    near = call.text("near")
    return call.agent.operations.queries.nearest(near, source(call)) if near else ""


def source(call: Call) -> str:
    """The address that the caller asks from."""
    return (call.asker.remote if call.asker else None) or ""
