"""The verbs of transactions on nodes, services and checks: set, cas, get, delete, delete-cas, one table for all three.

Each runs on the overlay after those before it. What it writes is shown at the revision `PENDING` until the transaction
has one (`settled`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from homeport.client.core.model import Instance
from homeport.registry.core import catalogue_verbs
from homeport.registry.core.kv_verbs import VerbFailed, quoted
from homeport.registry.core.overlay import PENDING, Overlay
from homeport.registry.fronts.consul import registering, rows, shapes, writes
from homeport.registry.fronts.consul.agent import Agent

Shown = shapes.TxnNode | shapes.TxnService | shapes.TxnCheck


class _Target(msgspec.Struct, frozen=True):
    """What an operation is on, as an error calls it, and what can be done to it; nothing of that is done yet."""

    kind: str
    name: str
    asked_index: int
    find: Callable[[], Shown | None]
    set: Callable[[], Shown]
    delete: Callable[[], object]


def on_node(agent: Agent, overlay: Overlay, asked: writes.TxnNodeAsked) -> list[Shown]:
    """Carry out an operation on a node.

    Raises:
        VerbFailed: it does not hold.
    """
    name = asked.node.node

    def find() -> Shown | None:
        standing = catalogue_verbs.find(overlay, name, "")
        one = standing.shown if standing else registering.node_instance(agent, overlay, name)
        return None if one is None else shapes.TxnNode(rows.shown_node(one))

    return _run(
        asked.verb,
        _Target(
            kind="Node",
            name=f"node {quoted(name)}",
            asked_index=asked.node.modify_index,
            find=find,
            set=lambda: shapes.TxnNode(rows.shown_node(registering.set_node(agent, overlay, asked.node))),
            delete=lambda: registering.delete_node(agent, overlay, name),
        ),
    )


def on_service(agent: Agent, overlay: Overlay, asked: writes.TxnServiceAsked) -> list[Shown]:
    """Carry out an operation on a service.

    Raises:
        VerbFailed: it does not hold.
    """
    id_ = asked.service.id or asked.service.service

    def shown(one: Instance) -> Shown:
        return shapes.TxnService(rows.service(one))

    def find() -> Shown | None:
        standing = catalogue_verbs.find(overlay, asked.node, id_) if id_ else None
        return None if standing is None else shown(standing.shown)

    return _run(
        asked.verb,
        _Target(
            kind="Service",
            name=f"service {quoted(id_)} on node {quoted(asked.node)}",
            asked_index=asked.service.modify_index,
            find=find,
            set=lambda: shown(registering.set_service(agent, overlay, asked.node, asked.service)),
            delete=lambda: id_ and catalogue_verbs.delete(overlay, asked.node, id_),
        ),
    )


def on_check(agent: Agent, overlay: Overlay, asked: writes.TxnCheckAsked) -> list[Shown]:
    """Carry out an operation on a check.

    Raises:
        VerbFailed: it does not hold.
    """
    check = asked.check
    name = check.check_id or check.name

    def find() -> Shown | None:
        found = registering.shown_check(agent, overlay, check.node, name)
        return None if found is None else shapes.TxnCheck(found)

    return _run(
        asked.verb,
        _Target(
            kind="Check",
            name=f"check {quoted(name)} on node {quoted(check.node)}",
            asked_index=check.modify_index,
            find=find,
            set=lambda: shapes.TxnCheck(registering.set_check(agent, overlay, check)),
            delete=lambda: registering.delete_check(agent, overlay, check.node, name),
        ),
    )


def settled(result: Shown, revision: int) -> Shown:
    """A result as clients see it, now that the transaction has a revision."""
    match result:
        case shapes.TxnNode(node):
            return shapes.TxnNode(_settled(node, revision))
        case shapes.TxnService(service):
            return shapes.TxnService(_settled(service, revision))
        case shapes.TxnCheck(check):
            return shapes.TxnCheck(_settled(check, revision))


_Row = TypeVar("_Row", shapes.Node, shapes.Service, shapes.Check)


def _settled(row: _Row, revision: int) -> _Row:
    return msgspec.structs.replace(
        row,
        create_index=revision if row.create_index == PENDING else row.create_index,
        modify_index=revision if row.modify_index == PENDING else row.modify_index,
    )


def _run(verb: str, on: _Target) -> list[Shown]:
    run = VERBS.get(verb)
    if run is None:
        raise VerbFailed(f"unknown {on.kind} verb {quoted(verb)}")
    return run(on)


def _set(on: _Target) -> list[Shown]:
    return [on.set()]


def _cas(on: _Target) -> list[Shown]:
    if _index(on) != on.asked_index:
        raise VerbFailed(f"failed to set {on.name}, index is stale")
    return _set(on)


def _get(on: _Target) -> list[Shown]:
    found = on.find()
    if found is None:
        raise VerbFailed(f"{on.name} doesn't exist")
    return [found]


def _delete(on: _Target) -> list[Shown]:
    on.delete()
    return []


def _delete_cas(on: _Target) -> list[Shown]:
    if not 0 != _index(on) == on.asked_index:
        raise VerbFailed(f"failed to delete {on.name}, index is stale")
    return _delete(on)


def _index(on: _Target) -> int:
    """The index that it has; 0: it is not there."""
    match on.find():
        case None:
            return 0
        case shapes.TxnNode(node):
            return node.modify_index
        case shapes.TxnService(service):
            return service.modify_index
        case shapes.TxnCheck(check):
            return check.modify_index


VERBS: Final[dict[str, Callable[[_Target], list[Shown]]]] = {
    "set": _set,
    "cas": _cas,
    "get": _get,
    "delete": _delete,
    "delete-cas": _delete_cas,
}
